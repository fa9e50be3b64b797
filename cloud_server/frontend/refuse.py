"""Refuse: count an error, log the first few of its kind, and tell the client its code."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from cloud_server.metrics import Metrics
from cloud_server.throttle import Throttle
from protos.errors import BridgeError, OverloadedError
from protos.process.logs import Logger
from protos.refusals import trailer_of


class Refusals:
    """Every refusal of the front end goes through here.

    Args:
        metrics: what is counted.
        log: a bound logger.
        few: lets the first log lines of a kind pass.
    """

    def __init__(self, metrics: Metrics, log: Logger, few: Throttle) -> None:
        self._metrics, self._log, self._few = metrics, log, few

    def note(self, error: BridgeError, request_id: bytes, frame_number: int) -> None:
        """Count and log the refusal of one request of a stream."""
        self._count(error)
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
            self._count(error)
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

    def _count(self, error: BridgeError) -> None:
        self._metrics.refusals.labels(error.name).inc()
        if isinstance(error, OverloadedError):
            self._metrics.overloads.labels(error.cause or "engine").inc()
