"""Which calls a caller may make: devices all of a device's, keys only Ask."""

from __future__ import annotations

from typing import Any

from cloud_server.frontend.answers import Owner
from cloud_server.identity.caller import Caller
from cloud_server.identity.identify import Identities, Nobody
from protos.errors import ForbiddenError


class Gate:
    """Lets callers in.

    Args:
        identities: who calls.
    """

    def __init__(self, identities: Identities | Nobody) -> None:
        self._identities = identities

    def device(self, context: Any) -> Caller:
        """The device that makes a call.

        Raises:
            UnauthenticatedError: nobody that is known.
            ForbiddenError: a key.
        """
        caller = self._identities.of_call(context)
        if caller.kind not in ("device", "anyone"):
            raise ForbiddenError(
                "this call is for devices, which show a certificate; a key may only call Ask"
            )
        return caller

    def asker(self, context: Any) -> Caller:
        """Who asks about a scene: a device, or a key that may ask.

        Raises:
            UnauthenticatedError: nobody that is known.
            ForbiddenError: a key without the scope.
        """
        caller = self._identities.of_call(context)
        if caller.kind != "device":
            caller.require("ask")
        return caller


def owner_of(caller: Caller) -> Owner:
    """Whose requests and answers a caller's are."""
    if caller.kind in ("device", "anyone"):
        return caller.tenant, caller.name
    return caller.tenant, f"key:{caller.name}"
