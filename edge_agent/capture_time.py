"""When a capture was made, if this device's clock was not set then (no battery: it starts in 1970).

Its age is known from a clock that nobody sets: the machine's monotonic one, and for frames that
waited on the disk the spool's own. Once the time is known, from this device's clock or the
service's, the capture was made that long ago; if the device was off meanwhile, even earlier.
"""

from __future__ import annotations

SET_SINCE_S = 1_700_000_000.0
"""A clock before this (2023) was never set."""


def corrected(captured_at: float, age_s: float | None, now_s: float) -> float:
    """The time of a capture.

    Args:
        captured_at: by this device's clock then, seconds since 1970.
        age_s: how long ago that was; None if unknown.
        now_s: the time now, seconds since 1970.

    Returns:
        The same if the clock was set then, is not set now, or the age is unknown.
    """
    if captured_at >= SET_SINCE_S or now_s < SET_SINCE_S or age_s is None:
        return captured_at
    return now_s - max(0.0, age_s)
