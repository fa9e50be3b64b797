"""Reads what devices say of themselves; everything is bounded before it is kept."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from google.protobuf.message import DecodeError

from protos.errors import FrameCorruptError, FrameMalformedError, FrameTooLargeError
from protos.neuralbridge.v1 import bridge_pb2 as pb

MOST_ATTEND_BYTES = 64 << 10
MOST_REPORT_BYTES = 128 << 10
ORDER_ID_BYTES = 16
_MOST_RUNNING, _MOST_CARRIED_OUT, _MOST_REFUSED = 32, 64, 64
_LONGEST_VERSION, _LONGEST_NAME, _LONGEST_TEXT = 64, 128, 512
_MOST_REVISION = 1 << 53
_VITALS = [field.name for field in pb.Vitals.DESCRIPTOR.fields]
_MOST_VITAL = 1 << 53


def attend_request(raw: bytes) -> pb.AttendRequest:
    """Parse an `AttendRequest`.

    Raises:
        FrameMalformedError, FrameTooLargeError: it is none, or out of bounds.
    """
    request: pb.AttendRequest = _read(pb.AttendRequest, raw, MOST_ATTEND_BYTES)
    _bound("agent_version", request.agent_version, _LONGEST_VERSION)
    _few("running", len(request.running), _MOST_RUNNING)
    for one in request.running:
        for field in ("kind", "name", "version", "sha256", "slot"):
            _bound(f"running.{field}", getattr(one, field), _LONGEST_NAME)
    _few("carried_out", len(request.carried_out), _MOST_CARRIED_OUT)
    for id in request.carried_out:
        _order_id(id)
    _settings(request.settings)
    return request


def report(raw: bytes) -> tuple[str, bytes, pb.ReportBody]:
    """Parse a `ReportRequest`: its digest in hexadecimal digits, the body's bytes, the body.

    Raises:
        FrameCorruptError: the digest is not the body's.
        FrameMalformedError, FrameTooLargeError: it is none, or out of bounds.
    """
    request: pb.ReportRequest = _read(pb.ReportRequest, raw, MOST_REPORT_BYTES + 64)
    if len(request.body) > MOST_REPORT_BYTES:
        raise _too_large(len(request.body), MOST_REPORT_BYTES)
    digest = hashlib.sha256(request.body)
    if not hmac.compare_digest(digest.digest(), request.id):
        raise FrameCorruptError("the report's id is not the SHA-256 of its body: send it again")
    body: pb.ReportBody = _read(pb.ReportBody, request.body, MOST_REPORT_BYTES)
    kind = body.WhichOneof("report")
    if kind is None:
        raise FrameMalformedError("the report holds no crash, piece of a log, outcome or vitals")
    if kind == "crash":
        _bound("crash.kind", body.crash.kind, 16)
    elif kind == "vitals":
        _vitals(body.vitals)
    else:
        _order_id(getattr(body, kind).order_id)
    if kind == "outcome":
        outcome = body.outcome
        _bound("outcome.done", outcome.done, _LONGEST_TEXT)
        _bound("outcome.refused.message", outcome.refused.message, _LONGEST_TEXT)
        if outcome.HasField("done") == outcome.HasField("refused"):
            raise FrameMalformedError("an outcome is either done or refused")
        _settings(outcome.settings)
    return digest.hexdigest(), request.body, body


def _vitals(vitals: pb.Vitals) -> None:
    for field in _VITALS:
        value = getattr(vitals, field)
        if not -_MOST_VITAL <= value <= _MOST_VITAL:  # NaN too
            raise FrameMalformedError(f"vitals.{field}: {value!r} is no plausible value")


def _settings(settings: pb.Settings) -> None:
    if max(settings.revision, settings.tried) > _MOST_REVISION:
        raise FrameMalformedError(f"settings: a revision is at most {_MOST_REVISION}")
    _few("settings.refused", len(settings.refused), _MOST_REFUSED)
    for one in settings.refused:
        _bound("settings.refused.name", one.name, 64)
        _bound("settings.refused.message", one.message, _LONGEST_TEXT)


def _read(kind: Any, raw: bytes, most: int) -> Any:
    if len(raw) > most:
        raise _too_large(len(raw), most)
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise FrameMalformedError(f"not a {kind.DESCRIPTOR.name}: {error}") from error


def _order_id(id: bytes) -> None:
    if len(id) != ORDER_ID_BYTES:
        raise FrameMalformedError(f"an order's id has {ORDER_ID_BYTES} bytes, not {len(id)}")


def _few(field: str, count: int, most: int) -> None:
    if count > most:
        raise FrameMalformedError(f"{field}: {count} entries, at most {most}")


def _bound(field: str, text: str, most: int) -> None:
    if len(text.encode()) > most or "\0" in text:
        raise FrameMalformedError(f"{field}: at most {most} bytes, and no zero byte")


def _too_large(size: int, most: int) -> FrameTooLargeError:
    return FrameTooLargeError(f"the message has {size} bytes, at most {most} are taken")
