"""The control groups (cgroups, version 1 and 2) that bound this process, on Linux."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def groups(root: Path, controllers: frozenset[str]) -> Iterator[Path]:
    """Every folder of some controllers that bounds this process, the innermost first.

    Args:
        root: where `proc` and the mount points are looked for.
        controllers: such as cpu, memory; in version 2 one folder serves all.
    """
    mounts = _mounts(root, controllers)
    for line in lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        names, _, inside = rest.partition(":")
        kind = "" if number == "0" and not names else names
        for controller in controllers & set(kind.split(",")) if kind else {""}:
            for mounted, at in mounts.get(controller, ()):
                here = PurePosixPath(inside)
                try:
                    below = here.relative_to(mounted)
                except ValueError:  # a container that sees its own group as the top
                    below = PurePosixPath()
                top = root / at.lstrip("/")
                folder = top / below
                while True:
                    yield folder
                    if folder == top:
                        break
                    folder = folder.parent


def _mounts(root: Path, controllers: frozenset[str]) -> dict[str, list[tuple[str, str]]]:
    """By controller (empty for version 2), what is mounted where."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 1:
            continue
        where = _unescaped(fields[3]), _unescaped(fields[4])
        if kinds[0] == "cgroup2":
            found.setdefault("", []).append(where)
        elif kinds[0] == "cgroup" and len(kinds) > 2:
            for controller in controllers & set(kinds[2].split(",")):
                found.setdefault(controller, []).append(where)
    return found


def _unescaped(name: str) -> str:
    r"""A path as the kernel writes it in `mountinfo`, where a blank is `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), name)


def lines(path: Path) -> list[str]:
    """A small file's lines that are not empty; none if it cannot be read."""
    try:
        return [line for line in path.read_text().split("\n") if line]
    except (OSError, UnicodeDecodeError):
        return []
