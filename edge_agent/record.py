"""What the consumer gets: one `AnswerRecord` per question, which says how its request ended."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from edge_agent.capture_time import corrected
from edge_agent.frame import Frame
from edge_agent.frame_maker import FrameMaker
from edge_agent.guard import DEGENERATE
from edge_agent.sources import Capture
from edge_agent.uplink.outcome import Outcome, Returned
from protos.errors import (
    BridgeError,
    DegenerateError,
    DistortionError,
    LateError,
    UnfamiliarError,
)

GUARDED = (DistortionError, UnfamiliarError, DegenerateError)
"""Errors of a frame that the guard does not send; the small model then always answers."""


@dataclass(frozen=True)
class AnswerRecord:
    """How one question about one capture ended.

    Attributes:
        request_id: hexadecimal; the same in both sides' logs. Empty if nothing was sent.
        capture: the capture's name in its source.
        captured_at: seconds since the Unix epoch.
        content: digest of the picture's pixels or of the text; empty if the capture failed.
        camera: name of the camera or named source; empty without one.
        camera_frame: number of the picture among the camera's; None for other sources.
        trigger: why a camera's picture was taken: every, motion, max, request, local; empty if
            every picture is.
        question: as asked; empty if the capture itself failed.
        answer: the service's answer, or in feedback mode the small model's from the service's
            state; None without an answer.
        edge_answer: the small model's own answer, if it was asked for.
        frame_number: number of the frame in its session; None if nothing was sent.
        point: operating point that the frame was sent at.
        tokens: image tokens of the whole grid; 0 for a picture.
        kept_tokens: tokens whose latents were sent.
        payload_bytes: the frame's payload.
        message_bytes: size of the request's whole message; in ask mode of the question's message
            only (the frame travelled once, for all questions).
        crop_bytes: of the crop that the service asked for and got; 0 without one.
        attempts: how many times the request was sent.
        edge_ms: prefill, select, encode, uplink (sent until its terminal event), edge_only.
        server_ms: the server's own timings (queue, decode, project, inject, prefill, generate,
            ttft, total).
        distortion: quantize, dropped_attention, latent_residual, unfamiliarity.
        feedback: in feedback mode `point`, `payload_bytes` and distortion figures of the state that
            the service sent back (with `round_trip` if the small model saw the picture too); None
            if it sent none.
        answer_tokens: tokens that the service generated.
        from_memory: the service had answered this request before.
        fallback: empty, or why the answer is not the projected frame's (distortion, unfamiliar,
            degenerate, crop, late, corrupt, incompatible, offline; confident: the small model
            answered, nothing was sent): then it is the service's answer to the picture (crop: to
            frame and crop), or, with an error, the small model's.
        risk: probability that the frame's answer differs from the picture's; None if the guard did
            not measure it.
        confidence: probability that the small model's own answer is right; None without a cascade.
        warnings: reasons not to trust the answer: `degenerate`, the picture shows nothing to answer
            from (one flat colour, or one side over 64 times the other).
        error: None, or `code`, `name` and `message` of what ended the question.
    """

    request_id: str
    capture: str
    captured_at: float
    question: str
    answer: str | None = None
    edge_answer: str | None = None
    frame_number: int | None = None
    point: str = ""
    tokens: int = 0
    kept_tokens: int = 0
    payload_bytes: int = 0
    message_bytes: int = 0
    attempts: int = 0
    edge_ms: dict[str, float] = field(default_factory=dict)
    server_ms: dict[str, float] = field(default_factory=dict)
    distortion: dict[str, float] = field(default_factory=dict)
    feedback: dict[str, Any] | None = None
    answer_tokens: int = 0
    from_memory: bool = False
    fallback: str = ""
    risk: float | None = None
    confidence: float | None = None
    warnings: tuple[str, ...] = ()
    error: dict[str, Any] | None = None
    content: str = ""
    camera: str = ""
    camera_frame: int | None = None
    trigger: str = ""
    crop_bytes: int = 0

    def to_json(self) -> str:
        """One line of strict JSON, keys in the order of the fields."""
        line = json.dumps(self.plain(), ensure_ascii=False, allow_nan=False)
        return line.encode(errors="backslashreplace").decode()  # no UTF-8 for half a surrogate pair

    def plain(self) -> dict[str, Any]:
        """The fields in their order, for JSON: numbers rounded to six places, NaN is None."""
        return {name: _finite(value) for name, value in vars(self).items()}


def record_of(
    maker: FrameMaker,
    question: str,
    outcome: Outcome,
    carried: Outcome,
    edge_answer: str | None,
    edge_only_ms: float,
    fallback: str,
    kept_back: Frame | None = None,
) -> AnswerRecord:
    """Turn what happened to one question into its record.

    Args:
        maker: makes the capture's frames.
        question: the question asked.
        outcome: how it ended.
        carried: the outcome of the request that carried the frame.
        edge_answer: the small model's own answer, if there is one.
        edge_only_ms: its time, milliseconds.
        fallback: why the answer is not the projected frame's; else empty.
        kept_back: the frame that the guard did not send.
    """
    capture, answer, sealed = maker.capture, outcome.answer, carried.sealed
    sent = sealed.frame if sealed else None
    frame = sent or kept_back
    lost = frame.distortion if frame else None
    edge_ms = {
        "prefill": maker.prefill_ms,
        "select": sent.select_ms if sent else 0.0,
        "encode": sent.encode_ms if sent else 0.0,
        "uplink": outcome.uplink_ms,
    }
    if edge_answer is not None:
        edge_ms["edge_only"] = edge_only_ms
    return AnswerRecord(
        request_id=outcome.request_id.hex(),
        **origin(capture),
        question=question,
        answer=answer.text if answer is not None else None,
        edge_answer=edge_answer,
        frame_number=sealed.frame_number if sealed else None,
        point=frame.point.name if frame else "",
        tokens=sent.tokens if sent else 0,
        kept_tokens=sent.kept_tokens if sent else 0,
        payload_bytes=len(sealed.message.frame.payload) if sealed else 0,
        message_bytes=outcome.message_bytes,
        attempts=outcome.attempts,
        edge_ms=edge_ms,
        server_ms=_server_ms(outcome),
        distortion=dataclasses.asdict(lost) if lost is not None else {},
        feedback=_feedback(outcome.returned),
        answer_tokens=answer.tokens if answer is not None else 0,
        from_memory=answer.from_memory if answer is not None else False,
        fallback=fallback,
        risk=frame.risk if frame else None,
        confidence=maker.confidences.get(question),
        warnings=_warnings(maker, outcome),
        crop_bytes=outcome.crop_bytes,
        error=_error(outcome.error),
    )


def finished(draft: AnswerRecord, outcome: Outcome, fallback: str = "") -> AnswerRecord:
    """The record of a frame that waited on the disk.

    Args:
        draft: its record when it was made, by `record_of`.
        outcome: how it ended.
        fallback: why the small model's answer in the draft counts; else empty.
    """
    answer, sealed = outcome.answer, outcome.sealed
    warnings = (*draft.warnings, *(answer.warnings if answer is not None else ()))
    if sealed is not None:
        draft = dataclasses.replace(
            draft,
            frame_number=sealed.frame_number,
            payload_bytes=len(sealed.message.frame.payload),
            kept_tokens=sealed.frame.kept_tokens,
        )
    return dataclasses.replace(
        draft,
        answer=answer.text if answer is not None else None,
        message_bytes=outcome.message_bytes or draft.message_bytes,
        attempts=outcome.attempts,
        edge_ms={**draft.edge_ms, "uplink": outcome.uplink_ms},
        server_ms=_server_ms(outcome),
        answer_tokens=answer.tokens if answer is not None else 0,
        from_memory=answer.from_memory if answer is not None else False,
        fallback=fallback
        or (answer.fallback if answer is not None else "")
        or (sealed.frame.fallback if sealed is not None and outcome.error is None else ""),
        warnings=tuple(dict.fromkeys(warnings)),
        crop_bytes=outcome.crop_bytes,
        error=_error(outcome.error),
    )


def timed(record: AnswerRecord, age_s: float | None, now_s: float) -> AnswerRecord:
    """The record with the right time of its capture, if the clock was not set then.

    Args:
        record: the record.
        age_s: how long ago the capture was made; None if unknown.
        now_s: the time now, seconds since 1970.
    """
    at = corrected(record.captured_at, age_s, now_s)
    return record if at == record.captured_at else dataclasses.replace(record, captured_at=at)


def origin(capture: Capture) -> dict[str, Any]:
    """The fields of a record that say which capture it is about."""
    return {
        "capture": capture.name,
        "captured_at": capture.captured_at,
        "content": capture.content,
        "camera": capture.camera,
        "camera_frame": capture.number,
        "trigger": capture.trigger.kind if capture.trigger is not None else "",
    }


def record_of_failure(capture: Capture, error: BridgeError) -> AnswerRecord:
    """The one record of a capture that no question could be asked about."""
    return AnswerRecord(
        "", capture.name, capture.captured_at, "", error=_error(error), camera=capture.camera
    )


def cause_of(error: BridgeError) -> str:
    """Why the service's answer is missing, as a record's `fallback` names it."""
    if isinstance(error, (*GUARDED, LateError)):
        return error.name
    if 200 <= error.code < 300:
        return "corrupt"
    if 300 <= error.code < 400 or 600 <= error.code < 700:
        return "incompatible"
    return "offline"


def _error(error: BridgeError | None) -> dict[str, object] | None:
    if error is None:
        return None
    return {"code": error.code, "name": error.name, "message": str(error)}


def _server_ms(outcome: Outcome) -> dict[str, float]:
    if outcome.answer is None or not outcome.answer.HasField("timings"):
        return {}
    timings = outcome.answer.timings
    return {
        entry.name.removesuffix("_ms"): getattr(timings, entry.name)
        for entry in timings.DESCRIPTOR.fields
    }


def _warnings(maker: FrameMaker, outcome: Outcome) -> tuple[str, ...]:
    """Warnings of both sides, each once."""
    mine = (DEGENERATE,) if maker.degenerate else ()
    theirs = outcome.answer.warnings if outcome.answer is not None else ()
    return tuple(dict.fromkeys((*mine, *theirs)))


def _feedback(returned: Returned | None) -> dict[str, object] | None:
    if returned is None:
        return None
    return {
        "point": returned.point,
        "payload_bytes": returned.payload_bytes,
        "round_trip": returned.round_trip,
        **dataclasses.asdict(returned.distortion),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
