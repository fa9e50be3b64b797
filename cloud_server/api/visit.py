"""One HTTP request at the door: who makes it, and under which id."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from cloud_server.identity.caller import Caller

KEY = "neural_bridge.visit"


@dataclass
class Visit:
    """What the door knows of a request.

    Attributes:
        request_id: 16 bytes; logs, the engine and the answer's `x-request-id` have it in hex.
        headers: that every answer to it carries.
    """

    request_id: bytes
    caller: Caller
    headers: dict[str, str] = field(default_factory=dict)


def visit_of(request: Request) -> Visit:
    """The visit that a request belongs to."""
    found: Visit = request.scope[KEY]
    return found


def caller_of(request: Request) -> Caller:
    """Who makes a request."""
    return visit_of(request).caller
