"""Agents with a spool over one fake server, one after another, as after restarts."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from edge_agent.agent import Agent
from edge_agent.metrics import Metrics
from edge_agent.output import RecordWriter, answered
from edge_agent.plan import Plan
from edge_agent.settings import Settings
from edge_agent.spool.entry import Bounds
from edge_agent.spool.prepare import Kept, prepare
from edge_agent.spool.spool import Spool
from edge_agent.spool.stored_frame import StoredFrame
from edge_agent.spool.vault import Vault
from edge_agent.summary import Summary
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.retry import RetryPolicy
from protos.process import logs
from tests.fakes.fake_edge import LAYOUT, FakeModel
from tests.fakes.fake_run import Captures


class SpoolRun:
    """One agent with a spool in a folder; a second one over the same folder is its next start.

    Args:
        folder: holds the spool, the encoders and the records.
        dial: reaches the server.
        settings: of the spool; also `in_flight`.
    """

    def __init__(self, folder: Path, dial: Callable[[], Any], **settings: Any) -> None:
        self.folder, self.dial = folder, dial
        self.model, self.metrics, self.logged = FakeModel(), Metrics(), io.StringIO()
        self.log = logs.configure("info", stream=self.logged)
        self.output = folder / "records.jsonl"
        self.chosen = Settings(
            spool=folder / "spool", output=str(self.output), questions=("x",), **settings
        )
        self.writer = RecordWriter(str(self.output))
        self.grace_s: float | None = None
        self.ended = 0
        self.agent: Agent

    def uplink(self, keep: str = "") -> Uplink:
        return Uplink(
            LAYOUT,
            self.dial,
            EncoderStore(self.folder),
            self.metrics,
            self.log,
            RetryPolicy(give_up_s=0.0, backoff_s=0.01, backoff_max_s=0.05),
            self.chosen.in_flight,
            keep=keep,
        )

    def make(self, source: Any, **kwargs: Any) -> Agent:
        """An agent, its spool open."""
        uplink = self.uplink()
        assert self.chosen.spool is not None
        outgoing, waits = prepare(
            Kept(self.chosen.spool, self.writer),
            self.chosen,
            uplink,
            self.uplink,
            self.model,  # type: ignore[arg-type]
            EncoderStore(self.folder),
            self.metrics,
            self.log,
        )
        if self.grace_s is not None:
            outgoing.grace_s = self.grace_s
        if self.chosen.resume:
            kwargs["done"] = answered(str(self.output)).and_these(waits)
        kwargs.setdefault("plan", Plan())
        kwargs.setdefault("questions", self.chosen.questions)
        self.agent = Agent(
            source,
            self.model,  # type: ignore[arg-type]
            uplink,
            on_record=self.writer.write,
            metrics=self.metrics,
            log=self.log,
            outgoing=outgoing,
            on_capture=self._one_more,
            **kwargs,
        )
        return self.agent

    async def run(self, items: Any, **kwargs: Any) -> Summary:
        """Work through captures until none waits."""
        agent = self.make(Captures(items) if isinstance(items, list) else items, **kwargs)
        try:
            return await asyncio.wait_for(agent.run(), 30)
        finally:
            self.close()

    async def until(self, items: Any, reached: Callable[[], bool], **kwargs: Any) -> Summary:
        """Work through captures, and stop once that is reached."""
        agent = self.make(Captures(items) if isinstance(items, list) else items, **kwargs)
        running = asyncio.create_task(agent.run())
        try:
            while not reached() and not running.done():
                await asyncio.sleep(0.01)
            agent.stop()
            return await asyncio.wait_for(running, 30)
        finally:
            self.close()

    def close(self) -> None:
        assert self.agent.outgoing is not None
        self.agent.outgoing.spool.close()
        self.writer.close()

    def _one_more(self) -> None:
        self.ended += 1

    @property
    def spool_folder(self) -> Path:
        assert self.chosen.spool is not None
        return self.chosen.spool

    @property
    def waits(self) -> bool:
        """Whether captures are still being made into frames."""
        return self.ended < self.agent.summary.captures

    def stored(self) -> list[StoredFrame]:
        """What waits on the disk, with no agent running."""
        spool = Spool(self.spool_folder, Bounds(), Vault(), Metrics(), self.log)
        with spool:
            spool.open()
            return list(spool.every())

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records so far, of earlier runs too."""
        return [json.loads(line) for line in self.output.read_text().splitlines() if line]

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value("neural_bridge_edge_" + name, labels)
        return found or 0.0


def nowhere() -> Any:
    """A dial that reaches nobody."""
    import grpc

    return grpc.aio.insecure_channel("127.0.0.1:1", options=[("grpc.use_local_subchannel_pool", 1)])


def with_server(test: Callable[[Any], Awaitable[None]], served: Any) -> None:
    """Run a test beside a fake server."""

    async def run() -> None:
        await served.start()
        try:
            await test(served)
        finally:
            await served.stop()

    asyncio.run(run())
