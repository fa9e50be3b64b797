"""A thread that reads pictures and prepares them for the model, while the engine's steps go on.

One picture at a time, one of each session in turn. Each session has a bucket of pixels a second,
and another one for shadowed pictures. A file is charged when it comes, by its structure, before
anything is decoded: a small file may take long to read.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from PIL import Image

from cloud_server.engine.jobs import Job
from cloud_server.engine.picture import charge_of, open_picture
from cloud_server.throttle import Buckets
from projector.models.blankness import DEGENERATE, degenerate
from protos.errors import BridgeError, OverloadedError, PictureError

Prepared = TypeVar("Prepared")
_log = structlog.get_logger(component="engine")


@dataclass(frozen=True)
class Read(Generic[Prepared]):
    """A picture that was read, or the error of reading it.

    Attributes:
        taken_ns: when its turn came (monotonic clock).
        seconds: how long reading took.
        warnings: names of what is unusual about it.
    """

    job: Job
    taken_ns: int
    seconds: float
    prepared: Prepared | None = None
    warnings: tuple[str, ...] = ()
    error: BridgeError | None = None


class PictureReader(Generic[Prepared]):
    """The thread, the pictures that wait for it, and the pictures it has read.

    Args:
        prepare: makes the model's input from a job's picture; called in the thread.
        max_px: largest width and height.
        px_per_s: pixels that a session may have read per second; 0 for no bound.
        burst_px: pixels that it may have read at once.
        wake: called in the thread when a picture is ready.
    """

    def __init__(
        self,
        prepare: Callable[[Image.Image, Job], Prepared],
        max_px: int,
        px_per_s: float,
        burst_px: float,
        wake: Callable[[], None],
    ) -> None:
        self._prepare, self._max_px, self._wake = prepare, max_px, wake
        self._budget = Buckets(px_per_s, burst_px)
        self._lock = threading.Lock()
        self._come = threading.Semaphore(0)
        self._waiting: OrderedDict[str, OrderedDict[int, Job]] = OrderedDict()  # by session
        self._unwanted: set[int] = set()
        self._read: list[Read[Prepared]] = []
        self._now = -1  # the job whose turn it is
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Whether `take` has anything."""
        return bool(self._read)

    @property
    def waiting(self) -> int:
        """Pictures whose turn has not come."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def submit(self, job: Job) -> None:
        """Have a picture read.

        Raises:
            OverloadedError: its session may have no more pixels read for now.
            PictureError: it is no picture.
        """
        self._charge(job)
        with self._lock:
            self._waiting.setdefault(_turn_of(job), OrderedDict())[job.id] = job
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
            self._thread.start()
        self._come.release()

    def cancel(self, job: int, begun: bool) -> bool:
        """Drop a picture; returns whether it was here."""
        with self._lock:
            for session, jobs in self._waiting.items():
                if jobs.pop(job, None) is not None:
                    if not jobs:
                        del self._waiting[session]
                    return True
            if not begun:
                return False
            here = [read for read in self._read if read.job.id == job]
            for read in here:
                self._read.remove(read)
            if not here and job == self._now:
                self._unwanted.add(job)
                return True
            return bool(here)

    def take(self, most: int) -> list[Read[Prepared]]:
        """Pictures that were read, in order, at most `most`."""
        with self._lock:
            taken, self._read = self._read[:most], self._read[most:]
        return taken

    def read_now(self, job: Job) -> Read[Prepared]:
        """Read a picture in the caller's thread."""
        return self._one(job)

    def _run(self) -> None:
        while True:
            self._come.acquire()
            with self._lock:
                if not self._waiting:
                    continue  # it was cancelled
                session, jobs = self._waiting.popitem(last=False)
                _, job = jobs.popitem(last=False)
                if jobs:
                    self._waiting[session] = jobs  # the other sessions come first
                self._now = job.id
            read = self._one(job)
            with self._lock:
                self._now = -1
                if job.id in self._unwanted:
                    self._unwanted.discard(job.id)
                    continue
                self._read.append(read)
            self._wake()

    def _one(self, job: Job) -> Read[Prepared]:
        taken_ns, started = time.monotonic_ns(), time.perf_counter()
        prepared: Prepared | None = None
        warnings: tuple[str, ...] = ()
        failed: BridgeError | None = None
        try:
            picture = open_picture(job.body, self._max_px)
            warnings = (DEGENERATE,) if degenerate(picture) else ()
            prepared = self._prepare(picture, job)
        except BridgeError as error:
            failed = error
        except Exception as error:  # a stranger's file must not end the thread
            _log.exception("a picture tripped its reader", request_id=job.request_id)
            failed = PictureError(f"the picture cannot be read: {error}")
        seconds = time.perf_counter() - started
        return Read(job, taken_ns, seconds, prepared, warnings, failed)

    def _charge(self, job: Job) -> None:
        pixels, charge = charge_of(job.body)
        if pixels > self._max_px**2:
            return  # `open_picture` refuses it for its size
        wait_s = self._budget.take(_turn_of(job), charge)
        if wait_s:
            raise OverloadedError(
                "this session's pictures take more work than is done for one caller: send this one "
                f"({charge / 1e6:.1f} million pixels) again in {wait_s:.1f} s, or a smaller one",
                retry_after_s=wait_s,
                cause="pictures",
            )


def _turn_of(job: Job) -> str:
    """Whose turn a picture takes: shadowed ones take none of the session's own."""
    return f"shadow of {job.session}" if job.shadow else job.session
