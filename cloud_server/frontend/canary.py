"""The canary: asks the engine a question now and then, to see whether it really answers.

It asks right after an engine has started, and then whenever nothing was answered for a while. The
mean state of one bundle goes to the engine as a device's frame does, with a question. One token of
an answer is enough; the scene is not held. A device's answer counts as well, so a busy service is
asked nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

from cloud_server.engine.jobs import Answered, Cancel, Failed, Job, JobEvent, Offer
from cloud_server.engine.link import FrontLink
from cloud_server.engine.mean_frame import with_mean_frame
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from projector.codec.encoder import Encoder
from protos.errors import BridgeError, from_code
from protos.layout import KVLayout
from protos.process.logs import Logger

SESSION = "canary"
"""The canary's session; devices' sessions are hexadecimal, so none has this name."""

_NOT_YET = "no question was answered yet"
_AGAIN_S = 5.0
"""Pause after a question without an answer, unless `canary_s` is shorter."""


class Canary:
    """Asks, and says what keeps the service from being ready.

    Args:
        settings: how often to ask, how long to wait, what to ask.
        link: the way to the engine.
        metrics: what is counted.
        log: a bound logger.
        changed: called when `failing` has changed.
    """

    def __init__(
        self,
        settings: Settings,
        link: FrontLink,
        metrics: Metrics,
        log: Logger,
        changed: Callable[[], None],
    ) -> None:
        self._settings, self._link, self._metrics = settings, link, metrics
        self._log, self._changed = log, changed
        self._offers: Iterator[Offer] = iter(())
        self._up, self._fresh = asyncio.Event(), asyncio.Event()
        self._ids = itertools.count(-1, -1)  # the bridge's are positive
        self._asked_at = float("-inf")
        self.failing = ""

    def engine_up(self, offers: Sequence[Offer]) -> None:
        """A (re)started engine is asked at once."""
        self._offers = itertools.cycle(offers)
        if self._settings.canary_s and offers:
            self._say(_NOT_YET)
            self._up.set()
            self._fresh.set()
        else:
            self._say("")

    def engine_down(self) -> None:
        """There is nobody to ask."""
        self._up.clear()

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await self._up.wait()
            if not self._fresh.is_set():  # this engine was asked before
                if self._link.answered_at > self._asked_at:
                    self._say("")
                pause = self._settings.canary_s
                if self.failing:
                    pause = min(pause, _AGAIN_S)
                due = max(self._asked_at, self._link.answered_at) + pause - time.monotonic()
                if due > 0:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._fresh.wait(), due)
                    continue
            self._fresh.clear()
            try:
                await self._ask(next(self._offers))
            except Exception as error:
                self._log.exception("canary")
                self._say(f"a question of our own could not be asked: {error!r}")

    async def _ask(self, offer: Offer) -> None:
        started = self._asked_at = time.monotonic()
        try:
            outcome, why = await self._answer(offer, started)
        except BridgeError as error:
            # The question may not suit this model; such a refusal is an answer too.
            refused = 400 <= error.code < 500
            outcome = "refused" if refused else "failed"
            why = "" if refused else f"a question of our own failed: {error.message}"
            if refused:
                self._log.warning("canary refused", bundle=offer.bundle_id, cause=error.message)
        if not self._up.is_set():
            return  # the engine went away meanwhile: `engine_down` was told
        self._metrics.canaries.labels(outcome).inc()
        self._say(why)

    async def _answer(self, offer: Offer, started: float) -> tuple[str, str]:
        """Ask, and wait; returns the outcome and what is wrong (empty if nothing is).

        Raises:
            BridgeError: the engine refused, or is gone.
        """
        ended: asyncio.Future[JobEvent | BridgeError] = asyncio.get_running_loop().create_future()

        def hear(said: JobEvent | BridgeError) -> None:
            if isinstance(said, Answered | Failed | BridgeError) and not ended.done():
                ended.set_result(said)

        job = await asyncio.to_thread(self._job, offer)
        self._link.submit(job, hear)
        with contextlib.suppress(asyncio.TimeoutError):
            said = await asyncio.wait_for(ended, self._settings.canary_timeout_s)
            if isinstance(said, Failed):
                raise from_code(said.code, said.message)
            if isinstance(said, BridgeError):
                raise said
            return "answered", ""
        self._link.abandon(job.id)
        self._link.tell(Cancel(job.id))
        if self._link.answered_at > started:
            return "overtaken", ""  # others were answered meanwhile
        return (
            "late",
            f"a question of our own had no answer in {self._settings.canary_timeout_s:g} s",
        )

    def _job(self, offer: Offer) -> Job:
        """The bundle's mean state at its default point, with a question."""
        encoder = Encoder.from_bytes(offer.encoder)
        layout = KVLayout.from_json(offer.source_layout_json)
        point = next(p for p in encoder.points if p.name == offer.default_point)
        asked = Job(
            id=next(self._ids),
            session=SESSION,
            frame_number=0,
            request_id=SESSION,
            question=self._settings.canary_question,
            max_new_tokens=1,
            received_ns=time.monotonic_ns(),
            bundle=offer.bundle_digest,
            hold=0,
        )
        return with_mean_frame(asked, encoder, layout, point)

    def _say(self, failing: str) -> None:
        if failing == self.failing:
            return
        before, self.failing = self.failing, failing
        if failing and not before and failing != _NOT_YET:
            self._log.warning("not answering", cause=failing)
        self._changed()
