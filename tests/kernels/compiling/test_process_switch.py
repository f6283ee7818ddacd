"""A switch is the same for Python and for compiled code, in every thread, and is restored after its block."""

from concurrent.futures import ThreadPoolExecutor
from enum import Enum

import pytest

from threadloom.kernels.compiling.jit import JIT_ENABLED, jit_strict_fp
from threadloom.kernels.compiling.process_switch import ProcessSwitch


class Fruit(Enum):
    """Members of the switch."""

    APPLE = "apple"
    PEAR = "pear"


SWITCH = ProcessSwitch("threadloom_test_switch", (Fruit.PEAR, Fruit.APPLE), Fruit.APPLE)
_read = SWITCH.read


@jit_strict_fp
def read() -> int:
    return _read()


def test_the_current_member_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="on purpose"), SWITCH.set_to(Fruit.PEAR):
        assert SWITCH.current is Fruit.PEAR
        raise ValueError("on purpose")
    assert SWITCH.current is Fruit.APPLE


@pytest.mark.skipif(not JIT_ENABLED, reason="only compiled code reads the number")
def test_compiled_code_reads_the_index_of_the_member() -> None:
    assert read() == 1
    with SWITCH.set_to(Fruit.PEAR), ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: read(), range(2))) == [0, 0]
    assert read() == 1
