"""Which engine holds a scene is known for as long as its frame is kept, and no longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import structlog

from cloud_server.engine.jobs import Accepted, Answered, Dropped, Job
from cloud_server.frontend.engines.dispatch import Dispatch, Sink
from cloud_server.frontend.engines.quarantine import Quarantine
from cloud_server.metrics import Metrics
from tests.cloud_server.frontend.test_scenes import held, job, scene


class _Engine:
    """An engine that accepts and answers each job at once, or drops it."""

    index, ready = 0, True

    def __init__(self) -> None:
        self.link = SimpleNamespace(submit=self._submit)
        self.drops = False

    def why_not(self) -> str:
        return ""

    def _submit(self, job: Job, sink: Sink) -> None:
        if self.drops:
            sink(Dropped(job.id))
            return
        sink(Accepted(job.id, 0.0, 0.0, 0.0, 0.0))
        sink(Answered(job.id, "two", 1, 0.0, 0.0, 0.0))


def test_places_go_with_the_frames_that_are_kept() -> None:
    scenes, engine = held(most_of=8), _Engine()
    quarantine = Quarantine(None, structlog.get_logger(), 4)
    dispatch = Dispatch([cast(Any, engine)], scenes, quarantine, Metrics())

    def send(one: Job) -> None:
        def sink(said: Any) -> None:
            if isinstance(said, Accepted):
                scenes.hold(scene(one), one)

        dispatch.submit(one, sink)

    for number in range(100):
        send(job(number))
    assert dispatch.places == len(scenes) == 8
    engine.drops = True
    for number in range(100, 200):
        send(job(number))
    assert dispatch.places == 8, "a frame that was dropped has no scene"
    scenes.forget(lambda *_: True)
    assert dispatch.places == 0
