"""Makes the frames of one capture: prefill once, encode once per encoder and point, ask the guard.

A capture is seen once, and encoded once per encoder and operating point, however many questions,
sessions and resends there are. No network, no disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from edge_agent.encode import encode_picture, encode_state
from edge_agent.frame import Frame, check_size
from edge_agent.guard import DEGENERATE, AnswerRisk, in_its_place, nothing_to_see, within_limit
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan, choose_point
from edge_agent.sight import EdgeModel, Seen, Sight
from edge_agent.sources import Capture
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.session import Base, Session
from projector.models.blankness import degenerate
from projector.models.pictures import as_rgb
from protos.errors import ContextError, PictureError
from protos.points import OperatingPoint

_MOST_MARKS = 16


class FrameMaker:
    """One capture and everything made from it; safe to use from several threads.

    Args:
        capture: with a picture or a text.
        model: the small model.
        plan: how its frames are made.
        metrics: gets stage times and distortions.
        clock: seconds.
        controller: chooses the operating point if the plan does not name one.

    Attributes:
        prefill_ms: time that the small model took, milliseconds; 0 before it ran.
        confidences: question to the probability that the small model's own answer is right, where
            a cascade asked.
        begun_ns: when the picture was taken, or came here (the machine's monotonic clock).
        marks: names of stages, when they began and ended (nanoseconds of that clock).
        degenerate: why no question can be answered from this picture; empty if it can, and for
            texts.

    Raises:
        BridgeError: the capture has neither picture nor text; the error says why.
    """

    def __init__(
        self,
        capture: Capture,
        model: EdgeModel,
        plan: Plan,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
        controller: PointController | None = None,
    ) -> None:
        seen: Seen
        if capture.text is not None:
            seen = capture.text
        elif capture.picture is not None:
            with capture.work():
                seen = as_rgb(capture.picture)
        else:
            raise capture.error or PictureError(f"{capture.name} has no picture")
        self.capture = capture
        self.plan = plan
        self.prefill_ms = 0.0
        self.confidences: dict[str, float] = {}
        self.begun_ns = time.monotonic_ns()
        if capture.captured_monotonic_s is not None:
            self.begun_ns = min(self.begun_ns, round(capture.captured_monotonic_s * 1e9))
        self.marks: list[tuple[str, int, int]] = []
        self.degenerate = "" if isinstance(seen, str) else degenerate(seen)
        self._seen = seen
        self._model = model
        self._metrics = metrics
        self._clock = clock
        self._controller = controller
        self._lock = threading.Lock()
        self._sight: Sight | None = None
        self._frames: dict[tuple[str, OperatingPoint, bytes, Base | None], Frame] = {}
        self._risks: dict[tuple[str, str], AnswerRisk] = {}

    def see(self) -> Sight:
        """Run the small model over the picture or text; later calls return the first result.

        Raises:
            PictureError: the model's processor refuses the picture.
            ContextError: the model cannot read the text.
        """
        with self.capture.work(), self._lock:
            return self._see()

    @property
    def priority(self) -> int:
        """Priority of this capture's requests, as its number on the wire."""
        own = self.capture.priority
        return self.plan.priority if own is None else own

    @property
    def picture(self) -> Image.Image | None:
        """What the small model sees, masks painted over; None for a text."""
        return None if isinstance(self._seen, str) else self._seen

    @property
    def sight(self) -> Sight | None:
        """What `see` returned; None before it was called."""
        return self._sight

    def edge_answer(self, question: str) -> tuple[str, float]:
        """The small model's own answer, and its time in milliseconds (prefill not counted).

        Raises:
            QuestionError, QuestionTooLongError: the small model cannot take the question.
        """
        sight = self.see()
        start = self._clock()
        with self.capture.work():
            text = sight.answer(question, self.plan.max_new_tokens)
        seconds = self._clock() - start
        self._metrics.stage_seconds.labels("edge_only").observe(seconds)
        return text, seconds * 1000

    def frame(
        self,
        session: Session,
        question: str = "",
        key: bool = False,
        base: Base | None = None,
    ) -> Frame:
        """Encode for a session, at the point that plan, controller or the server's advice names.

        If the guard acts and the risk is over its limit, the frame is made at the next point that
        is faithful enough, or is the picture itself.

        Args:
            session: brings the encoder, the points and the frame that a delta frame changes.
            question: the question that the frame is for; empty if none is known.
            key: send no delta frame, whatever the plan says.
            base: what a delta frame changes; None: the session's.

        Raises:
            ConfigError: the point or the selector is unknown.
            FrameTooLargeError: the payload is over the server's limit.
            NonFiniteError: the model's cache holds NaN or infinity.
        """
        point, guard = choose_point(self.plan, session, self._controller), self.plan.guard

        def at(point: OperatingPoint) -> Frame:
            return self._at(session, point, key, base)

        with self.capture.work(), self._lock:
            frame = at(point)
            lost = frame.distortion
            if lost is not None and guard.watches(session.encoder):
                risk = self._risk(session, question)
                frame = replace(frame, risk=risk.of(lost))
                self._metrics.risk.observe(risk.of(lost))
                if guard.acts() and not self.degenerate:
                    frame = within_limit(frame, lost, risk, guard, session, at)
            if lost is not None and guard.acts() and self.degenerate:
                error = nothing_to_see(self.degenerate)
                frame = in_its_place(frame, DEGENERATE, error, guard, session, at)
        if frame.refused is None:
            check_size(frame, session.limits)
        return frame

    def count(self, frame: Frame) -> None:
        """Count a frame that is sent; frames that the guard tried and rejected do not count."""
        metrics = self._metrics
        metrics.frames_coded.labels("key" if frame.base is None else "delta").inc()
        metrics.payload_bytes.labels(frame.point.name).observe(len(frame.payload))
        if frame.distortion is not None:
            metrics.observe_state(frame.kept_tokens, frame.distortion)

    def _risk(self, session: Session, question: str) -> AnswerRisk:
        sight = self._see()
        key = (session.encoder_digest, question)
        if key not in self._risks:
            first = sight.first_token(question) if question and sight.first_token else None
            self._risks[key] = AnswerRisk.about(session.encoder, sight.state, question, first)
        return self._risks[key]

    def _at(self, session: Session, point: OperatingPoint, key: bool, base: Base | None) -> Frame:
        encoder = session.encoder
        allowed = self.plan.delta and not key and encoder.has_levels(point) and not encoder.text
        base = (base or session.base) if allowed else None
        made_for = session.encoder_digest, point, session.session_id if base else b"", base
        if made_for not in self._frames:
            self._frames[made_for] = self._encode(session, point, base)
        return self._frames[made_for]

    def _see(self) -> Sight:
        if self._sight is None:
            start = self._clock()
            self._sight = self._model.see(self._seen)
            seconds = self._clock() - start
            self.prefill_ms = seconds * 1000
            self._mark(("prefill", self.prefill_ms))
            self._metrics.stage_seconds.labels("prefill").observe(seconds)
        return self._sight

    def _encode(self, session: Session, point: OperatingPoint, base: Base | None) -> Frame:
        metrics, encoder = self._metrics, session.encoder
        if point.kind == "picture":
            if isinstance(self._seen, str):
                raise ContextError(f"{self.capture.name} is a text: it has no picture to send")
            frame = encode_picture(self._seen, point, self.plan, session.limits, self._clock)
        else:
            sight = self._see()
            if encoder.text:
                session.require_tokenizer(sight.tokenizer)
            frame = encode_state(
                sight.state, encoder, point, self.plan, self._clock, base, sight.fresh
            )
            metrics.stage_seconds.labels("select").observe(frame.select_ms / 1000)
        self._mark(("select", frame.select_ms), ("encode", frame.encode_ms))
        metrics.stage_seconds.labels("encode").observe(frame.encode_ms / 1000)
        return frame

    def _mark(self, *stages: tuple[str, float]) -> None:
        """Note stages that followed each other and end now, with their milliseconds."""
        end_ns = time.monotonic_ns()
        for name, milliseconds in reversed(stages):
            begin_ns = end_ns - round(milliseconds * 1e6)
            if milliseconds and len(self.marks) < _MOST_MARKS:
                self.marks.append((name, begin_ns, end_ns))
            end_ns = begin_ns
