"""A start that hangs ends the process, whatever hangs: systemd starts it again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.start_limit import start_limit
from protos.errors import StartTimeoutError

ROOT = Path(__file__).resolve().parents[2]
_HANG = """
import ctypes, sys, threading
sys.modules["torch"] = None  # its import takes longer than the rest
from edge_agent import assemble, cli, start_limit
start_limit._GRACE_S = 0.5
def load(*_):
    {how}
assemble.load = load
sys.exit(cli.main(["inspect", sys.argv[1], "--start-limit-s", "0.3"]))
"""


def run(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _HANG.format(how=how), str(ROOT / "reference/models/edge-a")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_load_that_hangs_ends_with_a_typed_error() -> None:
    done = run("threading.Event().wait()")
    assert done.returncode == StartTimeoutError.exit_code
    assert done.stderr.startswith("edge-agent: start_timeout: ")
    assert "was not ready after 0.3 s" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_library_that_hangs_without_letting_python_run_is_ended_by_the_kernel() -> None:
    done = run("ctypes.PyDLL(None).pause()")
    assert done.returncode == -signal.SIGALRM


def test_a_start_in_time_leaves_no_timer() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(ValueError, match="its own"), start_limit(60.0, "a model"):
        raise ValueError("its own")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
