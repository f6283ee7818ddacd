"""Every gradient tensor of a whole batch, summed over lanes, compared with the float64 reference."""

import pytest
from hypothesis import given, settings, strategies as st

from tests.stages.support import tiny
from tests.stages.training.gradients import check_gradients

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize(
    "sizes",
    [
        ("model.context=1", "batch_size=1", "lanes=1"),
        ("model.context=1", "batch_size=5", "micro_batch=5", "lanes=1", "model.vocab_size=3"),
        ("model.context=5", "batch_size=7", "lanes=3", "model.channels=21", "model.heads=7"),
        ("model.context=16", "batch_size=6", "micro_batch=3", "lanes=2", "model.channels=24", "model.layers=1"),
        ("model.context=3", "batch_size=2", "gradient_accumulation_steps=4", "lanes=4", "model.vocab_size=300"),
    ],
)
def test_every_gradient_tensor(sizes: tuple[str, ...], delay: int) -> None:
    check_gradients(tiny(*sizes, f"delay={delay}", "steps=1", "threads.backward=2"))


@settings(max_examples=20, derandomize=True)
@given(data=st.data())
def test_every_gradient_tensor_of_any_size(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    # Two channels and one token are left out: all gradients are 0, so only rounding would be compared.
    heads, micro, count = draw(1, 3), draw(1, 3), draw(1, 4)
    config = tiny(
        f"model.heads={heads}", f"model.channels={heads * draw(3, 9)}", f"model.layers={draw(1, 2)}",
        f"model.context={draw(1, 12)}", f"model.vocab_size={draw(2, 40)}", f"micro_batch={micro}",
        f"batch_size={micro * count}", f"lanes={draw(1, count)}", f"delay={draw(0, 1)}", "steps=1",
    )  # fmt: skip
    check_gradients(config)
