"""A process's memory: what it takes, and when that is more than it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protos.process.memory import MARGIN, MemoryWatch, oom_kills, resident_bytes


class Log:
    def __init__(self) -> None:
        self.warnings: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.warnings.append(fields)


def test_memory_above_base_and_caps_is_warned_of_once_each_time() -> None:
    log = Log()
    watch = MemoryWatch("engine", log)
    limit = int((1000 + 500) * (1 + MARGIN))
    for resident in (1000, 1400, limit, limit + 1, limit + 500, limit, limit + 2):
        watch.see(resident, 500)
    assert [w["resident_bytes"] for w in log.warnings] == [limit + 1, limit + 2]
    watch.restart()
    watch.see(9 * limit, 500)
    assert len(log.warnings) == 2, "the first figure of a new process is its base"


def test_resident_memory_is_that_of_the_process_asked_for() -> None:
    import os
    import subprocess
    import sys

    block = np.ones(64 << 20, dtype=np.uint8)
    assert resident_bytes() > block.nbytes
    assert resident_bytes(os.getpid()) == pytest.approx(resident_bytes(), rel=0.1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert 0 < resident_bytes(child.pid) < block.nbytes
    finally:
        child.communicate(b"\n")
    assert resident_bytes(child.pid) == 0, "a process that is gone"


@pytest.mark.slow
def test_freed_buffers_leave_the_process_even_above_a_small_one_that_stays() -> None:
    """In a process of its own: the heap's settings are for life."""
    import subprocess
    import sys

    code = (
        "import sys, numpy as np\n"
        "from protos.process.memory import keep_heap_compact, resident_bytes\n"
        "if not keep_heap_compact(): sys.exit(3)\n"
        "for _ in range(3): np.ones(8 << 20, np.uint8)  # glibc raises its threshold at each free\n"
        "start, small, rng = resident_bytes(), [], np.random.default_rng(0)\n"
        "for _ in range(30):\n"
        "    big = [np.ones(int(rng.integers(1, 4)) << 20, np.uint8) for _ in range(20)]\n"
        "    while len(big) > 2:\n"
        "        big.pop(0); small.append(np.ones(4608, np.uint8))\n"
        "del big\n"
        "print(resident_bytes() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24e6, "2.5 MB of small arrays are left; untuned they hold 56 MB"


def test_the_kernels_count_of_kills_for_want_of_memory_does_not_change_by_itself() -> None:
    assert 0 <= oom_kills() <= oom_kills()
