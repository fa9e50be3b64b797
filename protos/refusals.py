"""A typed error on its way to the edge: as a `Refused` event, or in a call's trailing metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from protos.errors import BridgeError, OverloadedError, from_code
from protos.neuralbridge.v1 import bridge_pb2 as pb

ERROR_METADATA_KEY = "nb-error-code"
RETRY_METADATA_KEY = "nb-retry-after-ms"
_NUMBER = re.compile("[0-9]{1,10}")


def refused(error: BridgeError) -> pb.Refused:
    """The event that carries an error to the edge (inverse: `refusal_of`)."""
    return pb.Refused(
        code=error.code,
        name=error.name,
        message=error.message,
        retryable=error.retryable,
        grpc_status=error.grpc_status,
        retry_after_ms=_retry_after_ms(error),
    )


def refusal_of(refused: pb.Refused) -> BridgeError:
    """The error that a `Refused` event carries."""
    return _told(refused.code, refused.message, refused.retry_after_ms)


def trailer_of(error: BridgeError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of a call that ends with an error (inverse: `error_in`)."""
    told = [(ERROR_METADATA_KEY, str(error.code))]
    if retry_after_ms := _retry_after_ms(error):
        told.append((RETRY_METADATA_KEY, str(retry_after_ms)))
    return tuple(told)


def error_in(trailer: Iterable[tuple[str, str | bytes]], message: str) -> BridgeError | None:
    """The error in a call's trailing metadata; None if there is none."""
    told = {
        key: int(value)
        for key, value in trailer
        if key in (ERROR_METADATA_KEY, RETRY_METADATA_KEY) and _NUMBER.fullmatch(str(value))
    }
    if ERROR_METADATA_KEY not in told:
        return None
    return _told(told[ERROR_METADATA_KEY], message, told.get(RETRY_METADATA_KEY, 0))


def _retry_after_ms(error: BridgeError) -> int:
    if not isinstance(error, OverloadedError):
        return 0
    return min(math.ceil(error.retry_after_s * 1000), (1 << 32) - 1)


def _told(code: int, message: str, retry_after_ms: int) -> BridgeError:
    error = from_code(code, message)
    if isinstance(error, OverloadedError):
        error.retry_after_s = retry_after_ms / 1000
    return error
