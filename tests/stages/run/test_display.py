"""The live view and the log line as functions of a TrainingProgress; the display with a clock of the test."""

import dataclasses
import io
import math
import threading
import time

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len
from rich.console import Console

from threadloom.stages.run.display import (
    LINE_INTERVAL,
    LIVE_INTERVAL,
    ChannelDepth,
    Display,
    ProgressView,
    Smoothing,
    StageShares,
    TrainingProgress,
    bottleneck,
    progress_line,
)

PROGRESS = TrainingProgress(
    step=1234,
    steps=2000,
    loss=1.9043,
    smoothed_loss=1.8921,
    lr=8.21e-4,
    grad_norm=0.412,
    tokens_per_s=28120.4,
    eta_s=42.3,
    val_loss=1.9012,
    stages=(
        StageShares("embed", workers=1, busy=0.10, waiting=0.20, blocked=0.70),
        StageShares("forward", workers=2, busy=0.60, waiting=0.10, blocked=0.30),
        StageShares("backward", workers=2, busy=0.95, waiting=0.05, blocked=0.0),
    ),
    channels=(ChannelDepth("embed→forward", 2, 2), ChannelDepth("forward→backward", 1, 4)),
)


def view(progress: TrainingProgress, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(ProgressView(progress, "run"))
    return capture.get()


def test_the_view_at_eighty_columns() -> None:
    assert view(PROGRESS).splitlines() == [
        "run  " + "━" * 47 + "  1,234/2,000  62%  ETA 0:42",
        "loss 1.8921 (last 1.9043)   val loss 1.9012   grad norm 0.412   lr 8.21e-04",
        "28,120 tokens/s",
        "",
        "             █ busy  ▒ blocked on output  ░ waiting for input",
        "embed        " + "█" * 5 + "▒" * 33 + "░" * 9 + "  10%",
        "forward x2   " + "█" * 28 + "▒" * 14 + "░" * 5 + "  60%",
        "backward x2  " + "█" * 45 + "░" * 2 + "  95%  bottleneck",
        "channels  embed→forward 2/2  forward→backward 1/4",
    ]


@pytest.mark.parametrize("width", [30, 40, 60, 100, 200])
def test_no_line_is_wider_than_the_console(width: int) -> None:
    for line in view(PROGRESS, width).splitlines():
        assert cell_len(line) <= width


def test_ascii_terminals_get_ascii() -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=raw, width=80, color_system=None)
    plain = dataclasses.replace(PROGRESS, channels=())
    console.print(ProgressView(plain))
    raw.seek(0)
    text = raw.read()
    assert "#" in text
    assert "! blocked" in text
    raw.close()


SHARE = st.floats(-0.5, 1.5) | st.just(0.0)


def test_diverged_values_are_short() -> None:
    away = dataclasses.replace(PROGRESS, smoothed_loss=1932904.4932, grad_norm=1.0064240857811848e37)
    line = progress_line(away)
    assert "mean loss 1.933e+06, " in line
    assert "grad norm 1.006e+37, " in line


@given(busy=SHARE, blocked=SHARE, step=st.integers(0, 3000), steps=st.integers(0, 2000), width=st.integers(20, 150))
def test_odd_numbers_never_break_the_view(busy: float, blocked: float, step: int, steps: int, width: int) -> None:
    stage = StageShares("stage", 1, busy, 1.0 - busy - blocked, blocked)
    odd = dataclasses.replace(
        PROGRESS, step=step, steps=steps, loss=math.nan, eta_s=math.inf, val_loss=None, stages=(stage,)
    )
    for line in view(odd, width).splitlines():
        assert cell_len(line) <= width
    assert "nan" not in progress_line(odd).replace("loss nan", "")


def test_the_line_for_logs() -> None:
    assert progress_line(PROGRESS) == (
        "step 1,234/2,000, mean loss 1.8921, val loss 1.9012, lr 8.21e-04, grad norm 0.412, 28,120 tokens/s, ETA 0:42, "
        "backward 95% busy"
    )


@pytest.mark.parametrize(
    ("scale", "skipped", "words"),
    [
        (1024.0, 0, "loss scale 1,024"),
        (2.0**24, 3, "loss scale 16,777,216 (3 skipped)"),
        (0.125, 1, "loss scale 0.125"),
    ],
)
def test_the_loss_scale_is_shown_if_there_is_one(scale: float, skipped: int, words: str) -> None:
    scaled = dataclasses.replace(PROGRESS, loss_scale=scale, skipped=skipped)
    assert words in progress_line(scaled)
    assert words in view(scaled, 110)
    assert "loss scale" not in progress_line(PROGRESS) + view(PROGRESS, 110)


def test_figures_of_a_run_that_has_all_of_them() -> None:
    full = dataclasses.replace(
        PROGRESS, ema_loss=1.8899, set_losses={"law": 2.1}, loss_scale=1024.0, noise_scale=37.24, epochs=(2.374,),
        epoch_updates=519.8, padding=0.0312, stages=(), channels=(),
    )  # fmt: skip
    assert [line.rstrip() for line in view(full).splitlines()] == [
        "run  " + "━" * 47 + "  1,234/2,000  62%  ETA 0:42",
        "loss 1.8921 (last 1.9043)   val loss 1.9012   average 1.8899   law 2.1000",
        "grad norm 0.412   lr 8.21e-04   28,120 tokens/s   loss scale 1,024",
        "noise scale 37.2   epoch 2.37 (of 520 updates)   padding 3.1%",
    ]
    line = progress_line(full)
    assert "val loss 1.9012, average 1.8899, law 2.1000, lr" in line
    assert "loss scale 1,024, noise scale 37.2, epoch 2.37 (of 520 updates), padding 3.1%" in line
    mixed = dataclasses.replace(PROGRESS, epochs=(2.374, 0.1, 15.0), padding=0.5)
    assert "epochs 2.37, 0.10, 15.00   padding 50.0%" in view(mixed)
    many = dataclasses.replace(PROGRESS, epochs=tuple(map(float, range(9))))
    assert "epochs 0.00, 1.00, 2.00, 3.00, 4.00, 5.00, ..." in view(many)
    assert all(cell_len(line) <= 40 for line in view(many, 40).splitlines())
    for word in ("average", "noise scale", "epoch", "padding"):
        assert word not in progress_line(PROGRESS) + view(PROGRESS)


def test_the_bottleneck_is_the_busiest_stage_if_busy_for_half_of_its_time() -> None:
    assert bottleneck(PROGRESS.stages) == "backward"
    assert bottleneck(PROGRESS.stages[:1]) is None
    assert bottleneck(()) is None


def test_smoothing_starts_at_the_first_value_and_follows() -> None:
    smoothing = Smoothing(window=10)
    assert smoothing.add(4.0) == pytest.approx(4.0)
    assert math.isnan(smoothing.add(math.nan))
    assert smoothing.add(4.0) == pytest.approx(4.0)
    for _ in range(100):
        last = smoothing.add(2.0)
    assert 2.0 < last < 2.0 + 2.0 * 0.9**100, "the first value has the weight of 100 decays by 1 - 1 / 10"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_there_is_a_line_every_few_seconds_and_the_last_one() -> None:
    clock, lines = Clock(), list[str]()
    with Display("run", Console(file=io.StringIO()), clock, lines.append) as display:
        for step in range(1, 24):
            clock.now += LINE_INTERVAL / 10
            display.update(dataclasses.replace(PROGRESS, step=step))
    assert [line.split(",")[0] for line in lines] == ["step 1/2", "step 11/2", "step 21/2", "step 23/2"]


def test_an_update_that_was_shown_is_not_repeated_at_the_end() -> None:
    lines = list[str]()
    with Display("run", Console(file=io.StringIO()), Clock(), lines.append) as display:
        display.update(PROGRESS)
    assert len(lines) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_draws_at_most_four_times_per_second_without_a_thread() -> None:
    clock, threads = Clock(), threading.active_count()
    out = Terminal()
    console = Console(file=out, width=80, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    with Display("run", console, clock) as display:
        assert display.is_live
        assert threading.active_count() == threads
        for step in range(1, 101):
            display.update(dataclasses.replace(PROGRESS, step=step))
            clock.now += LIVE_INTERVAL / 10
        drawn = out.getvalue().count("run  ━")
        assert 9 <= drawn <= 12
    assert "100/2,000" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h")  # the cursor is visible again


def test_control_characters_of_a_name_are_escaped() -> None:
    out = Terminal()
    with Display("a\x1b]0;b\x07\n", Console(file=out, width=80, force_terminal=True, color_system=None)) as display:
        display.update(PROGRESS)
    assert r"a\x1b]0;b\x07\n" in out.getvalue()


def test_an_error_passes_through_and_the_terminal_is_restored() -> None:
    out = Terminal()
    console = Console(file=out, width=80, force_terminal=True, _environ={"TERM": "xterm"})

    def interrupted() -> None:
        with Display("run", console) as display:
            display.update(PROGRESS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "\x1b[?25h" in out.getvalue()


def test_a_refresh_is_cheap() -> None:
    console = Console(file=Terminal(), width=100, force_terminal=True, color_system="truecolor")
    clock, times = Clock(), list[float]()
    with Display("run", console, clock) as display:
        for step in range(30):
            clock.now += 1
            begin = time.thread_time()  # CPU time of this thread, independent of other load
            display.update(dataclasses.replace(PROGRESS, step=step, stages=(*PROGRESS.stages, *PROGRESS.stages)))
            times.append(time.thread_time() - begin)
    assert sorted(times)[len(times) // 2] < 0.005


def test_a_file_gets_lines_even_if_colour_is_forced() -> None:
    out, lines = io.StringIO(), list[str]()
    console = Console(file=out, _environ={"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm"})
    assert console.is_terminal
    with Display("run", console, Clock(), lines.append) as display:
        display.update(PROGRESS)
    assert len(lines) == 1
    assert out.getvalue() == ""


def test_a_training_outlives_its_terminal() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError("the terminal is gone")

    clock = Clock()
    with Display("run", Console(file=Gone(), force_terminal=True, _environ={"TERM": "xterm"}), clock) as display:
        assert display.is_live
        display.update(PROGRESS)
        clock.now += 1e6
        assert not display.due(), "no statistics are collected for a display that nobody sees"
        display.update(dataclasses.replace(PROGRESS, step=1235))
