"""Rollout: new versions of bundles replace old ones while devices send.

A wanted version is loaded beside the others, judged on its canary set, then offered to its share of
devices (`offers.py`). Sessions on another version are moved, a few at a time: their streams end
after their requests are answered, and their devices negotiate again. A version without devices is
unloaded when no session and no held scene uses it. The newest version is constantly compared with
the one before, and rolled back if it is worse.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from typing import Any

from cloud_server.engine.jobs import Load, Offer
from cloud_server.frontend.answers import Owner
from cloud_server.frontend.bridge import Bridge
from cloud_server.frontend.engines.loader import Loader, LoadingEngine, is_passing
from cloud_server.frontend.scenes import HeldScene, HeldScenes
from cloud_server.frontend.versions.comparison import FALSE_ALARMS, Comparison
from cloud_server.frontend.versions.judge import judge
from cloud_server.frontend.versions.moves import Moves
from cloud_server.frontend.versions.offers import Offered
from cloud_server.frontend.versions.plans import Plan, Wanted
from cloud_server.frontend.versions.standing import Standing, chosen
from cloud_server.frontend.versions.swaps import Swaps
from cloud_server.frontend.versions.take_backs import TakeBacks
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from cloud_server.state.bundles import SERVED, Said
from protos.errors import (
    BridgeError,
    BundleFormatError,
    FrameCorruptError,
    RiskError,
    StateError,
)
from protos.process.logs import Logger

_TURN_S = 0.5
_REPORT_S = 5.0
_AGAIN_S = 1.0
_ATTEMPTS = 5
"""Attempts to load and judge a version while engines end; the version may be the cause."""


class Rollout:
    """Makes the front end serve the wanted versions (see `Part`).

    Args:
        settings: thresholds and times.
        plan: the wanted versions.
        engines: the engines.
        loader: loads bundles into them.
        bridge: handles devices' calls.
        scenes: the scenes held.
        metrics: the service's metrics.
        log: a bound logger.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        engines: Sequence[LoadingEngine],
        loader: Loader,
        bridge: Bridge,
        scenes: HeldScenes,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._settings, self._plan, self._engines = settings, plan, engines
        self._loader, self._bridge, self._scenes = loader, bridge, scenes
        self._sessions = bridge.sessions
        self._sessions.on_refused = self._refused
        scenes.changed(self._held)
        bridge.shadows.on_measured = lambda of, owner, x: self.saw(of, owner, disagreed=x)
        self._metrics, self._log = metrics, log
        self._known: dict[str, Wanted] = {}
        self._standings: dict[str, Standing] = {}
        self._choices: dict[str, Offered] = {}
        self._coming: frozenset[str] = frozenset()
        self._comparisons: dict[str, tuple[str, str, Comparison]] = {}  # by edge model
        self._proven: set[str] = set()
        self._moves = Moves(bridge, _TURN_S)
        self._take_backs = TakeBacks(plan, log)
        self._wanted: Sequence[Wanted] = ()
        self._preparing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._reported_at = -math.inf
        self._reported: list[Said] = []
        self._leaving = False
        self._trouble = ""
        self._swaps = Swaps(log)

    # ------------------------------------------------------------------ a part of the service

    async def start(self) -> None:
        """See `Part`."""
        self._task = asyncio.create_task(self._run())

    async def drain(self) -> None:
        """See `Part`; versions no longer change."""
        await self._end(self._task, self._preparing, *self._moves.running)

    async def close(self) -> None:
        """See `Part`."""
        await self._end(self._task, self._preparing, *self._moves.running)
        with contextlib.suppress(StateError):
            await asyncio.to_thread(self._plan.close)

    async def _end(self, *tasks: asyncio.Task[None] | None) -> None:
        self._leaving = True
        live = [task for task in tasks if task is not None and not task.done()]
        for task in live:
            task.cancel()
        if live:
            await asyncio.wait(live)

    def change(self, settings: Settings) -> None:
        """Apply settings that were read again, and bundles that were replaced in their folders."""
        self._settings = settings
        self._plan.read(settings.bundles)
        self.look()

    def look(self) -> None:
        """Check the plan now."""
        self._wake.set()

    # ------------------------------------------------------------------ new engines

    async def catch_up(self, engine: LoadingEngine, offers: Sequence[Offer]) -> None:
        """Load into a (re)started engine the bundles that the others have, before it gets jobs.

        While it cannot (a folder was changed, the disk is gone) and others serve, it stays out and
        tries again.

        Args:
            engine: the engine.
            offers: the bundles that it started with.
        """
        with contextlib.suppress(StateError):  # the last plan read stays valid
            self._wanted = await asyncio.to_thread(self._plan.versions)
            self._adopt(self._wanted)
        for offer in offers:
            await self._began_with(engine, offer)
        has, told = {offer.bundle_digest for offer in offers}, ""
        while lacking := [s for s in self._standings.values() if s.offer and s.digest not in has]:
            standing = lacking[0]
            try:
                await self._loader.load(engine, self._load(standing.version))
            except BridgeError as error:
                if not engine.running:
                    return
                others = any(other.ready for other in self._engines)
                if told != error.message:
                    told = error.message
                    self._log.error(
                        "a bundle cannot be loaded again; the other engines serve it on"
                        if others
                        else "a bundle cannot be loaded again",
                        digest=standing.digest,
                        cause=told,
                    )
                if others:
                    await asyncio.sleep(_AGAIN_S)
                    continue
                standing.offer, standing.state, standing.why = None, "refused", told
            has.add(standing.digest)
        self._offer()
        self.look()

    async def _began_with(self, engine: LoadingEngine, offer: Offer) -> None:
        """Note a bundle that an engine started with."""
        digest = offer.bundle_digest
        if digest not in self._known:
            version = self._plan.began_with(offer)
            if version is None:
                self._log.error(
                    "a bundle is not served: it was replaced on disk, and the database knows "
                    "nothing of it (cloud-server bundles add)",
                    bundle=offer.bundle_id,
                    digest=digest,
                )
                self._loader.unload_all([engine], digest)
                return
            self._known[digest] = version
        standing = self._standings.get(digest)
        if standing is None:
            standing = self._standings[digest] = Standing(self._known[digest], "serving")
        standing.offer = offer
        if not standing.up:
            standing.state = "serving"

    # ------------------------------------------------------------------ outcomes of frames

    def saw(self, digest: str, owner: Owner, **outcomes: float | None) -> None:
        """Add the outcomes of an owner's frame, by kind (`comparison.KINDS`); 1 is bad."""
        standing = self._standings.get(digest)
        if standing is None:
            return
        standing.remember(owner, outcomes)
        compared = self._comparisons.get(standing.version.source)
        if compared is not None and digest in compared[:2]:
            compared[2].see(digest == compared[0], owner, **outcomes)

    def _held(self, scene: HeldScene) -> None:
        """Count an accepted frame."""
        owner, fallback = (scene.tenant, scene.device), float(bool(scene.fallback))
        self.saw(scene.bundle, owner, refused=0.0, fallback=fallback, risk=scene.risk)

    def _refused(self, digest: str, owner: Owner, error: BridgeError) -> None:
        """Count a refused frame, unless it was damaged on the way or the service was busy."""
        of_frame = 200 <= error.code < 300 and not isinstance(error, FrameCorruptError)
        if of_frame or isinstance(error, RiskError):
            self.saw(digest, owner, refused=1.0)

    # ------------------------------------------------------------------ the loop

    async def _run(self) -> None:
        while not self._leaving:  # `wait_for` may swallow a cancellation
            self._wake.clear()
            try:
                await self._turn()
            except Exception:
                self._log.exception("rollout")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _TURN_S)

    async def _turn(self) -> None:
        trouble = ""
        try:
            await self._take_backs.settle()
            self._wanted = await asyncio.to_thread(self._plan.versions)
        except StateError as error:  # what was wanted last is wanted still
            trouble = error.message
        self._adopt(self._wanted)
        await self._compare()
        self._prepare_next()
        self._offer()
        self._moves.some()
        await self._retire()
        served = [s.version for s in self._standings.values() if s.up and s.version.path]
        await self._swaps.look(served)
        try:
            await self._report()
        except StateError as error:
            trouble = trouble or error.message
        if trouble and trouble != self._trouble:
            self._log.error(
                "the database of versions of bundles cannot be used; what was wanted last is "
                "served on",
                cause=trouble,
            )
        self._trouble = trouble

    def _adopt(self, wanted: Sequence[Wanted]) -> None:
        """Apply the wanted state of each version."""
        for version in self._take_backs.applied(wanted):
            self._known[version.digest] = version
            standing = self._standings.get(version.digest)
            if standing is None:
                if version.wanted in SERVED:
                    self._standings[version.digest] = Standing(version, "wanted")
                continue
            again = version.order_no != standing.version.order_no
            standing.version = version
            if again and version.wanted in SERVED and not standing.up:
                if standing.state in ("refused", "gone"):
                    standing.state, standing.why, standing.judged = "wanted", "", None
                    standing.attempts = 0

    def _prepare_next(self) -> None:
        if self._preparing is not None and not self._preparing.done():
            return
        if not any(engine.ready for engine in self._engines):
            return
        for standing in self._standings.values():
            if standing.version.wanted not in SERVED:
                continue
            if standing.state == "wanted":
                self._preparing = asyncio.create_task(self._prepare(standing))
                return
            if standing.up and standing.judged is None and not standing.version.unjudged:
                self._preparing = asyncio.create_task(self._judge_late(standing))
                return

    def _load(self, version: Wanted) -> Load:
        """The order to load a version, with the keys that are trusted now."""
        return Load(version.digest, version.path, str(self._settings.trusted_keys or ""))

    async def _prepare(self, standing: Standing) -> None:
        """Load and judge a version."""
        version = standing.version
        up = [engine for engine in self._engines if engine.ready]
        asked = self._load(version)
        standing.state = "loading"
        standing.attempts += 1
        try:
            offer, standing.memory_bytes = await self._loader.load_all(up, asked)
            self._log.info("bundle loaded", bundle=version.bundle_id, version=version.version)
            if not version.unjudged:
                standing.state = "judging"
                await self._judge(standing, offer, up[0])
            while fresh := [e for e in self._engines if e.ready and e not in up]:
                await self._loader.load_all(fresh, asked)  # an engine restarted meanwhile
                up += fresh
            standing.offer, standing.state = offer, "serving"
            self._log.info(
                "bundle serves",
                bundle=version.bundle_id,
                version=version.version,
                judged=str(standing.judged or "not judged"),
            )
        except BridgeError as error:
            if is_passing(error) and standing.attempts < _ATTEMPTS:
                standing.state = "wanted"  # try again
                return
            await self._refuse(standing, error.message)
        except asyncio.CancelledError:
            standing.state = "wanted"
            raise
        except Exception as error:
            self._log.exception("a version could not be prepared")
            await self._refuse(standing, f"{type(error).__name__}: {error}")
        self.look()

    async def _judge_late(self, standing: Standing) -> None:
        """Judge a version that the engines started with; it serves until another one can."""
        assert standing.offer is not None, "it is up"
        try:
            up = next(engine for engine in self._engines if engine.ready)
            await self._judge(standing, standing.offer, up)
        except (BridgeError, StopIteration) as error:
            if isinstance(error, StopIteration) or is_passing(error):
                return
            standing.why = error.message
            self._log.error(
                "a bundle that serves was judged and failed",
                bundle=standing.version.bundle_id,
                version=standing.version.version,
                cause=error.message,
            )
            await self._take_backs.add(standing.version, error.message)
        self.look()

    async def _judge(self, standing: Standing, offer: Offer, engine: LoadingEngine) -> None:
        """Judge a loaded version by its certificate and its canary set.

        Raises:
            BundleFormatError: one of them is not good enough.
            EngineUnavailableError: the engine has ended.
        """
        settings = self._settings
        if offer.doubt:
            raise BundleFormatError(f"its certificate does not vouch for it: {offer.doubt}")
        standing.judged = await judge(
            offer,
            engine.link,
            settings.max_new_tokens,
            settings.canary_timeout_s,
            settings.canary_agreement,
        )
        if not standing.judged.passed:
            raise BundleFormatError(f"judged on its canary set: {standing.judged}")

    async def _refuse(self, standing: Standing, why: str) -> None:
        version = standing.version
        standing.state, standing.why, standing.offer = "refused", why, None
        self._metrics.bundle_refusals.inc()
        self._log.error(
            "bundle refused", bundle=version.bundle_id, version=version.version, cause=why
        )
        up = [engine for engine in self._engines if engine.ready]
        self._loader.unload_all(up, version.digest)
        await self._take_backs.add(version, why)

    # ------------------------------------------------------------------ offers

    def _offer(self) -> None:
        """Offer the wanted versions that are loaded; begin to move sessions on other versions."""
        choices = chosen(self._standings.values())
        coming = frozenset(
            standing.version.source
            for standing in self._standings.values()
            if standing.state in ("wanted", "loading", "judging")
        )
        if (choices, coming) == (self._choices, self._coming):
            return
        moves = choices != self._choices
        self._choices, self._coming = choices, coming
        self._sessions.serve(choices, self._loaded(), coming)
        if not moves:
            return
        misplaced = self._sessions.misplaced()
        self._moves.begin(misplaced, self._settings.bundle_move_s)
        if misplaced:
            self._log.info("sessions are asked to move", sessions=len(misplaced))

    def _loaded(self) -> list[Offer]:
        return [s.offer for s in self._standings.values() if s.up and s.offer is not None]

    async def _retire(self) -> None:
        """Unload versions that serve no device and that nothing uses."""
        now = asyncio.get_running_loop().time()
        served = {o.bundle_digest for choice in self._choices.values() for o in choice.every}
        for digest, standing in self._standings.items():
            if not standing.up:
                continue
            if digest in served:
                standing.state, standing.unused_since = "serving", math.inf
                continue
            standing.state = "retiring"
            if self._sessions.on(digest):
                standing.unused_since = math.inf
                continue
            standing.unused_since = min(standing.unused_since, now)
            idle_s = now - standing.unused_since
            if self._scenes.of_bundle(digest) and idle_s < self._settings.bundle_scenes_s:
                continue
            self._scenes.forget_bundle(digest)
            standing.state, standing.offer, standing.memory_bytes = "gone", None, 0
            up = [engine for engine in self._engines if engine.ready]
            self._loader.unload_all(up, digest)
            version = standing.version
            self._log.info("bundle retired", bundle=version.bundle_id, version=version.version)
            self._sessions.serve(self._choices, self._loaded(), self._coming)

    # ------------------------------------------------------------------ comparison

    async def _compare(self) -> None:
        """Compare each edge model's newest version with the one before; roll a worse one back."""
        for source, choice in self._choices.items():
            pair = self._pair_of(source, choice)
            compared = self._comparisons.get(source)
            if pair is None:
                continue
            if compared is None or compared[:2] != pair:
                compared = self._comparisons[source] = (*pair, self._comparison_of(*pair))
                self._proven.add(pair[1])
            worse = compared[2].worse(settled=self._moves.settled)
            if worse is not None:
                standing = self._standings[pair[0]]
                del self._comparisons[source]
                standing.why = f"does worse than the version before: {worse}"
                self._metrics.bundle_rollbacks.inc()
                self._log.error(
                    "bundle rolled back",
                    bundle=standing.version.bundle_id,
                    version=standing.version.version,
                    cause=str(worse),
                )
                await self._take_backs.add(standing.version, standing.why)
                self.look()

    def _pair_of(self, source: str, choice: Offered) -> tuple[str, str] | None:
        """The new version and the one before; None if there is nothing to compare."""
        if choice.candidate is not None:
            return choice.candidate.bundle_digest, choice.offer.bundle_digest
        new = choice.offer.bundle_digest
        if self._standings[new].version.wanted not in SERVED:
            return None  # it was rolled back just now
        replaced = [
            standing
            for standing in self._standings.values()
            if standing.version.source == source and standing.version.wanted == "replaced"
        ]
        if not replaced or new in self._proven:
            return None
        return new, max(replaced, key=lambda s: s.version.order_no).version.digest

    def _comparison_of(self, new: str, old: str) -> Comparison:
        settings = self._settings
        made = Comparison(settings.bundle_margin, FALSE_ALARMS)
        for digest in (old, new):
            for owner, outcomes in self._standings[digest].remembered:
                made.see(digest == new, owner, **outcomes)
        return made

    # ------------------------------------------------------------------ reports

    async def _report(self) -> None:
        said = [self._said(standing) for standing in self._standings.values()]
        for one in said:
            self._metrics.bundle_sessions.labels(one.digest[:12]).set(one.sessions)
        now = asyncio.get_running_loop().time()
        states = [(one.digest, one.state, one.why) for one in said]
        before = [(one.digest, one.state, one.why) for one in self._reported]
        served = [s.digest for s in self._standings.values() if s.good and not s.version.served]
        if states == before and not served and now - self._reported_at < _REPORT_S:
            return
        await asyncio.to_thread(self._plan.report, said, served)
        self._reported, self._reported_at = said, now

    def _said(self, standing: Standing) -> Said:
        figures: dict[str, Any] = {}
        if standing.judged is not None:
            figures["judged"] = standing.judged.figures()
        compared = self._comparisons.get(standing.version.source)
        if compared is not None and compared[0] == standing.version.digest:
            figures["compared"] = compared[2].figures()
        return Said(
            "",
            standing.version.digest,
            standing.state,
            self._sessions.on(standing.version.digest),
            standing.memory_bytes,
            standing.why,
            figures,
        )
