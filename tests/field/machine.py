"""The installed wheel and the files that all cases share, and the commands that run a case in its surroundings."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from tests.field.case import Case, Outcome

ROOT = Path(__file__).parents[2]
_SOURCES = ("kernels", "pipeline", "stages", "threadloom", "pyproject.toml", "README.md", "LICENSE")
_WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dög", "ran", "to", "漢字", "sea.\n")
_SMALL = "model.context=16,model.layers=1,model.heads=2,model.channels=32,batch_size=4,micro_batch=2,lanes=2,steps=40"
LONG_STEPS = 2000


@dataclass(frozen=True)
class Namespaces:
    """Mount namespaces: of root, or in a user namespace, where any user may mount file systems."""

    rootless: bool

    @property
    def command(self) -> list[str]:
        """The command that runs another as root of a new mount namespace."""
        user = ["--user", "--map-root-user"] if self.rootless else []
        return ["unshare", *user, "--mount", "--propagation", "private"]

    def problem(self) -> str | None:
        """Return why cases cannot run in namespaces; None if they can."""
        try:
            mount = subprocess.run(
                [*self.command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False
            )
        except OSError as error:
            return str(error)
        return mount.stderr.strip() or "mount failed" if mount.returncode else None

    def as_user(self, user: int) -> list[str]:
        """Return the command that runs another as a user, within the namespace."""
        if self.rootless:
            return ["unshare", "--user", f"--map-user={user}", f"--map-group={user}"]
        return ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]

    def give(self, folder: Path, user: int) -> None:
        """Make a user the owner of a folder; in a user namespace the user is its owner already."""
        if not self.rootless:
            os.chown(folder, user, user)


@dataclass(frozen=True)
class Installation:
    """An installed wheel with its shared files, below one folder."""

    folder: Path
    namespaces: Namespaces = Namespaces(rootless=False)

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.folder / "venv/bin/python"

    def variables(self, work: Path) -> dict[str, str]:
        """Return the environment of a case that works in the folder `work`."""
        command, text, config = (
            self.folder / "venv/bin/threadloom",
            self.folder / "text.txt",
            self.folder / "config.json",
        )
        train = f"{command} train --config {config} --text {text} --no-tuned --sample 0"
        sites = sysconfig.get_path("purelib", vars={"base": str(self.folder / "venv"), "platbase": ""})
        return {
            "PATH": f"{self.folder / 'venv/bin'}:{os.environ.get('PATH', os.defpath)}",
            "LANG": "C.UTF-8",
            "HOME": str(work / "home"),
            "TMPDIR": str(work / "tmp"),
            "W": str(work),
            "T": str(command),
            "PY": str(self.python),
            "TEXT": str(text),
            "CONFIG": str(config),
            "TRAIN": train,
            "LONG": f"{train} --steps {LONG_STEPS} --set checkpoint.interval=700 --set checkpoint.keep=1",
            "RUN": str(self.folder / "run"),
            "WHOLE": str(self.folder / "whole"),
            "PACKAGE": f"{sites}/threadloom",
        }

    def run(self, case: Case) -> Outcome:
        """Run a case in a new folder."""
        work = self.folder / "cases" / re.sub(r"\W+", "-", case.name)
        for folder in (work / "home", work / "tmp"):
            folder.mkdir(parents=True)
        variables = self.variables(work)
        for name, value in case.environment.items():
            variables.pop(name, None)
            if value is not None:
                variables[name] = value.replace("$W", str(work))
        if case.user is not None:
            for folder in (work, work / "home", work / "tmp"):
                self.namespaces.give(folder, case.user)
        log = work.with_suffix(".log")
        begin = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(case), env=variables, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=work,
            )  # fmt: skip
            try:
                status: int | None = process.wait(case.limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _kill_session(process.pid)
                process.wait()
        seconds = time.monotonic() - begin
        text = log.read_text(errors="replace")
        outcome = Outcome(case, tuple(problems(case, status, text, work)), status, seconds, text)
        if not outcome.problems:
            shutil.rmtree(work, ignore_errors=True)
        return outcome

    def _command(self, case: Case) -> list[str]:
        script = ["bash", "-ec", case.script]
        if not case.setup and case.user is None:
            return script
        setup = [case.setup] if case.setup else []
        if case.user is not None:
            setup.append(_reachable(Path(sys.base_prefix)))
            script = [*self.namespaces.as_user(case.user), *script]
        return [*self.namespaces.command, "bash", "-ec", "\n".join((*setup, 'exec "$@"')), "case", *script]


def _reachable(path: Path) -> str:
    """Return commands after which every user can reach `path`, in the mount namespace of a case."""
    closed = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001]
    if not closed:
        return "true"
    top = closed[0]
    return (
        f"mkdir -p $W/.python && mount --bind {path} $W/.python && mount -t tmpfs -o mode=755 none {top} && "
        f"mkdir -p {path} && mount --bind $W/.python {path}"
    )


def problems(case: Case, status: int | None, output: str, work: Path) -> list[str]:
    """Return how the end of a case differs from the expected one."""
    found = []
    if status is None:
        found.append(f"not finished after {case.limit:g} s")
    elif status not in case.status:
        found.append(f"status {status}, expected {' or '.join(map(str, case.status))}")
    if "Traceback (most recent call last)" in output:
        found.append("a traceback")
    found += [f"does not say {pattern!r}" for pattern in case.says if not re.search(pattern, output)]
    found += [f"says {pattern!r}" for pattern in case.lacks if re.search(pattern, output)]
    found += [f"no {pattern}" for pattern in case.leaves if not list(work.glob(pattern))]
    return found


def _kill_session(session: int) -> None:
    """Kill the processes of a session that are left, as `set -m` puts them into groups of their own."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


def install(folder: Path, namespaces: Namespaces) -> Installation:
    """Build the wheel of this clone, install it in a new environment, and create the shared files."""
    folder.chmod(0o755)
    source = folder / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in _SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(path, source / name)
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    _call(sys.executable, "-c", build, str(folder), cwd=source)
    _call(sys.executable, "-m", "venv", str(folder / "venv"))
    here = Installation(folder, namespaces)
    wheel = next(folder.glob("*.whl"))
    _call(str(here.python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel))
    package = Path(here.variables(folder)["PACKAGE"])
    (package.parent / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    _write_shared_files(here)
    return here


def _write_shared_files(here: Installation) -> None:
    count = len(_WORDS)
    words = [_WORDS[(7 * place + place * place // 5) % count] for place in range(4000)]
    (here.folder / "text.txt").write_text(" ".join(words))
    settings = [word for pair in _SMALL.split(",") for word in ("--set", pair)]
    write = (
        "import sys; from threadloom.stages.resolve import apply_overrides, load_config; "
        "from threadloom.stages.resolve.loading import to_json; "
        "open(sys.argv[1], 'w').write(to_json(apply_overrides(load_config('nanogpt-cpu'), sys.argv[2:])))"
    )
    _call(str(here.python), "-c", write, str(here.folder / "config.json"), *settings[1::2])
    for name, script in (("run", "$TRAIN --out $RUN"), ("whole", "$LONG --out $WHOLE")):
        work = here.folder / name
        _call("bash", "-ec", script, env=here.variables(work))


def _call(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
