"""Places that cannot be written, memory and limits."""

from tests.field.case import GROUP_2, NO_ROOM, READ_ONLY_HOME, READ_ONLY_PACKAGE, Case

NOBODY = 54321
"""A user id without an entry in the password database."""
ALONE = NOBODY + 1
"""Another one, whose threads are counted apart from those of the cases that run at the same time."""
GIGABYTE = 1 << 20  # KiB, the unit of ulimit -v

PLACES = (
    Case("help without a home", "$T --help", 2, user=NOBODY, environment={"HOME": "/"}),
    Case(
        "training without a home, with 40 threads and processes", "ulimit -u 40; $TRAIN --out $W/run", 2, user=ALONE,
        environment={"HOME": "/"}, limit=300, says=(f"NUMBA_CACHE_DIR|threadloom-{ALONE}|temporary",),
        leaves=("run/checkpoints/step-*",),
    ),
    Case(
        "sample, HOME unset", "$T sample $RUN --tokens 5", 2, user=NOBODY, environment={"HOME": None}, limit=300,
    ),
    Case("doctor, HOME unset", "$T doctor --no-measure", 2, user=NOBODY, environment={"HOME": None}, limit=300),
    Case(
        "nothing can be written", "$T eval $RUN --text $TEXT", 2, user=NOBODY, limit=300,
        setup=f"{READ_ONLY_PACKAGE}; {READ_ONLY_HOME}", environment={"HOME": "$W/ro", "TMPDIR": "$W/ro"},
        says=("NUMBA_CACHE_DIR", "THREADLOOM_CACHE"),
    ),
    Case(
        "training with all caches on a disk of 1 MB, in an address space of 1 GB", "ulimit -v 1000000; $TRAIN --out $W/run", 2,
        setup=NO_ROOM, limit=300,
        environment={"NUMBA_CACHE_DIR": "$W/small/kernels", "THREADLOOM_CACHE": "$W/small"},
        leaves=("run/checkpoints/step-000040", "run/loss.png"),
    ),
    Case("a run in a read-only mount", "$T sample $W/bound --tokens 5; $T eval $W/bound; $T eval $W/bound --text $TEXT; "
         "$T train --resume --out $W/bound --steps 45", 2, status=(1,), says=("bits per character", "[Rr]ead-only.*bound"),
         setup="mkdir -p $W/bound && mount --bind $RUN $W/bound && mount -o remount,bind,ro $W/bound"),
    Case("a text in a read-only mount", "$T train --config $CONFIG --text $W/bound --no-tuned --sample 0 --out $W/run", 2,
         setup="mkdir -p $W/texts $W/bound && cp $TEXT $W/texts && mount --bind $W/texts $W/bound && "
               "mount -o remount,bind,ro $W/bound", leaves=("run/checkpoints/step-000040",)),
    Case("root of a user namespace", "unshare --user --map-root-user $TRAIN --out $W/run", 2,
         leaves=("run/checkpoints/step-000040",)),
    Case("an unknown user of a user namespace", "unshare --user $TRAIN --out $W/run", 2,
         leaves=("run/checkpoints/step-000040",)),
    Case(
        "tune says first that nothing can be kept", "$T tune --config $CONFIG --budget 1", 2, setup=READ_ONLY_HOME,
        environment={"XDG_CACHE_HOME": "$W/ro/cache"}, status=(0, 1), says=("kept|written|write",),
    ),
    Case("run directory on a disk of 1 MB", "$TRAIN --set model.channels=256 --out $W/small/run", 2, setup=NO_ROOM,
         status=(1,), says=("space|disk",)),
    Case("run directory read-only", "$TRAIN --out $W/ro/run", 2, setup=READ_ONLY_HOME, status=(1,), says=("ro/run|ro:",)),
    Case("working directory removed", "mkdir $W/gone; cd $W/gone; rmdir $W/gone; $TRAIN --out $W/run", 2),
    Case("temporary folder missing", "$TRAIN --out $W/run", 2, environment={"TMPDIR": "$W/missing"}),
)  # fmt: skip

LIMITS = (
    Case(
        "model of 50 GB",
        "$T train --config gpt2 --text $TEXT --out $W/run --set model.layers=96 --set model.channels=3072 --steps 1", 3,
        status=(1,), says=("memory|GiB",),
    ),
    Case("estimate of a model of 50 GB",
         "$T train --config gpt2 --text $TEXT --estimate --set model.layers=96 --set model.channels=3072", 3,
         says=(r"\d[\d,.]* [MG]i?B", "fit")),
    Case("address space of 1 GB",
         f"ulimit -v {GIGABYTE}; $T train --config nanogpt-cpu --text $TEXT --steps 3 --out $W/run", 3),
    Case("address space of 300 MB", f"ulimit -v {3 * GIGABYTE // 10}; $TRAIN --out $W/run", 3, status=(1,),
         says=("memory|thread|address",)),
    Case("no new threads", "ulimit -u 1; $T train --config $CONFIG --text $TEXT --no-tuned --out $W/run --sample 0", 3,
         user=NOBODY, status=(1,), says=("thread|process|ulimit",), limit=300),
    Case("32 open files", "ulimit -n 32; $TRAIN --out $W/run", 3, status=(0, 1)),
    Case("files of at most 64 KB", "ulimit -f 64; $TRAIN --set model.channels=128 --out $W/run", 3, status=(1,)),
    Case("cpu quota of one core, version 1",
         "$T doctor --no-measure --json | grep logical_cores", 3, says=(r"logical_cores\W+1\b",),
         setup="mount -t tmpfs none /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/cpu && "
               "echo 100000 > /sys/fs/cgroup/cpu/cpu.cfs_quota_us && echo 100000 > /sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    Case("cpu quota of one core, version 2", "$T doctor --no-measure --json | grep -A 2 '\"threads\": {'; $TRAIN --out $W/run", 3,
         says=(r"count\W+1\b", "1 core"), setup=GROUP_2.format(quota=100000, memory="max")),
    Case("memory of a control group, version 2", "$TRAIN --out $W/run --set model.channels=768", 3, status=(1,),
         says=("fits into the 52 MB of memory that are available", "--force"),
         setup=GROUP_2.format(quota="max", memory=52_000_000)),
    Case("--force in a control group that is too small", "$TRAIN --out $W/run --set model.channels=768 --steps 3 --force", 3,
         setup=GROUP_2.format(quota="max", memory=52_000_000), leaves=("run/checkpoints/step-000003",)),
    *(
        Case(name, f"ulimit {limit}; $TRAIN --out $W/run", 3, status=(0, 1))
        for name, limit in (("20 open files", "-n 20"), ("stacks of 256 KB", "-s 256"), ("stacks without a limit", "-s unlimited"),
                            ("no locked memory", "-l 0"), ("files of at most 100 KB", "-f 100"))
    ),
    Case("affinity of one core", "taskset -c $(taskset -cp $$ | sed 's/.*: //; s/[-,].*//') $TRAIN --out $W/run", 3,
         says=("1 core",)),
    Case("one thread by the environment", "$TRAIN --out $W/run", 3, environment={"OMP_NUM_THREADS": "1"},
         says=("OMP_NUM_THREADS",)),
    Case("one thread by SLURM", "$TRAIN --out $W/run", 3, environment={"SLURM_CPUS_PER_TASK": "1"},
         says=("SLURM_CPUS_PER_TASK",)),
)  # fmt: skip
