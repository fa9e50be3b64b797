"""How much memory a process holds, and how its C library's heap gives memory back.

Made for Linux's /proc and glibc; elsewhere it measures less and tunes nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.process.control_groups import groups, lines

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_THRESHOLD_BYTES = 1 << 20
_TRIM_BYTES = 64 << 20
_ARENAS = 2
_NO_LIMIT = 1 << 60
_CONTROLS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""A limit's file, the file of what is used, and the name of what the kernel would free."""


MARGIN = 0.15
"""Share by which a process may exceed its base and its caps before `MemoryWatch` warns."""


class MemoryWatch:
    """Warns when a process holds more than it should, once each time it passes the limit.

    Args:
        process: its name in the log.
        log: a bound logger.
    """

    def __init__(self, process: str, log: Any) -> None:
        self._process, self._log = process, log
        self.restart()

    def restart(self) -> None:
        """Start over with a new process: the next figure is its base."""
        self._base, self._above = 0, False

    def see(self, resident: int, caps: int) -> None:
        """Take a figure; the first is the base: what the process holds before it did any work.

        Args:
            resident: bytes in RAM.
            caps: bytes that its settings allow it beyond the base.
        """
        self._base = self._base or resident
        limit = int((self._base + caps) * (1 + MARGIN))
        if resident > limit and not self._above:
            self._log.warning(
                "memory above its limit",
                process=self._process,
                resident_bytes=resident,
                limit_bytes=limit,
                base_bytes=self._base,
                caps_bytes=caps,
            )
        self._above = resident > limit


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, its own by default; 0 if it cannot be told (or is gone).

    Pages that processes share are counted in each.
    """
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        if pid not in (None, os.getpid()):
            return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_bytes() -> int:
    """The most memory that this process has had in RAM so far; 0 if it cannot be told."""
    for line in lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


@dataclass(frozen=True)
class Available:
    """Memory that this process may still take.

    Attributes:
        bytes: how much.
        because: what sets the bound.
    """

    bytes: int
    because: str


def available(root: Path = Path("/")) -> Available | None:
    """The least of the machine's free memory and the room in every control group above us.

    Memory that the kernel would free for us (the page cache) counts as free.

    Args:
        root: where `proc` and the control groups are looked for.

    Returns:
        None where the system does not say.
    """
    found = []
    for line in lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            found.append(Available(1024 * int(rest.split()[0]), "memory of the machine"))
    for folder in groups(root, frozenset({"memory"})):
        for limit, used, cached in _CONTROLS:
            most, held = _number(folder / limit), _number(folder / used)
            if most is None or held is None or most >= _NO_LIMIT:
                continue
            files = sum(
                int(line.split()[1])
                for line in lines(folder / "memory.stat")
                if line.split()[0] == cached
            )
            free = max(0, most - max(0, held - files))
            found.append(Available(free, f"limit in {folder / limit}"))
    return min(found, key=lambda each: each.bytes, default=None)


def _number(file: Path) -> int | None:
    """A control group's number; None if it sets none."""
    text = "".join(lines(file))
    return int(text) if text.isdecimal() else None


def keep_heap_compact() -> bool:
    """Have big buffers returned to the system once they are freed; returns whether it could be set.

    glibc raises its threshold for such buffers, up to 32 MiB, each time one is freed. From then on
    the tensors of a step come from the heap, and any small allocation between two of them keeps the
    heap from shrinking. A fixed threshold, and few arenas, stop that. Values that the operator has
    set in the environment (MALLOC_…_) stay.
    """
    wanted = {
        "MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, _THRESHOLD_BYTES),
        "MALLOC_TRIM_THRESHOLD_": (_M_TRIM_THRESHOLD, _TRIM_BYTES),
        "MALLOC_ARENA_MAX": (_M_ARENA_MAX, _ARENAS),
    }
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - only glibc has it
    except (OSError, AttributeError, TypeError):
        return False
    return all(
        [libc.mallopt(*pair) == 1 for name, pair in wanted.items() if name not in os.environ]
    )


def oom_kills() -> int:
    """Number of processes that the kernel has killed since boot for lack of memory."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
