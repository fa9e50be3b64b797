"""An engine that answers at once, to measure the front end alone; no model is loaded.

`python -m benchmarks.serve.stub_engine serve SETTINGS` (JSON) runs a service with this engine.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import deque
from functools import partial

from cloud_server import engine as engines
from cloud_server.engine import load as loading
from cloud_server.engine import process
from cloud_server.engine.base import Emit, Engine
from cloud_server.engine.jobs import (
    Accepted,
    Answered,
    Dropped,
    Job,
    Load,
    Offer,
    Status,
    TokenMade,
)
from cloud_server.engine.spawn import spawn_engine
from cloud_server.engine.store import Name
from cloud_server.frontend.service import Service, announce
from cloud_server.settings import Settings, load
from projector.bundle.load import Bundle

_MODULE = "benchmarks.serve.stub_engine"
_TEXT = "yes"


class StubEngine(Engine):
    """An engine that answers every question with one word."""

    def __init__(self, settings: Settings, emit: Emit) -> None:
        self._settings, self._emit = settings, emit
        self._jobs: deque[Job] = deque()

    def prepare(self) -> None:
        """See the base."""

    def load(self) -> list[Offer]:
        """See the base."""
        offers = []
        for path in self._settings.bundles:
            info = Bundle.peek(path)
            offers.append(loading.offer(Bundle.load(path, info.source, info.target)))
        return offers

    def submit(self, job: Job) -> None:
        """See the base."""
        self._jobs.append(job)

    def forget(self, session: str) -> None:
        """See the base."""

    def drop(self, name: Name, base: bool) -> None:
        """See the base."""

    def cancel(self, job: int, begun: bool) -> None:
        """See the base."""
        for waiting in self._jobs:
            if waiting.id == job:
                self._jobs.remove(waiting)
                self._emit(Dropped(job))
                return

    def load_bundle(self, asked: Load) -> None:
        """See the base; not used in the benchmark."""
        raise NotImplementedError

    def unload_bundle(self, digest: str) -> None:
        """See the base."""

    def step(self) -> None:
        """See the base."""
        while self._jobs:
            job = self._jobs.popleft()
            self._emit(Accepted(job.id, 0.0, 0.0, 0.0, 0.0))
            if job.question:
                self._emit(TokenMade(job.id, 0, _TEXT))
                self._emit(Answered(job.id, _TEXT, 1, 0.0, 0.0, 0.0))

    @property
    def busy(self) -> bool:
        """See the base."""
        return bool(self._jobs)

    @property
    def model_id(self) -> str:
        """See the base."""
        return "stub"

    def status(self) -> Status:
        """See the base."""
        return Status(waiting=len(self._jobs))


def serve(settings: Settings) -> None:
    """Serve until SIGTERM."""

    async def run() -> None:
        made = Service(settings, announce, partial(spawn_engine, module=_MODULE))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, made.stop)
        await made.run()

    asyncio.run(run())


if __name__ == "__main__":
    engines.ENGINES["stub"] = (_MODULE, "StubEngine")
    if sys.argv[1] == "serve":
        serve(load(json.loads(sys.argv[2]) | {"engine": "stub"}, environ={}))
    else:
        sys.exit(process.main())
