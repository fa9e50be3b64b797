"""Whether this machine's clock is synchronised, as the kernel knows it."""

from __future__ import annotations

import ctypes

_UNSYNCHRONISED = 0x40  # STA_UNSYNC, <linux/timex.h>
_STATUS_AT = 40 if ctypes.sizeof(ctypes.c_long) == 8 else 20
"""Offset of `status` in struct timex, after modes, offset, freq, maxerror and esterror."""


def synchronised() -> bool | None:
    """Whether the kernel's clock is synchronised (adjtimex); None if the kernel does not say."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(512)  # struct timex, modes = 0: only read
        if libc.adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    status = int.from_bytes(buffer.raw[_STATUS_AT : _STATUS_AT + 4], "little")
    return not status & _UNSYNCHRONISED
