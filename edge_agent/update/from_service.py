"""Takes the updates that the service offers, within what this device's owner allows.

The calls, in order: `CheckUpdate` (what runs here, how did the last ones go) → `Fetch.run` → the
signature is verified → `waiting.json` is written. systemd sees that file and starts
`edge-agent update waiting` as root (`waiting.py`), because this process may not write the slots.
The new agent then tells the service how it went, by its next `CheckUpdate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from edge_agent.metrics import Metrics
from edge_agent.update import told
from edge_agent.update.boot import Slots
from edge_agent.update.device import Platform
from edge_agent.update.fetch import Fetch, NotNowError
from edge_agent.update.settings import UpdateSettings
from edge_agent.update.told import FETCHED, WAITING, Here, Stand
from edge_agent.uplink.call_errors import error_of
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.dial import Dial
from projector.bundle.keys import TrustedKeys
from projector.bundle.update import open_update
from protos.errors import (
    BridgeError,
    ConfigError,
    DiskFullError,
    FrameMalformedError,
    NotAllowedHereError,
    SignatureError,
    UpdateError,
)
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.process.files import sync_folder, write_file, writing
from protos.process.logs import Logger
from protos.update import SUFFIX

FOLDER = "updates"
"""Folder of fetched updates in the state directory."""
WAITS, REFUSED = "waiting.json", "refused.json"
HOURS = "hours"
"""Why an update waits: it is outside the hours that the owner allows."""
MOST_NUMBER = 1 << 53
"""Numbers of updates are below this."""
_CLOCK_SET_S = 1_600_000_000.0
_FIRST_S = 60.0
_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 900.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Offered:
    """What the service offers this device."""

    digest: str
    number: int
    version: str
    size_bytes: int
    older: bool


@dataclass
class FromService:
    """Keeps one device up to date.

    Attributes:
        settings: what this device's owner allows.
        state: the state directory.
        dial: makes a channel to the service.
        connected: whether the service can be reached; nothing is asked while it cannot.
        busy: whether frames are on their way; they go first.
        metrics: counts fetched bytes.
        log: structured logger.
        timeout_s: longest wait for the service.
        now: seconds since 1970.
        sleep: waits that many seconds.
        shown: what is under way, for the status; None if nothing is.
    """

    settings: UpdateSettings
    state: Path
    dial: Dial
    connected: Callable[[], bool]
    busy: Callable[[], bool]
    metrics: Metrics
    log: Logger
    timeout_s: float = 30.0
    now: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    shown: dict[str, Any] | None = None
    _why: dict[str, Stand] = field(default_factory=dict, repr=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _pause_s: float = field(default=0.0, repr=False)

    @property
    def slots(self) -> Slots:
        """The slots."""
        return Slots(self.settings.slots)

    @property
    def folder(self) -> Path:
        """Where updates are fetched to."""
        return self.state / FOLDER

    async def run(self) -> None:
        """Ask now and then, and install what is offered, until cancelled."""
        self.again()
        pause_s = _FIRST_S
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s * random.uniform(0.5, 1.0))
            self._wake.clear()
            while not self.connected():
                await self.sleep(1.0)
            pause_s = await self.turn()

    def look(self) -> None:
        """Ask the service soon: it said that there is something."""
        self._wake.set()

    async def turn(self) -> float:
        """Ask once, and take what is offered; returns the seconds until the next time."""
        try:
            with writing(self.folder):
                async with self.dial() as channel:
                    done = await self._turn(channel)
        except BridgeError as error:
            self._pause_s = min(max(_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
            self.metrics.update_failures.labels(error.name).inc()
            self.log.warning("update_not_taken", error=error.name, cause=str(error))
            return min(self._pause_s, self.settings.update_check_s)
        self._pause_s = 0.0
        return _PAUSE_S if done else self.settings.update_check_s

    async def ask(self, channel: grpc.aio.Channel) -> tuple[Here | None, Offered | None]:
        """Tell the service what runs here; returns that, and what it offers.

        Raises:
            FrameMalformedError: its reply makes no sense.
            BridgeError: its refusal, typed; OfflineError if nobody answers.
        """
        here, chosen = await asyncio.to_thread(self._here), self.settings
        device = Platform.here()
        request = bridge_pb2.CheckUpdateRequest(
            machine=device.machine,
            python=device.python,
            jetpack=device.jetpack,
            number=here.number if here is not None else 0,
            digest=here.digest if here is not None else "",
            takes=chosen.update_from_service and here is not None,
            takes_older=chosen.update_older,
        )
        stands = dict(here.stands) if here is not None else {}
        for digest, one in stands.items():
            request.states.add(
                digest=digest, state=one.state, cause=one.cause, failures=one.failures
            )
        for digest, one in self._why.items():
            if digest not in stands:
                request.states.add(digest=digest, state=one.state, cause=one.cause)
        try:
            reply = await bridge_pb2_grpc.BridgeStub(channel).CheckUpdate(
                request, timeout=self.timeout_s
            )
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:  # an older service
                return here, None
            raise error_of(error) from error
        if not reply.digest:
            return here, None
        if not _DIGEST.fullmatch(reply.digest) or not 0 < reply.number < MOST_NUMBER:
            raise FrameMalformedError(
                f"the service offers the update {reply.digest[:80]!r}, number {reply.number}"
            )
        return here, Offered(
            reply.digest, reply.number, reply.version[:64], reply.size_bytes, reply.older
        )

    def again(self) -> None:
        """Show an update that is not installed yet to systemd again.

        After a start, as the power may have gone; and where root had no room for it.
        """
        with contextlib.suppress(OSError):
            waits = told.read_object(self.folder / WAITS)
            if waits and not self._is_over(waits):
                write_file(self.folder / WAITS, json.dumps(waits).encode(), 0o600)

    # ------------------------------------------------------------------ one turn

    async def _turn(self, channel: grpc.aio.Channel) -> bool:
        """Returns whether something was handed over, so that the next look comes soon."""
        here, offered = await self.ask(channel)
        if here is None:
            return False
        waits = told.read_object(self.folder / WAITS)
        if waits and not self._is_over(waits):
            if offered is not None and waits.get("digest") == offered.digest:
                stand = here.stands.get(offered.digest)
                if stand is not None and stand.state == WAITING:  # root had no room for it
                    self._show(offered, WAITING, cause=stand.cause)
                    self.again()
                return False  # root installs it
        await asyncio.to_thread(self._clean, offered.digest if offered is not None else "")
        self.shown = None
        if offered is None or here.on_trial or not self.settings.update_from_service:
            self._why.clear()
            return here.on_trial  # how the trial ends is told soon
        self._show(offered, WAITING)
        why = self._why_not(offered)
        if why:
            return await self._wait(channel, offered, why)
        try:
            await self._take(channel, offered)
        except NotNowError:
            return await self._wait(channel, offered, HOURS)
        except DiskFullError as error:
            self.log.warning("update_waits", number=offered.number, cause=str(error))
            return await self._wait(channel, offered, error.name)
        except (SignatureError, UpdateError, NotAllowedHereError) as error:
            self._refuse(offered, error)
        await self.ask(channel)
        return True

    async def _wait(self, channel: grpc.aio.Channel, offered: Offered, why: str) -> bool:
        self._show(offered, WAITING, cause=why)
        before, self._why = self._why, {offered.digest: Stand(WAITING, why)}
        if before != self._why:
            await self.ask(channel)  # so that the operator sees why nothing happens
        return False

    async def _take(self, channel: grpc.aio.Channel, offered: Offered) -> None:
        whole = self.folder / f"{offered.digest}{SUFFIX}"
        if not whole.is_file():
            fetch = Fetch(
                self.folder,
                self.settings.update_bytes_per_s,
                self.busy,
                self.timeout_s,
                sleep=self.sleep,
                told=lambda at: self._show(offered, "fetching", at),
                allowed=lambda: _within(self.settings.update_hours, self.now()),
            )
            resumed = fetch.part_of(offered.digest).exists()
            try:
                part = await self._fetched(fetch, channel, offered)
            except (SignatureError, UpdateError):
                if not resumed:
                    raise
                # A power cut may have left rubbish where it broke off.
                part = await self._fetched(fetch, channel, offered)
            with writing(whole):
                os.replace(part, whole)
                sync_folder(self.folder)
        waits = {
            "digest": offered.digest,
            "number": offered.number,
            "version": offered.version,
            "older": offered.older,
            "failures": self._failures(offered.digest),
        }
        self._why.clear()
        self._show(offered, FETCHED)
        with writing(self.folder / WAITS):
            write_file(self.folder / WAITS, json.dumps(waits).encode(), 0o600)
        self.log.info("update_fetched", number=offered.number, version=offered.version)

    async def _fetched(self, fetch: Fetch, channel: grpc.aio.Channel, offered: Offered) -> Path:
        part = await fetch.run(channel, offered.digest, offered.size_bytes)
        await asyncio.to_thread(self._verify, part, offered)
        return part

    def _verify(self, part: Path, offered: Offered) -> None:
        """Verify a fetched file; a bad one is removed.

        Raises:
            SignatureError, UpdateError: it is not what it should be.
            ConfigError: no keys are listed here.
        """
        try:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            with open_update(part, TrustedKeys.load(self.settings.update_keys)) as update:
                if update.digest != offered.digest:
                    raise UpdateError(
                        f"the service sent another update than {offered.digest[:12]}…"
                    )
        except (SignatureError, UpdateError):
            part.unlink(missing_ok=True)
            raise

    def _refuse(self, offered: Offered, error: BridgeError) -> None:
        self.log.error("update_refused", number=offered.number, error=error.name, cause=str(error))
        self._why.clear()
        with writing(self.folder / REFUSED):
            told.add_refused(self.folder / REFUSED, offered.digest, error.name)
        self._show(offered, told.FAILED, cause=error.name)

    def _why_not(self, offered: Offered) -> str:
        """Why an offered update waits; empty if it does not."""
        if not self.settings.update_keys.is_file():
            return "no_keys"
        if not _within(self.settings.update_hours, self.now()):
            return HOURS
        return ""

    # ------------------------------------------------------------------ the disk

    def _here(self) -> Here | None:
        """What runs, and how updates stand; one that was handed over is fetched."""
        here, waits = self._runs(), told.read_object(self.folder / WAITS)
        if here is not None and waits and not self._is_over(waits):
            digest = str(waits["digest"])
            before = here.stands.get(digest)
            if before is None or before.state != WAITING:
                here.stands[digest] = Stand(FETCHED, "", self._failures(digest))
        return here

    def _runs(self) -> Here | None:
        return told.here(self.slots, self.folder / REFUSED)

    def _failures(self, digest: str) -> int:
        here = self._runs()
        found = here.stands.get(digest) if here is not None else None
        return found.failures if found is not None else 0

    def _is_over(self, waits: dict[str, Any]) -> bool:
        """Whether an update that was handed over is on trial, is kept, or failed."""
        here, digest, before = self._runs(), waits.get("digest"), waits.get("failures")
        if here is None or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            return True
        if digest in (here.digest, here.trial) or not isinstance(before, int):
            return True
        return self._failures(digest) > before

    def _clean(self, wanted: str) -> None:
        """Remove all but the file of one update."""
        keep = {REFUSED, f"{wanted}.part", f"{wanted}{SUFFIX}"}
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.name not in keep:
                    path.unlink(missing_ok=True)

    def _show(self, offered: Offered, state: str, at: int | None = None, cause: str = "") -> None:
        before = self.shown.get("bytes") if self.shown is not None else None
        if at is not None and before is not None:
            self.metrics.update_bytes.inc(max(0, at - int(before)))
        self.shown = {
            "number": offered.number,
            "version": offered.version,
            "state": state,
            "bytes": at,
            "size_bytes": offered.size_bytes,
            "cause": cause or None,
        }


def _within(hours: str, now_s: float) -> bool:
    """Whether a moment is in a window of local hours; a clock that is not set is in none."""
    if not hours:
        return True
    if now_s < _CLOCK_SET_S:
        return False
    begin, end = map(int, hours.split("-"))
    hour = time.localtime(now_s).tm_hour
    return begin <= hour < end if begin < end else hour >= begin or hour < end


def updates_for(
    settings: UpdateSettings,
    state: Path | None,
    dial: Dial,
    uplink: Uplink,
    metrics: Metrics,
    log: Logger,
    now: Callable[[], float],
) -> FromService | None:
    """The updates of a running agent; None on a device without slots.

    Args:
        settings: what this device's owner allows.
        state: the state directory.
        dial: makes a channel to the service.
        uplink: its frames go first.
        metrics: of the agent.
        log: structured logger.
        now: seconds since 1970.
    """
    if state is None or Slots(settings.slots).state() is None:
        return None
    return FromService(
        settings,
        state,
        dial,
        lambda: uplink.connected,
        lambda: uplink.held > 0,
        metrics,
        log,
        now=now,
    )


def require_state(state: Path | None) -> Path:
    """The state directory.

    Raises:
        ConfigError: there is none.
    """
    if state is None:
        raise ConfigError("no home folder that can be written: give --state-dir")
    return state
