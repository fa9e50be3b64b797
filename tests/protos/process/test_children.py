"""What can be told of child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from protos.process.children import is_stopped


def test_a_stopped_process_is_told_from_a_running_one_and_from_none() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert is_stopped(child.pid)
        child.send_signal(signal.SIGCONT)
        child.kill()
    assert not is_stopped(child.pid)
