"""Refuse: count an error, log the first few of its kind, and tell the client its code."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from cloud_server.frontend.answers import Owner
from cloud_server.frontend.telemetry import Telemetry
from cloud_server.throttle import Throttle
from protos.errors import BridgeError
from protos.process.logs import Logger
from protos.refusals import trailer_of


class Refusals:
    """Every refusal of the front end goes through here.

    Args:
        telemetry: counts them.
        log: a bound logger.
        few: lets the first log lines of a kind pass.
    """

    def __init__(self, telemetry: Telemetry, log: Logger, few: Throttle) -> None:
        self._telemetry, self._log, self._few = telemetry, log, few

    def note(
        self, error: BridgeError, request_id: bytes, frame_number: int, owner: Owner | None = None
    ) -> None:
        """Count and log the refusal of one request of a stream."""
        self._telemetry.refused(error, request_id, owner)
        if self._few.passes(error.name):
            self._log.warning(
                "refused",
                request_id=request_id.hex(),
                frame=frame_number,
                code=error.code,
                error=error.name,
                message=error.message,
            )

    async def abort(
        self, context: Any, error: BridgeError, call: str, noted: bool = False
    ) -> NoReturn:
        """End a call with an error.

        Args:
            context: the call's context.
            error: why it ends.
            call: the call's name.
            noted: whether the error was counted and logged already.
        """
        if not noted:
            self._telemetry.refused(error)
            if self._few.passes(error.name):
                self._log.warning(
                    "call refused",
                    call=call,
                    code=error.code,
                    error=error.name,
                    message=error.message,
                )
        await context.abort(
            grpc.StatusCode[error.grpc_status],
            error.message,
            trailer_of(error),
        )
        raise AssertionError("abort returned")
