"""An engine holds a scene, and is known to hold it, while its frame is kept, and no longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import structlog
from msgspec import structs

from cloud_server.engine.jobs import Accepted, Answered, Drop, Dropped, Job
from cloud_server.engine.link import Sink
from cloud_server.engine.store import Name
from cloud_server.frontend.engines.dispatch import Dispatch
from cloud_server.frontend.engines.quarantine import Quarantine
from cloud_server.metrics import Metrics
from tests.cloud_server.frontend.test_scenes import held, job, scene


class _Engine:
    """An engine that accepts and answers each job at once, or drops it."""

    index, ready = 0, True

    def __init__(self) -> None:
        self.link = SimpleNamespace(submit=self._submit, tell=self._tell)
        self.drops = self.waits = False
        self.scenes: set[Name] = set()
        self.waiting: list[tuple[Job, Sink]] = []

    def why_not(self) -> str:
        return ""

    def _submit(self, job: Job, sink: Sink) -> None:
        if self.drops:
            sink(Dropped(job.id))
            return
        self.scenes.add(job.scene)
        if self.waits:
            self.waiting.append((job, sink))
            return
        sink(Accepted(job.id, 0.0, 0.0, 0.0, 0.0))
        sink(Answered(job.id, "two", 1, 0.0, 0.0, 0.0))

    def _tell(self, drop: Drop) -> None:
        assert not drop.base, "no frame of this test builds on another"
        self.scenes.discard((drop.session, drop.frame_number))


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
    assert dispatch.places == len(scenes) == len(engine.scenes) == 8
    engine.drops = True
    for number in range(100, 200):
        send(job(number))
    assert dispatch.places == 8, "a frame that was dropped has no scene"
    engine.drops, engine.waits = False, True
    late, early = job(300), structs.replace(job(300), id=600, point=-1, kept=b"", body=b"")
    dispatch.submit(late, lambda said: scenes.hold(scene(late), late))
    dispatch.submit(early, lambda _: None)
    (_, framed), (_, asked) = engine.waiting
    asked(Answered(early.id, "two", 1, 0.0, 0.0, 0.0))  # before its frame was accepted
    framed(Answered(late.id, "two", 1, 0.0, 0.0, 0.0))
    assert late.scene in engine.scenes, "it was accepted meanwhile"
    engine.waiting.clear()
    about = structs.replace(job(199), id=500, frame_number=99, point=-1, kept=b"", body=b"")
    dispatch.submit(about, lambda _: None)
    scenes.forget(lambda *_: True)
    assert engine.scenes == {about.scene}, "a question still needs it"
    (_, sink), *_ = engine.waiting
    sink(Answered(about.id, "two", 1, 0.0, 0.0, 0.0))
    assert not engine.scenes and dispatch.places == 0
