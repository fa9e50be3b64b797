"""Starts the agent again: systemd does, or else the agent itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NoReturn


def supervised(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether systemd starts this process again when it ends."""
    return "NOTIFY_SOCKET" in environ


def exec_again() -> NoReturn:
    """Replace this process by a new one with the same command line."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
