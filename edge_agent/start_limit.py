"""A time limit on loading the model and its first run: a start that hangs ends the process.

A library can hang in C, where no exception reaches it, so the process ends at once; what started
the agent (systemd) starts it again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from protos.errors import StartTimeoutError
from protos.process import console

_GRACE_S = 5.0
"""Where the hanging call also keeps Python from running, the kernel ends the process this late."""


@contextmanager
def start_limit(seconds: float, what: str) -> Iterator[None]:
    """End the process with `StartTimeoutError`'s exit code if the block takes longer.

    Args:
        seconds: the limit; 0 for none.
        what: what is loaded, for the message.
    """
    if not seconds:
        yield
        return

    def end() -> None:
        error = StartTimeoutError(
            f"{what} was not ready after {seconds:g} s: a driver or a disk hangs; if it is only "
            "slow, raise --start-limit-s"
        )
        os._exit(console.complain("edge-agent", error))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL) if main else None
    if main:
        signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_S)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
