"""CheckUpdate and FetchUpdate: devices' software is updated, stage by stage.

Which device is to take what is in the database (`state/update_offers.py`), so every front end
answers alike. The files lie in the service's directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from cloud_server.frontend.access.gate import Gate
from cloud_server.frontend.admission.openings import Openings
from cloud_server.frontend.refuse import Refusals
from cloud_server.identity.caller import Caller
from cloud_server.metrics import Metrics
from cloud_server.state import update_offers
from cloud_server.state.store import Store
from cloud_server.state.update_moves import HALTED, Software
from cloud_server.state.update_offers import OfferedUpdate, Told, UpdateOffer
from cloud_server.state.updates import file_of
from protos.errors import BridgeError, FrameMalformedError, MissingError, StateError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.folders import open_file
from protos.process.logs import Logger
from protos.update import MAX_BYTES

_TURN_S = 15.0
_CHUNK_BYTES = 256 * 1024
_MOST_BYTES = 4 << 20
"""Sent in one call, however many were asked for."""
_MOST_REQUEST = 64 * 1024
_MOST_STATES = 32
_AT_ONCE = 4
"""Threads that wait for the database or the disk; other calls wait for them."""
_STATES = ("waiting", "fetched", "trial", "kept", "failed")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_Request = TypeVar("_Request", bound=Message)
_Result = TypeVar("_Result")


class Updates:
    """The two RPCs, and the look at the offers now and then.

    Args:
        store: the database; None on a service without one, which offers nothing.
        directory: of the service; None without one.
        gate: checks callers.
        openings: counts their calls.
        metrics: what is counted.
        refusals: counts refusals.
        log: a bound logger.
    """

    def __init__(
        self,
        store: Store | None,
        directory: Path | None,
        gate: Gate,
        openings: Openings,
        metrics: Metrics,
        refusals: Refusals,
        log: Logger,
    ) -> None:
        self._store, self._directory = store, directory
        self._gate, self._openings, self._metrics = gate, openings, metrics
        self._refusals, self._log = refusals, log
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        self._halted: set[tuple[str, str, str]] = set()

    def start(self) -> None:
        """Begin to look at the offers."""
        if self._store is not None:
            self._task = asyncio.create_task(self._run(self._store))

    async def close(self) -> None:
        """End."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def check(self, raw: bytes, context: Any) -> pb.CheckUpdateResponse:
        """Hear what a device runs, and tell it what to install."""
        try:
            caller = self._gate.device(context)
            self._openings.call(caller, context)
            request = _read(pb.CheckUpdateRequest, raw)
            software, told = _software(request), _told(request)
            found = None
            if self._store is not None and caller.kind == "device":
                store = self._store
                found = await self._in_turn(lambda: _check(store, caller, software, told))
        except BridgeError as error:
            await self._refusals.abort(context, error, "CheckUpdate")
        if found is None:
            return pb.CheckUpdateResponse()
        return pb.CheckUpdateResponse(
            digest=found.digest,
            number=found.number,
            version=found.version,
            size_bytes=found.size_bytes,
            older=found.older,
        )

    async def fetch(self, raw: bytes, context: Any) -> AsyncIterator[pb.Chunk]:
        """Send a part of an update to a device that it is offered to."""
        try:
            caller = self._gate.device(context)
            self._openings.call(caller, context)
            request = _read(pb.FetchUpdateRequest, raw)
            path = await self._in_turn(lambda: self._file(caller, request.digest))
        except BridgeError as error:
            await self._refusals.abort(context, error, "FetchUpdate")
        at = min(request.offset, MAX_BYTES)
        end = at + min(request.length, _MOST_BYTES)
        while True:
            count = min(_CHUNK_BYTES, end - at)
            try:
                data, total = await self._in_turn(lambda: _part(path, at, count))  # noqa: B023
            except BridgeError as error:
                await self._refusals.abort(context, error, "FetchUpdate")
            self._metrics.update_bytes.inc(len(data))
            yield pb.Chunk(data=data, total_bytes=total)
            at += len(data)
            if not data or at >= min(end, total):
                return

    async def turn(self) -> None:
        """Move offers whose time has come, and show how all of them go."""
        if self._store is not None:
            store = self._store
            self._show(await self._in_turn(lambda: _turn(store)))

    async def _run(self, store: Store) -> None:
        trouble = ""
        while True:
            try:
                await self.turn()
                trouble = ""
            except BridgeError as error:
                if error.message != trouble:  # once, not every few seconds
                    self._log.warning("updates not looked at", cause=error.message)
                trouble = error.message
            except Exception:
                self._log.exception("updates not looked at")
            await asyncio.sleep(_TURN_S)

    async def _in_turn(self, work: Callable[[], _Result]) -> _Result:
        async with self._at_once:
            return await asyncio.to_thread(work)

    def _file(self, caller: Caller, digest: str) -> Path:
        """The file of an update that is offered to a device.

        Raises:
            MissingError: none is, in the same words whether another device is offered it or nobody.
            StateError: the database cannot be read.
        """
        if self._store is not None and self._directory is not None and caller.kind == "device":
            with self._store.read() as session:
                known = _DIGEST.fullmatch(digest)
                if known and update_offers.may_fetch(session, caller.tenant, caller.name, digest):
                    return file_of(self._directory, digest)
        raise MissingError("no such update is offered to this device now: call CheckUpdate")

    def _show(self, offers: list[UpdateOffer]) -> None:
        self._metrics.update_devices.clear()
        self._metrics.update_halted.clear()
        halted = set()
        for one in offers:
            which = (one.tenant, str(one.update.number), one.update.digest[:12])
            for state, count in one.counts.items():
                self._metrics.update_devices.labels(*which, state).set(count)
            self._metrics.update_halted.labels(*which).set(one.state == HALTED)
            if one.state == HALTED:
                halted.add(which)
                if which not in self._halted:
                    self._log.error(
                        "update halted", tenant=one.tenant, number=one.update.number, why=one.note
                    )
        self._halted = halted


def _check(
    store: Store, caller: Caller, software: Software, told: list[Told]
) -> OfferedUpdate | None:
    with store.write(f"device:{caller.name}", quiet=True) as tx:
        return update_offers.check(tx, caller.tenant, caller.name, software, told)


def _turn(store: Store) -> list[UpdateOffer]:
    with store.read() as session:
        idle = not update_offers.any_running(session)
    if not idle:
        with store.write("service", quiet=True) as tx:
            update_offers.turn(tx)
            return update_offers.every(tx.session, tx.now_s)
    with store.read() as session:
        return update_offers.every(session, 0.0)


def _part(path: Path, at: int, count: int) -> tuple[bytes, int]:
    """Bytes of a file, and its size.

    Raises:
        StateError: it cannot be read: another front end may have it.
    """
    try:
        with open_file(path) as file:
            return os.pread(file.fileno(), count, at), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise StateError(
            f"the update's file cannot be read here ({error.strerror}): share DIRECTORY/updates "
            "between front ends, or add the update on each machine"
        ) from error


def _read(kind: type[_Request], raw: bytes) -> _Request:
    if len(raw) > _MOST_REQUEST:
        raise FrameMalformedError(f"a {kind.__name__} of {len(raw)} bytes")
    try:
        request: _Request = kind.FromString(raw)
    except DecodeError as error:
        raise FrameMalformedError(f"not a {kind.__name__}: {error}") from error
    return request


def _software(request: pb.CheckUpdateRequest) -> Software:
    for name in ("machine", "python", "jetpack"):
        if not _WORD.fullmatch(getattr(request, name)):
            raise FrameMalformedError(f"{name} {getattr(request, name)[:64]!r} is no plain word")
    _require_digest(request.digest)
    if request.number >= 1 << 53:
        raise FrameMalformedError(f"number {request.number} is above 2^53")
    return Software(
        request.machine,
        request.python,
        request.jetpack,
        request.number,
        request.digest,
        request.takes,
        request.takes_older,
    )


def _told(request: pb.CheckUpdateRequest) -> list[Told]:
    if len(request.states) > _MOST_STATES:
        raise FrameMalformedError(f"{len(request.states)} states, at most {_MOST_STATES}")
    for one in request.states:
        _require_digest(one.digest)
        if one.state not in _STATES:
            raise FrameMalformedError(f"state {one.state[:64]!r} is none of {', '.join(_STATES)}")
    return [
        Told(one.digest, one.state, _printable(one.cause), min(one.failures, 1 << 30))
        for one in request.states
    ]


def _printable(text: str) -> str:
    return "".join(each for each in text[:200] if each.isprintable())


def _require_digest(text: str) -> None:
    if text and not _DIGEST.fullmatch(text):
        raise FrameMalformedError(f"{text[:64]!r} is no SHA-256 in hexadecimal digits")
