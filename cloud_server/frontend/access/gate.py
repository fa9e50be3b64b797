"""Which RPCs a caller may use: a device all, a key only Ask."""

from __future__ import annotations

from typing import Any

from cloud_server.frontend.answers import Owner
from cloud_server.identity.caller import Caller
from cloud_server.identity.identify import Identities, Nobody
from protos.errors import ForbiddenError


class Gate:
    """Checks the callers of RPCs.

    Args:
        identities: identifies callers.
    """

    def __init__(self, identities: Identities | Nobody) -> None:
        self._identities = identities

    def device(self, context: Any) -> Caller:
        """The device that makes a call.

        Raises:
            UnauthenticatedError: the credential is missing or not valid.
            ForbiddenError: the caller is a key.
        """
        caller = self._identities.of_call(context)
        if caller.kind not in ("device", "anyone"):
            raise ForbiddenError(
                "this call is for devices, which show a certificate; a key may only call Ask"
            )
        return caller

    def asker(self, context: Any) -> Caller:
        """The caller that asks about a scene: a device, or a key with the scope `ask`.

        Raises:
            UnauthenticatedError: the credential is missing or not valid.
            ForbiddenError: the key lacks the scope.
        """
        caller = self._identities.of_call(context)
        if caller.kind != "device":
            caller.require("ask")
        return caller


def owner_of(caller: Caller) -> Owner:
    """The owner of a caller's requests and answers."""
    if caller.kind in ("device", "anyone"):
        return caller.tenant, caller.name
    return caller.tenant, f"key:{caller.name}"
