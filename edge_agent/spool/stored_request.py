"""A frame from the spool on its way: sealed as it was first, or again for another session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from edge_agent.frame import Frame, check_size
from edge_agent.spool.stored_frame import StoredFrame
from edge_agent.uplink.request import Sealed, check_question, seal_frame
from edge_agent.uplink.session import Base, Session
from protos.calls import PRIORITIES
from protos.errors import BundleGoneError
from protos.limits import Limits
from protos.points import PICTURE_POINT
from protos.requests import parse_infer_request

_ANY = Limits(
    max_payload_bytes=1 << 30,
    max_picture_bytes=1 << 30,
    max_question_bytes=1 << 30,
    max_tokens=65535,
    max_new_tokens=(1 << 32) - 1,
)
"""The frame was made here: the session that carries it checks its size."""


def fits(stored: StoredFrame, session: Session) -> bool:
    """Whether a session's encoder is the one that the frame was made with."""
    return stored.encoder_digest in ("", session.encoder_digest)


@dataclass
class StoredRequest:
    """See `edge_agent.uplink.request.Deliverable`.

    Attributes:
        stored: the frame.
        late: it waited for long, so other frames go first in the service too, if it has to be
            sealed again anyway. Alarms never give way.
        resealed: gets the frame as it was sealed again, before it is sent: after a restart it must
            be sent again as it was, or the service would not know it.
    """

    stored: StoredFrame
    late: bool = False
    resealed: Callable[[StoredFrame], None] = lambda stored: None
    question: str = field(init=False)
    sealed: Sealed | None = field(default=None, init=False)
    _sealed_for: bytes = field(default=b"", init=False, repr=False)
    _key: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.question = self.stored.record.question

    @property
    def can_wait(self) -> bool:
        """Whether it may wait for others to share its message: old frames fill one at once."""
        return True

    @property
    def picture(self) -> None:
        """None: whoever kept the frame has given the picture to `Crops`, if it may leave."""

    def follow(self, base: Callable[[int], Base | None]) -> None:
        """Do nothing: its frame is made already."""

    def ready(self, session: Session) -> bool:
        """See `Deliverable.ready`: it is the session that the frame was sealed for."""
        return session.session_id == self.stored.session_id and not self._key

    def seal(self, session: Session) -> Sealed:
        """Seal for a session; for the same session always the same bytes.

        Raises:
            BundleGoneError: the session is on another bundle, with another encoder.
            BridgeError: the frame cannot be sent in this session, typed.
        """
        if self.sealed is None or self._sealed_for != session.session_id:
            self.sealed, self._sealed_for = self._seal(session), session.session_id
        return self.sealed

    def accepted(self, session: Session) -> None:
        """Later frames may be delta frames to this one."""
        if self.sealed is not None and self._sealed_for == session.session_id:
            if self.sealed.frame.held is not None:
                session.accepted(Base(self.sealed.frame_number, self.sealed.frame.held))

    def base_lost(self, session: Session) -> None:
        """Send the key frame that was kept for this."""
        if self.sealed is not None and self.sealed.frame.base is not None:
            session.lost(self.sealed.frame.base)
        self.sealed = None
        self._key = bool(self.stored.key)

    def _seal(self, session: Session) -> Sealed:
        stored = self.stored
        if not fits(stored, session):
            raise BundleGoneError(
                f"the frame waited since it was made with bundle {stored.bundle} "
                f"({stored.bundle_digest[:12]}…); the service has '{session.bundle_id}' "
                f"{session.bundle_version} now, and that one no more"
            )
        first = session.session_id == stored.session_id and not self._key
        raw = stored.message if first or not stored.key else stored.key
        message, header, body = parse_infer_request(raw, _ANY)
        name = stored.record.point
        if name not in session.points:
            raise BundleGoneError(
                f"the frame waited at point {name!r}, which the service's bundle "
                f"'{session.bundle_id}' {session.bundle_version} no longer has"
            )
        picture = header.operating_point == PICTURE_POINT
        frame = Frame(
            point=session.points[name],
            tokens=header.tokens,
            kept=header.kept,
            payload=body,
            distortion=None if picture else header.distortion,
            select_ms=0.0,
            encode_ms=0.0,
            held=stored.held,
            base=header.base,
            differences=header.differences,
            fallback=header.cause,
        )
        if first:
            return Sealed(message, stored.request_id, header.frame_number, frame)
        check_question(self.question, session.limits)
        check_size(frame, session.limits)
        priority = message.priority
        if self.late and PRIORITIES[priority] == "normal":
            priority = PRIORITIES.index("background")
        sealed = seal_frame(
            session,
            frame,
            stored.request_id,
            self.question,
            stored.record.captured_at,
            message.max_new_tokens,
            priority,
        )
        self.stored = replace(
            stored,
            message=sealed.message.SerializeToString(),
            key=b"",
            session_id=session.session_id,
        )
        self.resealed(self.stored)
        return sealed
