"""From the spool to the service: new frames first, old ones beside them as far as there is room.

Calls, in order: `begin` → `accept` for each frame, while `run` sends → `finish` or `stop`. A frame
leaves the spool once its record is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from edge_agent.device.pulse import DISK, Pulse
from edge_agent.metrics import Metrics
from edge_agent.record import AnswerRecord, timed
from edge_agent.spool.catch_up import CatchUp
from edge_agent.spool.entry import Drop, Entry
from edge_agent.spool.spool import Spool
from edge_agent.spool.stored_frame import StoredFrame
from edge_agent.spool.stored_request import StoredRequest, fits
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.outcome import Outcome
from protos.errors import BridgeError
from protos.process.logs import Logger

_NEW = 64
"""New frames that are kept in memory too; older ones are read from the disk in their turn."""
_AHEAD = 16
"""Old frames read from the disk at once."""
_LOOK_S = 30.0
"""How often frames that are too old are looked for, seconds."""
_AGAIN_S = 5.0
_IDLE_S = 10.0


@dataclass
class Outgoing:
    """Sends what waits in a spool.

    Attributes:
        spool: open.
        uplink: the way to the service.
        kept: makes an uplink for frames of a bundle that is served no more, by its digest.
        place: tells how far the records go now (`output.recorded`).
        sync: puts the records on the disk.
        log: structured logger.
        metrics: what is counted.
        on_end: gets a frame's draft and how it ended.
        clock: seconds, monotonic.
        sleep: waits that many seconds.
        pulse: whether the disk takes what it is given.
        now: the time, seconds since 1970, for captures made before this device's clock was set.
        grace_s: how long frames on their way may take to end once the agent stops, seconds.
    """

    spool: Spool
    uplink: Uplink
    kept: Callable[[str], Uplink]
    place: Callable[[], str]
    sync: Callable[[], None]
    log: Logger
    metrics: Metrics
    on_end: Callable[[AnswerRecord, Outcome], None] = lambda record, outcome: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    pulse: Pulse = field(default_factory=Pulse)
    now: Callable[[], float] = time.time
    grace_s: float = 5.0
    _new: deque[Entry] = field(default_factory=deque, init=False, repr=False)
    _old: deque[Entry] = field(default_factory=deque, init=False, repr=False)
    _busy: set[int] = field(default_factory=set, init=False, repr=False)
    _ended: list[int] = field(default_factory=list, init=False, repr=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False, repr=False)
    _others: dict[str, Uplink] = field(default_factory=dict, init=False, repr=False)
    _others_used: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _choosing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)
    _some_ended: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)
    _stopped: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)
    _finishing: bool = field(default=False, init=False, repr=False)
    _failed: Exception | None = field(default=None, init=False, repr=False)
    _old_on_way: int = field(default=0, init=False, repr=False)
    _told: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        self._catch_up = CatchUp(max(1, self.uplink.in_flight // 2))

    # ------------------------------------------------------------------ in

    async def accept(self, frame: StoredFrame, rank: int) -> None:
        """Keep a frame; it is on the disk when this returns, or its record says why not.

        Raises:
            DiskFullError: the disk does not take it.
        """
        async with self._choosing:
            busy = frozenset(self._busy)
            with self.pulse.step(DISK):
                kept = await asyncio.to_thread(self._keep, frame, rank, busy)
            if isinstance(kept, Entry):
                entry = kept
            else:
                drops, room = kept
                await self._drop(drops)
                if not room:
                    await self._drop([Drop(0, "full", frame, frame.request_id)])
                    return
                with self.pulse.step(DISK):
                    entry = await asyncio.to_thread(self.spool.accept, frame, rank)
            self._busy.add(entry.id)
        self._catch_up.came(self.clock())
        self._new.append(entry)
        if len(self._new) > _NEW:
            self._busy.discard(self._new.popleft().id)
        self._news.set()

    def _keep(
        self, frame: StoredFrame, rank: int, busy: frozenset[int]
    ) -> Entry | tuple[list[Drop], bool]:
        """Keep a frame if nothing has to go for it; else what has to, and whether that suffices."""
        drops, room = self.spool.room_for(frame, rank, busy)
        return self.spool.accept(frame, rank) if room and not drops else (drops, room)

    def finish(self) -> None:
        """No more frames come: `run` ends once none waits."""
        self._finishing = True
        self._news.set()

    def stop(self) -> None:
        """`run` ends soon; frames that wait stay on the disk."""
        self._stopped.set()
        self._news.set()

    # ------------------------------------------------------------------ out

    async def run(self) -> None:
        """Send until `finish` or `stop`.

        Raises:
            Exception: what a record could not be written for.
        """
        beside = [asyncio.create_task(self._settle_all()), asyncio.create_task(self._look_often())]
        for task in beside:
            task.add_done_callback(self._done)
        try:
            while not self._stopped.is_set() and self._failed is None:
                if not self._more():
                    if (
                        self._finishing
                        and not self._tasks
                        and self.spool.frames <= len(self._ended)
                    ):
                        break
                    await self._change()
                elif await self._online():
                    await self._send_next()
            if self._tasks and self.uplink.connected:  # else none of them ends soon
                await asyncio.wait(set(self._tasks), timeout=self.grace_s)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            with contextlib.suppress(BridgeError):
                await self._settle()
            for other in self._others.values():
                await other.close()
            self._others.clear()
        if self.spool.frames:
            self.log.info("frames_wait", frames=self.spool.frames, folder=str(self.spool.folder))
        if self._failed is not None:
            raise self._failed

    def _more(self) -> bool:
        """Whether a frame may be sent now."""
        if self._new:
            return True
        return self._old_waits and self._room_for_old

    @property
    def _old_waits(self) -> bool:
        return bool(self._old) or self.spool.frames > len(self._busy)

    @property
    def _room_for_old(self) -> bool:
        """Whether one more old frame may go; those that share messages fill them."""
        if self.uplink.lingers:
            return self._old_on_way < self.uplink.in_flight
        return self._old_on_way < self._catch_up.window and not self._wait_s()

    def _wait_s(self) -> float:
        if self.uplink.lingers:
            return 0.0
        new_on_way = len(self._tasks) - self._old_on_way
        return self._catch_up.wait_s(self.clock(), new_on_way + len(self._new))

    async def _change(self) -> None:
        """Wait until something changes, or there is a gap for an old frame."""
        self._news.clear()
        wait_s = self._wait_s() if self._old_waits else None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), wait_s or None)

    async def _look_often(self) -> None:
        """Drop frames that have become too old, until cancelled."""
        while True:
            await self.sleep(_LOOK_S)
            try:
                await self._look()
            except BridgeError as error:
                self.log.warning("spool_not_written", cause=str(error))

    async def _look(self) -> None:
        async with self._choosing:
            drops, _ = await asyncio.to_thread(self.spool.room_for, None, 2, frozenset(self._busy))
            await self._drop(drops)
        await self._close_idle()

    async def _online(self) -> bool:
        """Connect if need be; whether a stream is open."""
        if self.uplink.connected:
            return True
        connecting = asyncio.create_task(self.uplink.connect())
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                return False
            connecting.result()
            self._told = ""
            return True
        except BridgeError as error:
            if error.name != self._told:
                self._told = error.name
                self.log.error("not_served", error=error.name, cause=str(error))
            pause_s = self.uplink.policy.backoff_max_s
            pausing = asyncio.ensure_future(self.sleep(random.uniform(pause_s / 2, pause_s)))
            await asyncio.wait({pausing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            pausing.cancel()
            return False
        finally:
            for task in (connecting, stopped):
                task.cancel()
            await asyncio.gather(connecting, stopped, return_exceptions=True)

    async def _send_next(self) -> None:
        credit = AsyncExitStack()
        taking = asyncio.create_task(credit.enter_async_context(self.uplink.credit()))
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({taking, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not taking.done():
                taking.cancel()
            await asyncio.gather(taking, stopped, return_exceptions=True)
        if taking.cancelled() or taking.exception() is not None:
            return
        entry, new = await self._next()
        if entry is None:
            await credit.aclose()
            return
        self._old_on_way += not new
        if not new:
            self._catch_up.started()
        task = asyncio.create_task(self._send(entry, new, credit))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _next(self) -> tuple[Entry | None, bool]:
        """The next frame, and whether it is new: alarms, then the newest, then the oldest."""
        room = self._room_for_old
        if room and not self._old and self.spool.frames > len(self._busy):
            try:
                await self._read_ahead()
            except BridgeError as error:
                self.log.warning("spool_not_read", cause=str(error))
                await self.sleep(_AGAIN_S)
                return None, False
        alarm = next((one for one in reversed(self._new) if one.rank == 0), None)
        if alarm is not None:
            self._new.remove(alarm)
            return alarm, True
        if room and self._old and self._old[0].rank == 0:
            return self._old.popleft(), False
        if self._new:
            return self._new.pop(), True
        if room and self._old:
            return self._old.popleft(), False
        return None, False

    async def _read_ahead(self) -> None:
        async with self._choosing:
            found = await asyncio.to_thread(self.spool.waiting, _AHEAD, frozenset(self._busy))
            await self._drop([one for one in found if isinstance(one, Drop)])
            self._old.extend(one for one in found if isinstance(one, Entry))
            self._busy.update(one.id for one in self._old)

    async def _send(self, entry: Entry, new: bool, credit: AsyncExitStack) -> None:
        beside = self._old_on_way
        async with credit:
            try:
                frame = entry.frame
                request = StoredRequest(
                    frame, late=not new, resealed=lambda again: self._resealed(entry.id, again)
                )
                uplink, session = self.uplink, self.uplink.connection.latest
                if session is not None and not fits(frame, session):
                    uplink = self._other(frame.bundle_digest)
                outcome = await uplink.deliver(request)
            finally:
                self._old_on_way -= not new
        latest = self.uplink.connection.latest
        strayed = uplink is self.uplink and latest is not None and not fits(frame, latest)
        if not outcome.final or (outcome.error is not None and strayed):
            self._busy.discard(entry.id)  # its turn comes again
            self._news.set()
            return
        if outcome.error is None:
            beside = max(beside, self._old_on_way)
            self._catch_up.ended(outcome.uplink_ms / 1000, beside, not new)
        self.on_end(timed(frame.record, self.spool.age_s(entry), self.now()), outcome)
        self._ended.append(entry.id)
        self._some_ended.set()
        self._news.set()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), Exception):
            self._failed = self._failed or task.exception()  # type: ignore[assignment]
        self._news.set()

    def _resealed(self, row: int, frame: StoredFrame) -> None:
        try:
            self.spool.replace(row, frame)
        except BridgeError as error:
            self.log.warning("spool_not_written", cause=str(error))

    # ------------------------------------------------------------------ frames of other bundles

    def _other(self, digest: str) -> Uplink:
        if digest not in self._others:
            self.log.info("frames_of_another_bundle", bundle_digest=digest)
            self._others[digest] = self.kept(digest)
        self._others_used[digest] = self.clock()
        return self._others[digest]

    async def _close_idle(self) -> None:
        for digest, used in list(self._others_used.items()):
            if self.clock() - used > _IDLE_S and not self._others[digest].held:
                del self._others_used[digest]
                await self._others.pop(digest).close()

    # ------------------------------------------------------------------ ends

    async def _drop(self, drops: Sequence[Drop]) -> None:
        """Write the records of frames that are dropped, then remove their rows.

        Raises:
            DiskFullError: they cannot be removed now.
        """
        if not drops:
            return
        for drop in drops:
            self.metrics.spool_drops.labels(drop.cause).inc()
            record = (
                drop.frame.record
                if drop.frame is not None
                else AnswerRecord(drop.request_id.hex(), "", 0.0, "")
            )
            self.on_end(record, Outcome(drop.request_id, error=drop.error))
        gone = {drop.id for drop in drops}
        self._busy |= gone - {0}  # their records are written: they are not sent any more
        self._old = deque(one for one in self._old if one.id not in gone)
        self._ended += gone - {0}
        await self._settle()

    async def _settle_all(self) -> None:
        """Remove ended frames, many at once, until cancelled."""
        while True:
            await self._some_ended.wait()
            try:
                await self._settle()
            except BridgeError as error:
                self.metrics.spool_failures.labels(error.name).inc()
                self.log.warning("spool_not_written", cause=str(error))
                await self.sleep(_AGAIN_S)

    def _end(self, ids: list[int], place: str) -> None:
        self.sync()
        self.spool.end(ids, place)

    async def _settle(self) -> None:
        """Sync the records, then remove the rows.

        Raises:
            DiskFullError: they cannot be removed now.
        """
        ids, self._ended = self._ended, []
        self._some_ended.clear()
        if not ids:
            return
        place = self.place()  # before another record is written: its row stays for now
        try:
            await asyncio.to_thread(self._end, ids, place)
        except BaseException:
            self._ended += ids
            self._some_ended.set()
            raise
        self._busy.difference_update(ids)
        self._news.set()
