"""The control groups of this process, as Linux limits containers and jobs, in versions 1 and 2.

All ancestors of a group limit it too.
"""

from pathlib import Path


def control_groups(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's group of a controller, such as "cpu", and of the group's ancestors.

    The innermost comes first. A folder need not exist: in a container the path of the group may be that of the host,
    and the root of the tree is then the container's group. `root` is the directory that contains proc and sys.
    """
    folders: list[Path] = []
    for line in read_lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: a single hierarchy
            trees = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            trees = [root / "sys/fs/cgroup" / controller, root / "sys/fs/cgroup" / controllers]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]  # never outside the tree
        folders += [tree.joinpath(*parts[:depth]) for tree in trees for depth in range(len(parts), -1, -1)]
    return list(dict.fromkeys(folders))


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file of the system; none if it cannot be read."""
    try:
        return file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
