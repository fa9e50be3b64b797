"""Back-off for a device that the service refuses to authenticate."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.uplink.dial import Dial, SecureDial
from protos.errors import BridgeError, CertificateError, UnauthenticatedError

BARRING = (UnauthenticatedError, CertificateError)
"""Errors that only a person can fix: a new certificate is needed, or a change at the service."""
_FIRST_S, _LONGEST_S = 15.0, 300.0
_FRESH_S = 10.0
"""A certificate younger than this may not have reached every front end yet, seconds."""


class CallerBar:
    """A bar: down at first; up after each refusal, for a growing time or until a new certificate.

    Args:
        dial: knows the certificate of the next channel.
        clock: seconds, monotonic.
    """

    def __init__(self, dial: Dial, clock: Callable[[], float]) -> None:
        self._dial, self._clock = dial, clock
        self._error: BridgeError | None = None
        self._until, self._pause_s, self._shown = 0.0, 0.0, ""

    @property
    def up(self) -> bool:
        """Whether dialing would probably be refused again."""
        return (
            self._error is not None
            and self._clock() < self._until
            and self._shown == self.credential
        )

    @property
    def why(self) -> tuple[BridgeError, float]:
        """The last refusal, and the seconds until the next attempt."""
        return self._error or UnauthenticatedError(""), max(0.0, self._until - self._clock())

    @property
    def credential(self) -> str:
        """Serial number of the next channel's certificate; empty without one."""
        try:
            return self._dial.credential if isinstance(self._dial, SecureDial) else ""
        except CertificateError:
            return ""

    def too_early(self, error: BridgeError) -> bool:
        """Whether the refused certificate is so new that the server may accept it soon."""
        dial = self._dial
        enrolled = dial.enrolled if isinstance(dial, SecureDial) else None
        fresh = enrolled is not None and 0 <= enrolled.file.age_s < _FRESH_S
        return fresh and isinstance(error, UnauthenticatedError)

    def raise_for(self, error: BridgeError) -> None:
        """Raise the bar after a refusal."""
        self._pause_s = min(max(_FIRST_S, 2 * self._pause_s), _LONGEST_S)
        self._error, self._shown = error, self.credential
        self._until = self._clock() + self._pause_s

    def lower(self) -> None:
        """Lower the bar after the server accepted this device."""
        self._error, self._pause_s = None, 0.0
