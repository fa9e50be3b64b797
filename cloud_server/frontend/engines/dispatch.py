"""Dispatch: chooses the engine for a job, and handles jobs whose engine ended.

A job about a scene goes to the engine that holds the scene. If no engine holds it any more, the
scene is rebuilt from its frame's bytes. Any other job goes to the engine with the least work.

When an engine ends, its jobs are refused with a retryable error and become suspects. When a suspect
is sent again, it runs alone in one engine. If that engine ends too, the request is quarantined
(`quarantine.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from cloud_server.engine.jobs import (
    Cancel,
    Drop,
    Dropped,
    Failed,
    Forget,
    Job,
    JobEvent,
    ends,
)
from cloud_server.engine.link import Sink
from cloud_server.engine.store import Name
from cloud_server.frontend.engines.kept_engine import KeptEngine
from cloud_server.frontend.engines.quarantine import Quarantine
from cloud_server.frontend.scenes import HeldScenes
from cloud_server.metrics import Metrics
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    MissingKeyFrameError,
    QuarantinedError,
    UnknownSceneError,
)
from protos.points import PICTURE_POINT

_LOST_SCENE = (UnknownSceneError.code, MissingKeyFrameError.code)
_PICTURE_WORK, _FRAME_WORK, _QUESTION_WORK, _TOKEN_WORK = 8.0, 1.0, 1.0, 0.1
"""Cost of a job's parts, in projected frames; measured with the reference model."""


class _Given(Struct, eq=False):
    """A job that has not ended.

    Attributes:
        engine: the engine that has it; None while it waits.
        alone: whether it is a suspect and runs alone.
        remade: whether its scene was rebuilt for it.
    """

    job: Job
    sink: Sink
    work: float
    alone: bool
    engine: KeptEngine | None = None
    remade: bool = False


class Dispatch:
    """Sends jobs to engines.

    Args:
        engines: all engines, up or not.
        scenes: the frames from which scenes can be rebuilt.
        quarantine: requests that ended an engine.
        metrics: the service's metrics.
    """

    def __init__(
        self,
        engines: Sequence[KeptEngine],
        scenes: HeldScenes,
        quarantine: Quarantine,
        metrics: Metrics,
    ) -> None:
        self._engines, self._scenes, self._quarantine = engines, scenes, quarantine
        self._metrics = metrics
        self._given: dict[int, _Given] = {}
        self._jobs: Counter[KeptEngine] = Counter()
        self._work: dict[KeptEngine, float] = dict.fromkeys(engines, 0.0)
        self._where: dict[Name, KeptEngine] = {}
        self._using: Counter[Name] = Counter()  # jobs that need a scene or its latents
        self._unused: dict[Name, Drop] = {}  # what to drop once no job needs it
        scenes.gone(self._gone)
        self._waiting: deque[_Given] = deque()
        self._suspects: deque[_Given] = deque()
        self._apart: KeptEngine | None = None
        self._alone: _Given | None = None
        self._ids = itertools.count(-(1 << 40), -1)  # the canary's are negative too, but few
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        metrics.quarantined.set_function(lambda: len(quarantine))
        metrics.suspects.set_function(lambda: quarantine.suspects)

    @property
    def depth(self) -> int:
        """Jobs that have not ended."""
        return len(self._given)

    @property
    def places(self) -> int:
        """Scenes whose engine is known."""
        return len(self._where)

    @property
    def engines_up(self) -> int:
        """Engines that take jobs."""
        return sum(engine.ready for engine in self._engines)

    def submit(self, job: Job, sink: Sink) -> None:
        """Send a job to an engine; `sink` then gets its events until it ends.

        Raises:
            EngineUnavailableError: no engine is up.
        """
        try:
            alone = self._quarantine.check(job)
        except QuarantinedError as error:
            sink(error)
            return
        if not any(engine.ready for engine in self._engines):
            raise EngineUnavailableError("no engine is running; send it again")
        given = self._given[job.id] = _Given(job, sink, _work_of(job), alone)
        for name in _names(job):
            self._using[name] += 1
        if job.has_frame:
            self._unused.pop(job.scene, None)
        if alone:
            self._suspects.append(given)
            self._run_alone()
        else:
            self._launch(given)

    def tell(self, message: Forget | Cancel) -> None:
        """Cancel a job, or drop a session's scenes."""
        if isinstance(message, Forget):
            for engine in self._engines:
                engine.link.tell(message)
            return
        given = self._given.get(message.job)
        if given is None:
            return
        if given.engine is not None:
            given.engine.link.tell(message)
            return
        self._end(given)
        given.sink(Dropped(message.job))

    def up(self, engine: KeptEngine) -> None:
        """Called when an engine can take jobs."""
        self._run_alone()

    def lost(self, engine: KeptEngine) -> None:
        """Called when an engine has ended; its link has ended its jobs."""
        self._where = {n: e for n, e in self._where.items() if e is not engine}
        if self._apart is engine:
            self._apart = None
        if not self.engines_up:
            for given in [*self._waiting, *self._suspects]:
                self._end(given)
                given.sink(EngineUnavailableError("no engine is running; send it again"))
        self._run_alone()

    def close(self) -> None:
        """Called before the engines are stopped: their end makes no job a suspect."""
        self._closing = True

    # ------------------------------------------------------------------ to an engine

    def _launch(self, given: _Given) -> None:
        """Send a job to the best engine, or let it wait while the only engine runs a suspect.

        Raises:
            EngineUnavailableError: the engine has just ended.
        """
        engine = self._choose(given.job)
        if engine is None:
            self._waiting.append(given)
            return
        self._give(given, engine)

    def _choose(self, job: Job) -> KeptEngine | None:
        for name in (job.scene, _needs(job)):
            home = self._where.get(name) if name is not None else None
            if home is not None and home.ready:
                return None if home is self._apart else home
        if len(self._engines) == 1 and self._apart is None and self._engines[0].ready:
            return self._engines[0]
        up = [e for e in self._engines if e.ready and e is not self._apart]
        answering = [e for e in up if not e.why_not()] or up
        return min(answering, key=lambda e: (self._work[e], e.index), default=None)

    def _give(self, given: _Given, engine: KeptEngine) -> None:
        job = given.job
        needs = _needs(job)
        if needs is not None and not given.remade and self._where.get(needs) is not engine:
            given.remade = True
            todo = self._scenes.frames(needs)
            if todo:
                self._later(self._remake(given, engine, todo))
                return
        given.engine = engine
        self._jobs[engine] += 1
        self._work[engine] += given.work
        if job.has_frame and job.hold:
            self._where[job.scene] = engine
        try:
            engine.link.submit(job, partial(self._hear, given))
        except EngineUnavailableError:
            self._end(given)
            raise

    async def _remake(self, given: _Given, engine: KeptEngine, frames: Sequence[Job]) -> None:
        """Rebuild a job's scene in an engine, then send it the job."""
        self._metrics.scenes_remade.inc()
        self._jobs[engine] += 1
        try:
            for frame in frames:
                self._where[frame.scene] = engine
            await asyncio.gather(*(self._frame(frame, engine) for frame in frames))
            if given.job.id in self._given:  # else it was cancelled meanwhile
                self._give(given, engine)
        except EngineUnavailableError as error:
            if given.job.id in self._given:
                self._hear(given, error)
        finally:
            self._jobs[engine] -= 1
            self._run_alone()

    async def _frame(self, frame: Job, engine: KeptEngine) -> None:
        """Send a frame to an engine again.

        Raises:
            EngineUnavailableError: the engine ended.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hear(said: JobEvent | BridgeError) -> None:
            if isinstance(said, BridgeError):
                ended.set_exception(said)
            else:
                ended.set_result(None)

        job = replace(frame, id=next(self._ids), received_ns=time.monotonic_ns())
        engine.link.submit(job, hear)
        await ended

    # ------------------------------------------------------------------ from an engine

    def _hear(self, given: _Given, said: JobEvent | BridgeError) -> None:
        job = given.job
        if isinstance(said, BridgeError):
            said = self._blame(given, said)
            self._end(given)
        elif ends(said, job):
            if isinstance(said, Failed):
                if said.code in _LOST_SCENE and self._again(given):
                    return
            if given.alone:
                self._quarantine.clear(job)
            self._end(given)
        given.sink(said)
        if job.has_frame and job.id not in self._given and not self._scenes.keeps(job.scene):
            self._gone(job.scene, False)  # it was never accepted

    def _blame(self, given: _Given, error: BridgeError) -> BridgeError:
        """Called when a job's engine ended: the job becomes a suspect, or is quarantined."""
        if self._closing:
            return error
        if given.alone and given.engine is not None:
            outside = given.engine.ended_from_outside
            return self._quarantine.blame(given.job, error, outside)
        self._quarantine.suspect(given.job)
        return error

    def _again(self, given: _Given) -> bool:
        """Rebuild a scene that its engine has dropped; returns whether that is possible."""
        needs, engine = _needs(given.job), given.engine
        if given.remade or needs is None or engine is None:
            return False
        todo = self._scenes.frames(needs)
        if not todo:
            return False
        given.remade = True
        self._leave(given)
        self._later(self._remake(given, engine, todo))
        return True

    def _leave(self, given: _Given) -> None:
        if given.engine is not None:
            self._jobs[given.engine] -= 1
            self._work[given.engine] -= given.work
            given.engine = None

    def _end(self, given: _Given) -> None:
        if self._given.pop(given.job.id, None) is not None:
            for name in _names(given.job):
                self._let_go(name)
        self._leave(given)
        if self._waiting or self._suspects:
            for queue in (self._waiting, self._suspects):
                if given in queue:
                    queue.remove(given)
        if self._alone is given:
            self._alone = None
        if self._apart is not None or self._suspects:
            self._run_alone()

    # ------------------------------------------------------------------ suspects

    def _run_alone(self) -> None:
        """Run the next suspect, if there is one and its engine is idle."""
        if self._alone is not None:
            return
        if not self._suspects:
            self._apart = None
            waiting, self._waiting = self._waiting, deque()
            for given in waiting:
                self._soon(given)
            return
        if self._apart is None:
            up = [engine for engine in self._engines if engine.ready]
            self._apart = min(up, key=lambda e: (self._work[e], e.index), default=None)
        if self._apart is None or not self._apart.ready or self._jobs[self._apart]:
            return
        self._alone = self._suspects.popleft()
        self._soon(self._alone, self._apart)

    def _soon(self, given: _Given, engine: KeptEngine | None = None) -> None:
        asyncio.get_running_loop().call_soon(self._relaunch, given, engine)

    def _relaunch(self, given: _Given, engine: KeptEngine | None = None) -> None:
        if given.job.id not in self._given:
            return
        try:
            if engine is None:
                self._launch(given)
            else:
                self._give(given, engine)
        except EngineUnavailableError as error:
            self._end(given)
            given.sink(error)

    # ------------------------------------------------------------------ scenes that are over

    def _gone(self, name: Name, base: bool) -> None:
        """Called when a scene is no longer held: its engine drops it once no job needs it."""
        self._unused[name] = Drop(*name, int(base))
        if name not in self._using:
            self._drop(name)

    def _let_go(self, name: Name) -> None:
        """Called when a job that needed a scene has ended."""
        self._using[name] -= 1
        if not self._using[name]:
            del self._using[name]
            if name in self._unused:
                self._drop(name)

    def _drop(self, name: Name) -> None:
        drop = self._unused.pop(name)
        engine = self._where.get(name) if drop.base else self._where.pop(name, None)
        if engine is not None:
            engine.link.tell(drop)

    # ------------------------------------------------------------------ small things

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _names(job: Job) -> tuple[Name, ...]:
    """The scenes of a job: the one that it makes or reads, and the one that it builds on."""
    return (job.scene, (job.session, job.base)) if job.base >= 0 else (job.scene,)


def _needs(job: Job) -> Name | None:
    """The scene that an engine must hold for a job."""
    if not job.has_frame or job.box or job.shadow:
        return job.scene
    return (job.session, job.base) if job.base >= 0 else None


def _work_of(job: Job) -> float:
    work = 0.0
    if job.has_frame:
        work += _PICTURE_WORK if job.point == PICTURE_POINT else _FRAME_WORK
    questions = len(job.shadow) * 2 or bool(job.question)
    if questions:
        work += questions * (_QUESTION_WORK + _TOKEN_WORK * job.max_new_tokens)
    return work
