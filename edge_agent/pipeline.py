"""One capture to the requests that carry it: see, select, encode, seal.

Pure but for the model it is handed: no network, no disk. A capture is seen once and encoded once
per encoder and operating point, however many questions, sessions and resends there are.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np

from edge_agent.encode import PICTURE, Clock, Coded, Plan, choose_point, encode_state
from edge_agent.guard import (
    DEGENERATE,
    DISTORTION,
    Cause,
    Question,
    more_faithful,
    nothing_to_see,
    refusal,
)
from edge_agent.metrics import Metrics
from edge_agent.prefill import EdgeModel, Seen, Sight
from edge_agent.sources import Capture
from edge_agent.uplink.budget import Budget
from edge_agent.uplink.session import Base, Session
from edge_agent.uplink.uplink import Outcome, Packed
from projector.models.pictures import as_rgb, degenerate
from projector.models.tokens import sound
from protos.digest import derived_id
from protos.distortion import Distortion
from protos.errors import (
    BridgeError,
    ContextError,
    FrameTooLargeError,
    PictureError,
    QuestionError,
    QuestionTooLongError,
)
from protos.header import Header, pack_header
from protos.limits import Limits
from protos.points import OperatingPoint
from protos.requests import seal


@dataclass(frozen=True)
class Guarded:
    """A frame that may go, or why it may not.

    Attributes:
        coded: what is sent, or would have been.
        risk: probability of another answer than the picture's, of the frame as it was first made or
            as it is sent; None where the guard did not look.
        fallback: why it is the picture, if the guard put that in the frame's place; else empty.
        refused: why the guard lets neither frame nor picture go; None where one goes.
    """

    coded: Coded
    risk: float | None = None
    fallback: str = ""
    refused: BridgeError | None = None


class View:
    """One capture and everything that has been made of it; safe to use from several threads.

    Args:
        capture: with a picture or a text.
        model: the small model.
        plan: how its frames are made.
        metrics: stage times and distortions go there.
        clock: seconds.
        budget: chooses the operating point where the plan leaves that open.

    Attributes:
        degenerate: why the picture shows nothing that a question could be answered from; empty
            where it may, and for texts.

    Raises:
        BridgeError: the capture has neither: why.
    """

    def __init__(
        self,
        capture: Capture,
        model: EdgeModel,
        plan: Plan,
        metrics: Metrics,
        clock: Clock = time.perf_counter,
        budget: Budget | None = None,
    ) -> None:
        seen: Seen
        if capture.text is not None:
            seen = capture.text
        elif capture.picture is not None:
            seen = as_rgb(capture.picture)
        else:
            raise capture.error or PictureError(f"{capture.name} has no picture")
        self.capture = capture
        self.plan = plan
        self.prefill_ms = 0.0
        self.degenerate = "" if isinstance(seen, str) else degenerate(seen)
        self._seen = seen
        self._model = model
        self._metrics = metrics
        self._clock = clock
        self._budget = budget
        self._lock = threading.Lock()
        self._sight: Sight | None = None
        self._coded: dict[tuple[str, OperatingPoint, bytes, Base | None], Coded] = {}
        self._questions: dict[tuple[str, str], Question] = {}

    def see(self) -> Sight:
        """Run the small model over the picture or text, the first time that it is asked for.

        Raises:
            PictureError: the model's processor refuses the picture.
            ContextError: the model cannot read the text.
        """
        with self._lock:
            return self._see()

    @property
    def seen(self) -> Sight | None:
        """What the small model has made of the picture; None while it was not asked to."""
        return self._sight

    def edge_answer(self, question: str) -> tuple[str, float]:
        """The small model's own answer, and its time in milliseconds (prefill not counted).

        Raises:
            QuestionError, QuestionTooLongError: the small model cannot take the question.
        """
        sight = self.see()
        start = self._clock()
        text = sight.answer(question, self.plan.max_new_tokens)
        seconds = self._clock() - start
        self._metrics.stage_seconds.labels("edge_only").observe(seconds)
        return text, seconds * 1000

    def coded(self, session: Session, question: str = "", key: bool = False) -> Guarded:
        """Encode for a session, at the point that plan, budget or the server's advice names.

        Where the guard acts and the risk of another answer is over its limit, at the next point
        that is faithful enough, or as the picture.

        Args:
            session: brings the encoder, the points and the frame that a delta frame changes.
            question: that the frame is for; empty where none is known.
            key: send no delta frame, whatever the plan says.

        Raises:
            ConfigError: the point or the selector is unknown.
            FrameTooLargeError: the payload is over the server's limit.
            NonFiniteError: the model's cache holds NaN or infinity.
        """
        point = choose_point(self.plan, session, self._budget)
        with self._lock:
            found = Guarded(self._at(session, point, key))
            guard, figures = self.plan.guard, found.coded.distortion
            if figures is not None and guard.watches(session.encoder):
                about = self._about(session, question)
                found = replace(found, risk=about.risk(figures))
                self._metrics.risk.observe(about.risk(figures))
                if guard.acts() and not self.degenerate:
                    found = self._guarded(session, about, found, figures, key)
            if figures is not None and guard.acts() and self.degenerate:
                error = nothing_to_see(self.degenerate)
                found = self._instead(session, found, DEGENERATE, error, key)
        if found.refused is None:
            check_size(found.coded, session.limits)
        return found

    def _guarded(
        self,
        session: Session,
        about: Question,
        found: Guarded,
        figures: Distortion,
        key: bool,
    ) -> Guarded:
        """The frame itself if it is within the limit, or what takes its place."""
        guard, risk_model = self.plan.guard, session.encoder.risk
        limit = guard.limit if guard.limit is not None or risk_model is None else risk_model.limit
        cause = about.cause(figures, limit or 0.0)
        if cause is None:
            return found
        allowed = self._picture_point(session)
        if cause == DISTORTION:
            for point in more_faithful(found.coded.point, session.points, session.ladder):
                coded = self._at(session, point, key)
                if coded.distortion is None or about.risk(coded.distortion) > (limit or 0.0):
                    continue
                if allowed is not None:
                    instead = self._at(session, allowed, key)
                    if len(instead.payload) <= len(coded.payload):
                        break  # the picture costs no more, and says all
                return Guarded(coded, about.risk(coded.distortion))
        return self._instead(
            session, found, cause, refusal(cause, found.risk or 0.0, limit or 0.0), key
        )

    def _instead(
        self, session: Session, found: Guarded, cause: Cause, error: BridgeError, key: bool
    ) -> Guarded:
        """The picture in a frame's place where that may be sent, or neither."""
        allowed = self._picture_point(session)
        if allowed is not None:
            return Guarded(self._at(session, allowed, key), found.risk, cause)
        return replace(found, refused=error)

    def _picture_point(self, session: Session) -> OperatingPoint | None:
        """The point at which the guard may send pictures, if it may."""
        if self.plan.guard.mode != PICTURE:
            return None
        return next((p for p in session.points.values() if p.kind == PICTURE), None)

    def _about(self, session: Session, question: str) -> Question:
        sight = self._see()
        key = (session.encoder_digest, question)
        if key not in self._questions:
            first = sight.first_token(question) if question and sight.first_token else None
            self._questions[key] = Question.about(session.encoder, sight.state, question, first)
        return self._questions[key]

    def _at(self, session: Session, point: OperatingPoint, key: bool) -> Coded:
        encoder = session.encoder
        allowed = self.plan.delta and not key and encoder.has_levels(point) and not encoder.text
        base = session.base if allowed else None
        made_for = session.encoder_digest, point, session.session_id if base else b"", base
        if made_for not in self._coded:
            self._coded[made_for] = self._encode(session, point, base)
        return self._coded[made_for]

    def _see(self) -> Sight:
        if self._sight is None:
            start = self._clock()
            self._sight = self._model.see(self._seen)
            seconds = self._clock() - start
            self.prefill_ms = seconds * 1000
            self._metrics.stage_seconds.labels("prefill").observe(seconds)
        return self._sight

    def _encode(self, session: Session, point: OperatingPoint, base: Base | None) -> Coded:
        metrics = self._metrics
        if point.kind == "picture":
            coded = self._encode_picture(point, session.limits)
        else:
            sight, encoder = self._see(), session.encoder
            if encoder.text:
                session.require_tokenizer(sight.tokenizer)
            fresh = sight.fresh
            coded = encode_state(sight.state, encoder, point, self.plan, self._clock, base, fresh)
            metrics.stage_seconds.labels("select").observe(coded.select_ms / 1000)
        metrics.stage_seconds.labels("encode").observe(coded.encode_ms / 1000)
        return coded

    def sealed(self, coded: Coded) -> None:
        """Count a frame that goes; what the guard tried in its place is not counted."""
        metrics = self._metrics
        metrics.frames_coded.labels("key" if coded.base is None else "delta").inc()
        metrics.payload_bytes.labels(coded.point.name).observe(len(coded.payload))
        if coded.distortion is not None:
            metrics.kept_tokens.observe(int(coded.kept.sum()))
            metrics.quantization_error.observe(coded.distortion.quantize)
            metrics.dropped_attention.observe(coded.distortion.dropped_attention)
            metrics.latent_residual.observe(coded.distortion.latent_residual)
            metrics.unfamiliarity.observe(coded.distortion.unfamiliarity)

    def _encode_picture(self, point: OperatingPoint, limits: Limits) -> Coded:
        start = self._clock()
        wanted = self.plan.picture.longest_px or limits.max_picture_px
        codec = replace(self.plan.picture, longest_px=min(wanted, limits.max_picture_px))
        if isinstance(self._seen, str):
            raise ContextError(f"{self.capture.name} is a text: no picture could be sent of it")
        payload = codec.encode(self._seen)
        return Coded(
            point=point,
            tokens=0,
            kept=np.zeros(0, dtype=np.bool_),
            payload=payload,
            distortion=None,
            select_ms=0.0,
            encode_ms=(self._clock() - start) * 1000,
        )


@dataclass
class Outgoing:
    """One request on its way: a view, with one question or none; an `uplink.Parcel`.

    What the guard does not let go is in `kept_back`. Its id is the one that its first session and
    frame number derive, so it travels only when it is sealed again in another session.
    """

    question: str
    view: View
    request_id: bytes = field(default=b"", init=False)
    kept_back: Guarded | None = field(default=None, init=False)
    _sealed: dict[bytes, Packed] = field(default_factory=dict, init=False, repr=False)
    _made: Coded | None = field(default=None, init=False, repr=False)
    _key: bool = field(default=False, init=False, repr=False)

    def pack(self, session: Session) -> Packed:
        """Seal for a session; for the same session always the same bytes.

        Raises:
            BridgeError: the question or the frame cannot be sent, typed.
        """
        packed = self._sealed.get(session.session_id)
        if packed is None:
            packed = self._seal(session)
            self._sealed.clear()
            self._sealed[session.session_id] = packed
        return packed

    def accepted(self, session: Session) -> None:
        """The service holds the frame: later ones may be delta frames to it."""
        packed = self._sealed.get(session.session_id)
        if packed is not None and self._made is not None and self._made.held is not None:
            session.accepted(Base(packed.frame_number, self._made.held))

    def base_lost(self, session: Session) -> None:
        """The service does not hold the frame that this one changes: be a key frame next."""
        if self._made is not None and self._made.base is not None:
            session.lost(self._made.base)
        self._sealed.clear()
        self._key = True

    @property
    def unanswered(self) -> Outcome:
        """How it stands with it as long as there is no answer."""
        return Outcome(self.request_id, packed=next(iter(self._sealed.values()), None))

    def renew(self) -> Outgoing:
        """The same frame under a fresh frame number and request id."""
        return Outgoing(self.question, self.view)

    def _seal(self, session: Session) -> Packed:
        check_question(self.question, session.limits)
        guarded = self.view.coded(session, self.question, self._key)
        if guarded.refused is not None:
            self.kept_back = guarded
            raise guarded.refused
        self._made = coded = guarded.coded
        number, delta_ms = session.next_frame(self.view.capture.captured_at)
        header, payload = pack_header(
            Header(
                operating_point=coded.point.index,
                frame_number=number,
                kept=coded.kept,
                capture_delta_ms=delta_ms,
                distortion=coded.distortion or Distortion(),
                base=coded.base,
                differences=coded.differences,
                cause=guarded.fallback,
            ),
            coded.payload,
        )
        request = seal(
            session.constants,
            self.request_id,  # empty the first time
            header,
            payload,
            self.question,
            min(self.view.plan.max_new_tokens, session.limits.max_new_tokens)
            if self.question
            else 0,
        )
        self.request_id = self.request_id or derived_id(session.constants, number)
        self.view.sealed(coded)
        return Packed(
            request=request,
            request_id=self.request_id,
            frame_number=number,
            point=coded.point.name,
            tokens=coded.tokens,
            kept_tokens=int(coded.kept.sum()),
            distortion=coded.distortion,
            select_ms=coded.select_ms,
            encode_ms=coded.encode_ms,
            risk=guarded.risk,
            fallback=guarded.fallback,
        )


def check_question(question: str, limits: Limits) -> None:
    """Refuse here what the server would refuse; an empty question (just hold) passes.

    Raises:
        QuestionError: blank but not empty, or no valid Unicode.
        QuestionTooLongError: longer than the server takes.
    """
    if not sound(question):
        raise QuestionError("the question is not valid Unicode: it holds half of a surrogate pair")
    if question and not question.strip():
        raise QuestionError("the question is blank: ask something")
    length_bytes = len(question.encode())
    if length_bytes > limits.max_question_bytes:
        raise QuestionTooLongError(
            f"the question has {length_bytes} bytes, the server takes {limits.max_question_bytes}"
        )


def check_size(coded: Coded, limits: Limits) -> None:
    """Refuse here what the server would refuse.

    Raises:
        FrameTooLargeError: the payload or the grid is over the server's limit.
    """
    picture = coded.point.kind == "picture"
    limit = limits.max_picture_bytes if picture else limits.max_payload_bytes
    advice = "lower picture_quality or picture_px" if picture else "choose a point of fewer bytes"
    if len(coded.payload) > limit:
        raise FrameTooLargeError(
            f"the payload has {len(coded.payload)} bytes at point {coded.point.name!r}, the server "
            f"takes {limit}: {advice}"
        )
    if coded.tokens > limits.max_tokens:
        raise FrameTooLargeError(
            f"the model's picture takes {coded.tokens} tokens, the server takes {limits.max_tokens}"
        )
