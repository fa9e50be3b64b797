"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from pydantic import BaseModel, Field
from starlette.responses import Response

from protos.errors import (
    BridgeError,
    ConfigError,
    FrameTooLargeError,
    OverloadedError,
    UnauthenticatedError,
)

JSON = "application/json"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_RETRY_S = 1.0
"""`retry-after` of a temporary error without a better estimate."""


class Failure(BaseModel):
    """Why a request failed."""

    message: str
    type: str = Field(description="the group of errors, by HTTP status")
    param: str | None = Field(None, description="the field of the request that was wrong")
    code: str = Field(description="the error's stable name")
    number: int = Field(description="the error's stable number; 0 for an error of HTTP itself")
    retryable: bool = Field(description="whether the same request may succeed later")


class FailureBody(BaseModel):
    """The body of every failed request."""

    error: Failure


class FieldError(ConfigError):
    """A field of a request is wrong or not supported.

    Args:
        param: the field's path in the request, such as `messages[0].content[1]`.
        message: what was wrong, and what to do.
        reason: `invalid_value`, or `unsupported_value` if another service could support it.
    """

    def __init__(self, param: str, message: str, reason: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.reason = param, reason


def type_of(status: int) -> str:
    """The group of errors that an HTTP status belongs to."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def body_of(error: BridgeError) -> FailureBody:
    """An error as a body."""
    return FailureBody(
        error=Failure(
            message=error.message,
            type=type_of(status_of(error)),
            param=error.param if isinstance(error, FieldError) else None,
            code=error.reason if isinstance(error, FieldError) else error.name,
            number=error.code,
            retryable=error.retryable,
        )
    )


def headers_of(error: BridgeError) -> dict[str, str]:
    """Headers of an error: when to retry, how to authenticate."""
    if isinstance(error, UnauthenticatedError):
        return {"www-authenticate": "Bearer"}
    if not error.retryable:
        return {}
    wait_s = error.retry_after_s if isinstance(error, OverloadedError) else 0.0
    wait_s = wait_s or _RETRY_S
    return {
        "retry-after": str(math.ceil(wait_s)),
        "retry-after-ms": str(math.ceil(wait_s * 1000)),
    }


def status_of(error: BridgeError) -> int:
    """The HTTP status of an error; a body that is too large has its own status in HTTP."""
    return 413 if isinstance(error, FrameTooLargeError) else error.http_status


def failed(error: BridgeError) -> Response:
    """An error as a response."""
    return Response(
        body_of(error).model_dump_json(), status_of(error), headers_of(error), media_type=JSON
    )


def http_failed(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error of HTTP itself, such as an unknown path."""
    names = {404: "unknown_url", 405: "method_not_allowed", 413: "too_large"}
    error = Failure(
        message=message,
        type=type_of(status),
        param=None,
        code=names.get(status, "http_error"),
        number=0,
        retryable=False,
    )
    raw = json.dumps({"error": error.model_dump()})
    return Response(raw, status, headers, media_type=JSON)


def unexpected() -> Response:
    """What a caller is told of an error that nobody foresaw."""
    return http_failed(500, "an error of the service; its log has the request id")
