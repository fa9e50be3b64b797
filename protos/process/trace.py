"""One request's trace: its ids, its spans, and whether it is worth sending.

Both halves derive a request's ids from the stream's W3C context (`traceparent`, sent once when the
stream opens) and the request id, so a frame carries no byte for them:

    stream's trace id + request id → the request's trace id
    the request's trace id + a span's name → that span's id

Spans are noted as plain tuples. Only a kept trace becomes OpenTelemetry's (`trace_export.py`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

TRACE_BYTES, SPAN_BYTES = 16, 8
TRACEPARENT: Final = "traceparent"
"""Key of the W3C context in gRPC metadata and HTTP headers (Trace Context, level 1)."""
UPLINK: Final = "uplink"
"""Name of the agent's span that the service's spans of a frame lie under."""
MOST_SPANS = 24
"""Spans of one trace; more are left out."""
_PARENT = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
Attributes: TypeAlias = Mapping[str, str | int | float | bool]


class Span(NamedTuple):
    """A piece of a request's time.

    Attributes:
        name: unique in its trace.
        begin_ns: of the host's monotonic clock, as `end_ns`.
        parent: the span that it lies in; empty for the trace's first one here.
        by: which process did it; empty for the one that notes it.
    """

    name: str
    begin_ns: int
    end_ns: int
    parent: str
    by: str
    attributes: Attributes


class Context(NamedTuple):
    """A W3C trace context.

    Attributes:
        trace: 16 bytes.
        span: 8 bytes.
    """

    trace: bytes
    span: bytes

    @property
    def header(self) -> str:
        """As a `traceparent` header."""
        return f"00-{self.trace.hex()}-{self.span.hex()}-01"


def fresh_context() -> Context:
    """A context of random ids, for one stream."""
    return Context(secrets.token_bytes(TRACE_BYTES), secrets.token_bytes(SPAN_BYTES))


def context_of(header: object) -> Context | None:
    """Read a `traceparent` header; None if it is not one."""
    found = _PARENT.fullmatch(header) if isinstance(header, str) else None
    if found is None or found[1] == _NO_TRACE or found[2] == _NO_SPAN:
        return None
    return Context(bytes.fromhex(found[1]), bytes.fromhex(found[2]))


def trace_id_of(stream: bytes, request_id: bytes) -> bytes:
    """The trace id of a request.

    Args:
        stream: trace id of its stream's context; without one, its session's id. 16 bytes.
        request_id: of the request, derived or not.
    """
    made = hashlib.blake2b(request_id, key=stream, person=b"trace", digest_size=TRACE_BYTES)
    return made.digest()


def span_id_of(key: bytes, name: str) -> bytes:
    """The id of a span of a request; its key is the request's trace id (but see `Trace.joined`)."""
    made = hashlib.blake2b(name.encode(), key=key, person=b"span", digest_size=SPAN_BYTES)
    return made.digest()


def uplink_context(stream: Context, request_id: bytes) -> Context:
    """The context of the agent's `UPLINK` span of a request."""
    found = trace_id_of(stream.trace, request_id)
    return Context(found, span_id_of(found, UPLINK))


class Trace:
    """The spans of one request in one process.

    Args:
        id: its trace id.
        parent: id of the span elsewhere that the first ones lie in; None if there is none.
        key: what span ids are made from; by default the trace id.

    Attributes:
        risk: of the request's answer; None while it is unknown.
        spans: in the order in which they were noted.
    """

    __slots__ = ("id", "key", "parent", "risk", "spans")

    def __init__(self, id: bytes, parent: bytes | None = None, key: bytes = b"") -> None:
        self.id, self.parent, self.key = id, parent, key or id
        self.risk: float | None = None
        self.spans: list[Span] = []

    @classmethod
    def of_stream(cls, stream: bytes, request_id: bytes, parent: str = "") -> Trace:
        """The trace of a request on a stream.

        Args:
            stream: see `trace_id_of`.
            request_id: of the request.
            parent: name of the span that the other half notes around ours; empty if it does not.
        """
        found = trace_id_of(stream, request_id)
        return cls(found, span_id_of(found, parent) if parent else None)

    @classmethod
    def joined(cls, context: Context, request_id: bytes) -> Trace:
        """The spans of a request whose caller sent a context with it alone."""
        key = trace_id_of(context.trace, context.span + request_id)
        return cls(context.trace, context.span, key)

    def note(
        self,
        name: str,
        begin_ns: int,
        end_ns: int,
        parent: str = "",
        by: str = "",
        **attributes: Any,
    ) -> None:
        """Note a span; one of a name that is there already is left out (see `Span`)."""
        if len(self.spans) < MOST_SPANS and all(one.name != name for one in self.spans):
            self.spans.append(Span(name, begin_ns, max(begin_ns, end_ns), parent, by, attributes))

    def context(self, name: str) -> Context:
        """The context of one of its spans, noted or not yet."""
        return Context(self.id, self.span_id(name))

    def span_id(self, name: str) -> bytes:
        """The id of one of its spans."""
        return span_id_of(self.key, name)


@dataclass(frozen=True)
class Rules:
    """Which traces are sent, decided when a request has ended.

    Attributes:
        share: of ordinary requests. The trace id decides, so both halves keep the same ones.
        slow_s: a request that takes longer is kept, seconds.
        risk: an answer of a higher risk is kept.
    """

    share: float
    slow_s: float
    risk: float

    def why(self, trace_id: bytes, took_s: float, refused: bool, risk: float | None) -> str:
        """Why a trace is kept: refused, risky, slow or share; empty if it is not."""
        if refused:
            return "refused"
        if risk is not None and risk > self.risk:
            return "risky"
        if took_s > self.slow_s:
            return "slow"
        # The last 7 bytes are random in any W3C trace id (level 2).
        kept = int.from_bytes(trace_id[-7:], "big") < self.share * (1 << 56)
        return "share" if kept else ""


WHY = ("refused", "risky", "slow", "share")
"""What `Rules.why` can say of a kept trace."""
