"""A time limit on the end of a run: whatever hangs, the process is gone soon after SIGTERM.

A driver can hang in C, a disk in the kernel. Frames on the disk survive that as they survive a
power cut.
"""

from __future__ import annotations

import os
import threading

from protos.process import console

LIMIT_S = 30.0


def end_soon(asked: str, limit_s: float = LIMIT_S) -> None:
    """End this process after some time, if it has not ended by itself.

    Args:
        asked: the signal's name, for the message.
        limit_s: the time, seconds.
    """

    def end() -> None:
        console.say(
            f"edge-agent: still running {limit_s:g} s after {asked}, because a model, a camera, a "
            "driver or a disk hangs: it ends now. Frames on the disk stay there"
        )
        os._exit(console.TERMINATED)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
