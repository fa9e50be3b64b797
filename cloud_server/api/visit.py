"""One HTTP request at the door: its caller and its id."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from cloud_server.identity.caller import Caller
from protos.process.trace import Context

KEY = "neural_bridge.visit"


@dataclass
class Visit:
    """What the door knows about a request.

    Attributes:
        request_id: 16 bytes; in hex in logs, in the engine and in the answer's `x-request-id`.
        headers: headers of every answer to it.
        context: the caller's W3C trace context; None without one.
    """

    request_id: bytes
    caller: Caller
    headers: dict[str, str] = field(default_factory=dict)
    context: Context | None = None


def visit_of(request: Request) -> Visit:
    """The visit that a request belongs to."""
    found: Visit = request.scope[KEY]
    return found


def caller_of(request: Request) -> Caller:
    """The caller of a request."""
    return visit_of(request).caller
