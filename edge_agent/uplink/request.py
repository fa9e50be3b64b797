"""One request: a frame with one question or none, sealed for whichever session carries it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from edge_agent.frame import Frame
from edge_agent.frame_maker import FrameMaker
from edge_agent.uplink.session import Base, Session
from projector.models.tokens import sound
from protos.digest import derived_id
from protos.distortion import Distortion
from protos.errors import QuestionError, QuestionTooLongError
from protos.header import Header, pack_header
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2
from protos.requests import seal


@dataclass(frozen=True)
class Sealed:
    """A request as it travels in one session.

    Attributes:
        message: its digest is over this session's constants.
        request_id: of the request, whether the message carries it or not.
        frame_number: the frame's number in this session.
        frame: what the message carries.
    """

    message: bridge_pb2.InferRequest
    request_id: bytes
    frame_number: int
    frame: Frame


class Deliverable(Protocol):
    """A request that `Uplink.deliver` sends, and sends again until it ends."""

    question: str

    @property
    def can_wait(self) -> bool:
        """Whether it may wait for others to share its message, unless it is an alarm."""

    @property
    def picture(self) -> Image.Image | None:
        """The picture that its frame was made from, masks painted over; None if it is not here."""

    def follow(self, base: Callable[[int], Base | None]) -> None:
        """Before `seal`: what a delta frame of a priority may change, if not an accepted frame."""

    def ready(self, session: Session) -> bool:
        """Whether `seal` does next to nothing for this session, and may run in the event loop."""

    def seal(self, session: Session) -> Sealed:
        """Seal for a session; for the same session always the same bytes."""

    def accepted(self, session: Session) -> None:
        """The service holds the frame."""

    def base_lost(self, session: Session) -> None:
        """The service does not hold the frame that this one changes."""


@dataclass
class Request:
    """One request on its way.

    The first session and frame number derive its id, so the id travels only when the request is
    sealed again in another session.

    Attributes:
        question: empty if the frame is only to be held.
        maker: makes the frame.
        request_id: empty until it is sealed for the first time.
        base: what a delta frame is to change when it is sealed next; None: the session's frame that
            was accepted last.
        sealed: as it was sealed last; None before, and once its base was lost.
        kept_back: the frame that the guard did not send, if there is one.
    """

    question: str
    maker: FrameMaker
    request_id: bytes = field(default=b"", init=False)
    base: Base | None = field(default=None, init=False)
    sealed: Sealed | None = field(default=None, init=False)
    kept_back: Frame | None = field(default=None, init=False)
    _sealed_for: bytes = field(default=b"", init=False, repr=False)
    _key: bool = field(default=False, init=False, repr=False)

    @property
    def can_wait(self) -> bool:
        """Whether it may wait for others to share its message, unless it is an alarm."""
        return True

    @property
    def picture(self) -> Image.Image | None:
        """See `Deliverable.picture`."""
        return self.maker.picture

    def follow(self, base: Callable[[int], Base | None]) -> None:
        """See `Deliverable.follow`."""
        self.base = base(self.maker.priority)

    def ready(self, session: Session) -> bool:
        """See `Deliverable.ready`."""
        return self._in(session) is not None

    def seal(self, session: Session) -> Sealed:
        """Seal for a session; for the same session always the same bytes.

        Called on a worker thread, unless it is `ready`.

        Raises:
            BridgeError: the question or the frame cannot be sent, typed.
        """
        sealed = self._in(session)
        if sealed is None:
            sealed = self._seal(session)
            self.sealed, self._sealed_for = sealed, session.session_id
        return sealed

    def accepted(self, session: Session) -> None:
        """The service holds the frame as it was sealed: later ones may be delta frames to it."""
        sealed = self._in(session)
        if sealed is not None and sealed.frame.held is not None:
            session.accepted(Base(sealed.frame_number, sealed.frame.held))

    def base_lost(self, session: Session) -> None:
        """The service does not hold the frame that this one changes: send a key frame next."""
        sealed = self._in(session)
        if sealed is not None and sealed.frame.base is not None:
            session.lost(sealed.frame.base)
        self.sealed = None
        self._key = True

    def renew(self) -> Request:
        """The same frame under a fresh frame number and request id."""
        return Request(self.question, self.maker)

    def _in(self, session: Session) -> Sealed | None:
        return self.sealed if self._sealed_for == session.session_id else None

    def _seal(self, session: Session) -> Sealed:
        check_question(self.question, session.limits)
        base, self.base = self.base, None  # it is of this session
        frame = self.maker.frame(session, self.question, self._key, base)
        if frame.refused is not None:
            self.kept_back = frame
            raise frame.refused
        sealed = seal_frame(
            session,
            frame,
            self.request_id,  # empty the first time
            self.question,
            self.maker.capture.captured_at,
            self.maker.plan.max_new_tokens,
            self.maker.priority,
        )
        self.request_id = sealed.request_id
        self.maker.count(frame)
        return sealed


def seal_frame(
    session: Session,
    frame: Frame,
    request_id: bytes,
    question: str,
    captured_at: float,
    max_new_tokens: int,
    priority: int,
    number: int | None = None,
) -> Sealed:
    """Seal a frame for a session.

    Args:
        session: that carries it.
        frame: made with the session's encoder.
        request_id: empty for one that is derived, which does not travel.
        question: empty if the frame is only to be held.
        captured_at: seconds since 1970.
        max_new_tokens: longest answer wanted.
        priority: one of `protos.calls.PRIORITIES`, by its number.
        number: of the frame; None: the session's next.
    """
    delta_ms, figures = 0, frame.distortion or Distortion()
    if number is None:
        number, delta_ms = session.next_frame(captured_at)
        figures = session.told(figures, frame.base is not None)
    header, payload = pack_header(
        Header(
            operating_point=frame.point.index,
            frame_number=number,
            kept=frame.kept,
            capture_delta_ms=delta_ms,
            distortion=figures,
            base=frame.base,
            differences=frame.differences,
            cause=frame.fallback,
        ),
        frame.payload,
    )
    message = seal(
        session.constants,
        request_id,
        header,
        payload,
        question,
        min(max_new_tokens, session.limits.max_new_tokens) if question else 0,
        priority,
    )
    return Sealed(message, request_id or derived_id(session.constants, number), number, frame)


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
