"""Sends frames by the agent's own uplink; `python -m benchmarks.edge.sender JOB` in a namespace.

It prints a line when the connection stands, waits for a line, sends, and prints what it sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np

from benchmarks.edge.film import Coded, Job
from edge_agent.frame import Frame
from edge_agent.metrics import Metrics
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.dial import CHANNEL_OPTIONS
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.request import Sealed, seal_frame
from edge_agent.uplink.retry import RetryPolicy
from edge_agent.uplink.session import Base, Session
from protos.distortion import Distortion
from protos.layout import KVLayout
from protos.points import PICTURE_POINT
from protos.process import logs


@dataclass
class CodedRequest:
    """See `edge_agent.uplink.request.Deliverable`: a frame that was made beforehand."""

    coded: Coded
    number: int
    captured_at: float
    question: str = ""
    can_wait: bool = True
    picture: None = None
    sealed: Sealed | None = field(default=None, init=False)

    def follow(self, base: Callable[[int], Base | None]) -> None:
        """Do nothing: its base was chosen beforehand."""

    def ready(self, session: Session) -> bool:
        """See `Deliverable.ready`."""
        return self.sealed is not None

    def seal(self, session: Session) -> Sealed:
        """See `Deliverable.seal`."""
        if self.sealed is None:
            coded = self.coded
            points = {point.index: point for point in session.points.values()}
            picture = coded.point == PICTURE_POINT
            figures = bytes.fromhex(coded.figures)
            kept = np.frombuffer(bytes.fromhex(coded.kept), dtype=np.bool_)
            frame = Frame(
                point=points[coded.point],
                tokens=len(kept),
                kept=kept,
                payload=bytes.fromhex(coded.payload),
                distortion=None if picture else Distortion.from_bytes(figures),
                select_ms=0.0,
                encode_ms=0.0,
                base=self.number - coded.back if coded.back else None,
                differences=coded.differences,
            )
            self.sealed = seal_frame(session, frame, b"", "", self.captured_at, 0, 0)
        return self.sealed

    def accepted(self, session: Session) -> None:
        """Do nothing."""

    def base_lost(self, session: Session) -> None:
        """Do nothing: no delta frame is sent before its base."""


async def send(job: Job, state: Path) -> list[Outcome]:
    """Send the first frame, wait for a line, then send the others, each in its time."""
    layout = replace(KVLayout.from_json(job.layout), settings_digest=job.settings_digest)
    credentials = grpc.ssl_channel_credentials(
        job.roots.encode(), job.key.encode(), job.chain.encode()
    )
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", "localhost")]
    uplink = Uplink(
        layout,
        lambda: grpc.aio.secure_channel(job.address, credentials, options=options),
        EncoderStore(state),
        Metrics(),
        logs.configure("warning"),
        RetryPolicy(give_up_s=60.0),
        job.in_flight,
        linger_s=job.linger_s,
        ack_wait_s=job.ack_wait_s,
    )

    async def deliver(number: int, late_s: float = 0.0) -> Outcome:
        async with uplink.credit():
            return await uplink.deliver(CodedRequest(job.frames[number], number, number + late_s))

    await uplink.connect()
    await deliver(0)
    print(json.dumps({"connected": True}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began = time.monotonic()
    sent = []
    for number in range(1, len(job.frames)):
        due = began + (number - 1) * job.every_s
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        sent.append(asyncio.create_task(deliver(number, time.monotonic() - due)))
    outcomes = list(await asyncio.gather(*sent))
    await asyncio.sleep(1.0)  # acknowledgements come late
    messages = sum(
        sample.value
        for family in uplink.metrics.messages_sent.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )
    told = {
        "messages": messages - 1,
        "message_bytes": sum(one.message_bytes for one in outcomes),
        "failed": [str(one.error) for one in outcomes if one.error is not None],
        "attempts": sum(one.attempts for one in outcomes),
    }
    print(json.dumps(told), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await uplink.close()
    return outcomes


if __name__ == "__main__":
    job_file = Path(sys.argv[1])
    asyncio.run(send(Job.read(job_file), job_file.with_suffix("")))
