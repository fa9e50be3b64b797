"""How often a caller may open sessions, and make the calls that belong to one.

They do not count against the quota of requests: a device with a small quota could never use it.
"""

from __future__ import annotations

from typing import Any

from cloud_server.frontend.peers import address_of
from cloud_server.identity.caller import Caller
from cloud_server.throttle import Buckets
from protos.errors import OverloadedError

_CALLS = 4
"""Calls for each session: FetchEncoder, Events and Infer, and one of them again."""


class Openings:
    """Counts them by device or key; where callers are not known, by their address.

    Args:
        per_s: sessions that a caller may open a second; 0 for no bound.
        burst: sessions that a caller may open at once.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._sessions = Buckets(per_s, burst)
        self._calls = Buckets(_CALLS * per_s, _CALLS * burst)

    def session(self, caller: Caller, context: Any) -> None:
        """Count a session that is to be opened.

        Raises:
            OverloadedError: it is one too many.
        """
        whose = _whose(caller, context)
        if wait_s := self._sessions.take(whose):
            raise OverloadedError(
                f"too many sessions are being opened by {whose} (more than "
                f"{self._per_s:g} a second): try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
                cause="negotiations",
            )

    def call(self, caller: Caller, context: Any) -> None:
        """Count a call of a session, whether there is such a session or not.

        Raises:
            OverloadedError: it is one too many.
        """
        whose = _whose(caller, context)
        if wait_s := self._calls.take(whose):
            raise OverloadedError(
                f"too many calls are being opened by {whose} (more than "
                f"{_CALLS * self._per_s:g} a second): try again in {wait_s:.1f} s",
                retry_after_s=wait_s,
                cause="openings",
            )


def _whose(caller: Caller, context: Any) -> str:
    if caller.kind == "anyone":
        return address_of(context.peer())
    return f"{caller.tenant}/{caller.name}"
