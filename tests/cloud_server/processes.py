"""What the system's process table says of a service's spare and engines."""

from __future__ import annotations

from pathlib import Path


def children(parent: int) -> dict[int, str]:
    """Process ids and command lines of a process's children."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except (OSError, ValueError):
                continue  # it has ended
    return found


def spare_of(front_end: int) -> int:
    (spare,) = [pid for pid, command in children(front_end).items() if "--spare" in command]
    return spare


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
