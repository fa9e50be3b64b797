"""One HTTP request at the door: its caller and its id."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from cloud_server.identity.caller import Caller

KEY = "neural_bridge.visit"


@dataclass
class Visit:
    """What the door knows about a request.

    Attributes:
        request_id: 16 bytes; in hex in logs, in the engine and in the answer's `x-request-id`.
        headers: headers of every answer to it.
    """

    request_id: bytes
    caller: Caller
    headers: dict[str, str] = field(default_factory=dict)


def visit_of(request: Request) -> Visit:
    """The visit that a request belongs to."""
    found: Visit = request.scope[KEY]
    return found


def caller_of(request: Request) -> Caller:
    """The caller of a request."""
    return visit_of(request).caller
