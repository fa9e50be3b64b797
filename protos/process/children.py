"""Child processes that never outlive their parent, however that ends.

`python -m protos.process.children PARENT MODULE …` runs a module as a program that the kernel ends
when the process PARENT, which started it, ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends; a fork has to call this again.

    Args:
        parent: the parent's process id; if another process is the parent by now, end at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def command(module: str, *arguments: str) -> list[str]:
    """The command line of a module as a child that dies with this process."""
    return [sys.executable, "-m", "protos.process.children", str(os.getpid()), module, *arguments]


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP or a debugger has stopped a process; false if that is unknown."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
