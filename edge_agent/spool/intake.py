"""From a capture to the spool: the frame is made and sealed at once, online or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge_agent.frame_maker import FrameMaker
from edge_agent.record import record_of
from edge_agent.spool.stored_frame import StoredFrame
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.request import Request, seal_frame
from edge_agent.uplink.session import Base, Session


async def stored_frame_of(
    request: Request,
    maker: FrameMaker,
    session: Session,
    edge: tuple[str | None, float],
    base: Callable[[int], Base | None],
) -> StoredFrame:
    """Make a frame for a session and all that its record needs.

    Args:
        request: not sealed yet.
        maker: of its capture.
        session: the last one agreed; it may be over.
        edge: the small model's answer, if it was wanted, and its time in milliseconds.
        base: see `Deliverable.follow`.

    Raises:
        BridgeError: the question or the frame cannot be sent, typed.
    """
    request.follow(base)
    return await asyncio.to_thread(_stored_frame_of, request, maker, session, edge)


def _stored_frame_of(
    request: Request, maker: FrameMaker, session: Session, edge: tuple[str | None, float]
) -> StoredFrame:
    sealed = request.seal(session)
    key = b""
    if sealed.frame.base is not None:
        again = seal_frame(
            session,
            maker.frame(session, request.question, key=True),
            sealed.request_id,
            request.question,
            maker.capture.captured_at,
            maker.plan.max_new_tokens,
            maker.priority,
            sealed.frame_number,
        )
        key = again.message.SerializeToString()
    done = Outcome(sealed.request_id, sealed=sealed, message_bytes=sealed.message.ByteSize())
    return StoredFrame(
        record=record_of(maker, request.question, done, done, *edge, fallback=""),
        message=sealed.message.SerializeToString(),
        key=key,
        session_id=session.session_id,
        encoder_digest="" if sealed.frame.point.kind == "picture" else session.encoder_digest,
        bundle_digest=session.bundle_digest,
        bundle=f"{session.bundle_id} {session.bundle_version}",
        held=sealed.frame.held,
    )
