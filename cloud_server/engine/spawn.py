"""Starts engine processes: a new one each time, or a fork of a spare that has everything loaded.

`spare.py` is the other end of the lines read here. `supervisor.py` decides when to start one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from typing import Protocol

from cloud_server.settings import Settings

_MODULE = "cloud_server.engine.process"
_SILENT_S = 60.0
_BURY_S = 0.05


class EngineProcess(Protocol):
    """An engine process, with the methods of `asyncio.subprocess.Process` that are used here."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """How it ended: its exit code, or minus the signal; None while it runs."""

    async def wait(self) -> int:
        """Wait for its end."""

    def kill(self) -> None:
        """End it."""


class Spawn(Protocol):
    """Starts engine processes, one at a time."""

    @property
    def spare_pid(self) -> int:
        """The process id of the spare; 0 without one."""

    async def __call__(self, identity: str) -> EngineProcess:
        """Start one with this identity.

        Raises:
            OSError: there are no descriptors, memory or processes left.
        """

    async def close(self) -> None:
        """End what is kept for later starts; the next start loads everything again."""


def spawn_engine(settings: Settings, address: str, module: str = _MODULE) -> Spawn:
    """Choose how engines are started, by the settings.

    Args:
        settings: handed on as JSON, without the database.
        address: where the front end listens.
        module: the module that this interpreter runs as the engine.
    """
    # Every user of the machine can read arguments, and the database's URL may hold a password.
    handed = settings.model_copy(update={"database": ""})
    command = (
        *(sys.executable, "-m", module, "--address", address),
        *("--settings", handed.model_dump_json()),
    )
    return FromSpare(command) if settings.spare else Afresh(command)


class Afresh:
    """Every engine is a new process that loads everything.

    Args:
        command: an engine's command line, without its identity.
    """

    spare_pid = 0

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command

    async def __call__(self, identity: str) -> EngineProcess:
        """See `Spawn`."""
        return await asyncio.create_subprocess_exec(
            *self._command,
            "--identity",
            identity,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr,
            start_new_session=True,
        )

    async def close(self) -> None:
        """See `Spawn`."""


class _Forked:
    """An engine that a spare makes; until then its process id is the spare's."""

    def __init__(self, spare: asyncio.subprocess.Process) -> None:
        self._spare, self._ended = spare, asyncio.Event()
        self.pid = spare.pid
        self.returncode: int | None = None

    @property
    def awaited(self) -> bool:
        """Whether the spare has yet to make it."""
        return self.pid == self._spare.pid and self.returncode is None

    async def wait(self) -> int:
        """See `EngineProcess`."""
        await self._ended.wait()
        return self.returncode or 0

    def kill(self) -> None:
        """See `EngineProcess`."""
        os.kill(self.pid, signal.SIGKILL)

    def hear(self, said: dict[str, int]) -> None:
        """Take what the spare says about it."""
        if "started" in said:
            self.pid = said["started"]
        elif said.get("ended") == self.pid:
            self.end(said["status"])

    def end(self, returncode: int) -> None:
        """It is gone."""
        if self.returncode is None:
            self.returncode = returncode
            self._ended.set()


class FromSpare:
    """Engines are forks of a spare, which is started with the first of them.

    Args:
        command: an engine's command line, without its identity.
        silent_s: a spare that owes an engine and is silent for this long, seconds, is ended.
    """

    def __init__(self, command: tuple[str, ...], silent_s: float = _SILENT_S) -> None:
        self._command, self._silent_s = command, silent_s
        self._spare: asyncio.subprocess.Process | None = None
        self._listener: asyncio.Task[None] | None = None
        self._engine: _Forked | None = None

    @property
    def spare_pid(self) -> int:
        """See `Spawn`."""
        return self._spare.pid if self._spare is not None else 0

    async def __call__(self, identity: str) -> EngineProcess:
        """See `Spawn`."""
        if self._spare is None or self._spare.returncode is not None:
            await self.close()
            self._spare = await asyncio.create_subprocess_exec(
                *self._command,
                "--spare",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            self._listener = asyncio.create_task(self._listen(self._spare))
        engine = self._engine = _Forked(self._spare)
        assert self._spare.stdin is not None  # it is a pipe
        with contextlib.suppress(ConnectionError):  # then `_listen` is about to see its end
            self._spare.stdin.write(f"{identity}\n".encode())
            await self._spare.stdin.drain()
        return engine

    async def close(self) -> None:
        """See `Spawn`."""
        spare, self._spare = self._spare, None
        if spare is None:
            return
        if spare.stdin is not None:
            spare.stdin.close()
        if spare.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                spare.kill()
        if self._listener is not None:
            await self._listener

    async def _listen(self, spare: asyncio.subprocess.Process) -> None:
        while line := await self._line(spare):
            try:
                said = json.loads(line)
            except ValueError:
                continue  # printed before the spare had standard output to itself
            if self._engine is not None and isinstance(said, dict):
                self._engine.hear(said)
        code = await spare.wait()
        if self._engine is not None:
            await _bury(self._engine.pid)
            self._engine.end(code)

    async def _line(self, spare: asyncio.subprocess.Process) -> bytes:
        """The spare's next line; a spare that owes an engine and stays silent is ended."""
        assert spare.stdout is not None  # it is a pipe
        while True:
            asked = time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(spare.stdout.readline(), self._silent_s)
            held_up = time.monotonic() - asked > 2 * self._silent_s  # then it may have spoken
            if self._engine is not None and self._engine.awaited and not held_up:
                with contextlib.suppress(ProcessLookupError):
                    spare.kill()


async def _bury(engine: int) -> None:
    """Wait for an engine whose spare is gone, if it became a child of this process.

    The first process of a container inherits such engines, and nobody else would wait for them.
    """
    with contextlib.suppress(ChildProcessError):  # it is another process's child
        while os.waitpid(engine, os.WNOHANG) == (0, 0):
            os.kill(engine, signal.SIGKILL)
            await asyncio.sleep(_BURY_S)
