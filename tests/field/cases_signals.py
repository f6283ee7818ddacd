"""Signals at random moments of a training, and at moments of other commands.

A stopped training has the status of the signal, or has finished; resumed, it ends with the weights of the run that was not
stopped. Moments are drawn from a fixed seed, so a failing case can be repeated by its name.
"""

import random

from tests.field.case import Case

STATUS = {"TERM": 143, "HUP": 129, "INT": 130, "USR1": 0}
LONGEST = 5.0
"""Seconds after the start at which the latest signal is sent."""
EACH = 4
"""Random moments of each signal."""
_START = "set -m; $LONG --out $W/run & p=$!; "  # set -m: a background job does not ignore SIGINT
_END = "s=0; wait $p || s=$?; echo status $s; "
_RESUME = (
    "if [ -f $W/run/config.json ]; then $T train --resume --out $W/run --sample 0; else $LONG --out $W/run; fi; "
    "cmp $W/run/checkpoints/step-002000/model.safetensors $WHOLE/checkpoints/step-002000/model.safetensors; "
    "echo same weights"
)


def _random_moments() -> tuple[Case, ...]:
    draw = random.Random(13)
    cases = []
    for name, status in STATUS.items():
        for index in range(EACH):
            seconds = round(draw.uniform(0.4, LONGEST), 2)
            script = f"{_START}sleep {seconds}; kill -{name} $p; {_END}{_RESUME}"
            cases.append(
                Case(
                    f"SIG{name} after {seconds} s ({index + 1})",
                    script,
                    6,
                    says=(f"status ({status}|0)\\b", "same weights"),
                    limit=180,
                )
            )
    return tuple(cases)


_WRITING = "$TRAIN --steps 60 --set checkpoint.interval=1 --set checkpoint.keep=0 --set model.channels=256"
"""A training that writes checkpoints most of the time."""


def _during_checkpoints() -> Case:
    """Return the case of a training that is stopped while it writes a checkpoint, after steps 1, 10 and 50."""

    def stop(name: str, step: str) -> str:
        writing = f"[ -d $W/run/checkpoints/step-0000{step} ] && ls -A $W/run/checkpoints | grep -q partial"
        return f"p=$!; until {writing}; do kill -0 $p || break; done; kill -{name} $p || true; {_END}"

    resume = "$T train --resume --out $W/run --sample 0 & "
    end = "checkpoints/step-000060/model.safetensors"
    return Case(
        "three signals while checkpoints are written",
        f"set -m; {_WRITING} --out $W/run & {stop('TERM', '01')} {resume} {stop('INT', '10')} {resume} {stop('KILL', '50')} "
        f"$T train --resume --out $W/run --sample 0; {_WRITING} --out $W/whole; cmp $W/run/{end} $W/whole/{end}; "
        "echo same weights",
        6,
        says=("status (143|0)", "status (130|0)", "status (137|0)", "same weights"),
        limit=240,
    )


SIGNALS = (
    *_random_moments(),
    _during_checkpoints(),
    *(
        Case(f"SIG{name} while pictures are drawn",
             f"set -m; $TRAIN --out $W/run & p=$!; until [ -s $W/run/trace.json ]; do :; done; sleep {seconds}; "
             f"kill -{name} $p || true; {_END}$T eval $W/run; ls $W/run/checkpoints", 6,
             says=(f"status ({status}|0)\\b", "bits per character", "step-000040"))
        for name, status, seconds in (("TERM", 143, 0.1), ("INT", 130, 0.3), ("HUP", 129, 0.6))
    ),
    Case("a second signal", _START + "sleep 4; kill -TERM $p; sleep 0.4; kill -TERM $p || true; "
         + _END + _RESUME, 6, says=("status (143|0)", "same weights"), limit=180),
    Case("kill -9", _START + "sleep 4; kill -KILL $p; " + _END + _RESUME, 6,
         says=("same weights",), limit=180),
    Case("Ctrl-C of the whole group while kernels are compiled",
         "export NUMBA_CACHE_DIR=$W/cache; " + _START + "sleep 5; kill -INT -- -$p; " + _END, 6,
         says=("status 130", "stopped by Ctrl-C"), limit=60),
    Case("timeout", "s=0; timeout 4 $LONG --steps 10000000 --out $W/run || s=$?; echo status $s", 6,
         says=("status (124|143)", "to continue: threadloom train --resume")),
    Case("nohup", "set -m; nohup $LONG --out $W/run > $W/log 2>&1 & p=$!; sleep 3; kill -HUP $p; wait $p; echo status $?", 6,
         says=("status 0",), leaves=("run/checkpoints/step-002000",)),
    Case("--time-limit", "s=0; $LONG --steps 10000000 --out $W/run --time-limit 4 || s=$?; echo status $s", 6,
         says=("status 143", "time limit")),
    Case("stopped by a full pipe's reader", "$T sample $RUN --tokens 500 | head -c 20", 6),
    *(
        Case(f"SIG{name} of {command}", f"set -m; {line} & p=$!; sleep {seconds}; kill -{name} $p; {_END}", 6,
             says=(f"status ({STATUS[name]})\\b",))
        for command, line, seconds, name in (
            ("tune", "$T tune --config $CONFIG --budget 60", 5, "TERM"),
            ("tune", "$T tune --config $CONFIG --budget 60", 3, "INT"),
            ("bench", "$T bench --config $CONFIG", 4, "TERM"),
            ("sample", "$T sample $RUN --tokens 10000000 > $W/out", 3, "INT"),
            ("sample", "$T sample $RUN --tokens 10000000 > $W/out", 3, "HUP"),
            ("eval", "$T eval $RUN", 1, "HUP"),
            ("doctor", "$T doctor", 1.5, "TERM"),
        )
    ),
)  # fmt: skip
