"""The engine process: says hello, loads, then works job by job until told to leave.

In order: link (heartbeats from the first moment) → load → offers, ready → steps. An error while
loading is sent to the front end, and the process ends with its code. Started by
`cloud_server.engine.supervisor`; not meant to be started by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from msgspec.structs import replace

from cloud_server import engine as engines
from cloud_server.engine.base import Engine
from cloud_server.engine.jobs import (
    Broken,
    Cancel,
    Drop,
    Forget,
    Job,
    JobEvent,
    Load,
    Ready,
    Shutdown,
    Status,
    Unload,
)
from cloud_server.engine.kernels import bound_kernels
from cloud_server.engine.link import EngineLink
from cloud_server.engine.spare import keep
from cloud_server.settings import Settings, from_json
from protos.errors import BridgeError, EngineUnavailableError
from protos.process import children, console, logs
from protos.process.memory import keep_heap_compact, resident_bytes

_SWITCH_S = 0.0005
"""Longest wait of a thread for another one to release Python, such as the model for a picture."""


class _Process:
    """The engine and its link."""

    def __init__(self, settings: Settings, address: str) -> None:
        self._settings, self._address = settings, address
        self._engine: Engine | None = None
        self._loaded = False
        self._failure: BridgeError | None = None
        self._step_started = 0.0
        self._link: EngineLink
        self._said: list[JobEvent] = []
        self._log = logs.configure(settings.log_level, "engine")
        logs.adopt_libraries(self._log)

    def prepare(self) -> None:
        """Read what forks can share; `live` reports an error."""
        try:
            self._engine = engines.build(self._settings, self._said.append)
            self._engine.prepare()
        except BridgeError as error:
            self._failure = error

    def live(self, identity: str) -> int:
        """Load what `prepare` did not, then work; returns the exit code."""
        settings = self._settings
        self._link = EngineLink(
            self._address,
            identity,
            settings.heartbeat_s,
            settings.heartbeat_timeout_s,
            self._status,
            _leave,
        )
        self._link.start()
        try:
            started = time.perf_counter()
            if self._engine is None and self._failure is None:
                self._engine = engines.build(settings, self._said.append)
            if self._engine is None or self._failure is not None:
                raise self._failure or EngineUnavailableError("no engine was built")
            engine = self._engine
            offers = engine.load()
        except BridgeError as error:
            self._log.error(
                "engine cannot start", code=error.code, error=error.name, message=str(error)
            )
            self._link.send(Broken(error.code, error.message))
            self._link.stop()
            return error.exit_code
        self._loaded = True
        engine.wake, engine.news, engine.flush = self._link.wake, self._link.send, self._flush
        for offer in offers:
            self._link.send(offer)
        self._link.send(Ready(engine.model_id, time.perf_counter() - started))
        self._work(engine)
        self._link.stop()
        return 0

    def _work(self, engine: Engine) -> None:
        while True:
            message = self._link.receive(block=not engine.busy)
            while message is not None:
                if isinstance(message, Job):
                    engine.submit(message)
                elif isinstance(message, Cancel):
                    engine.cancel(message.job, bool(message.begun))
                elif isinstance(message, Forget):
                    engine.forget(message.session)
                elif isinstance(message, Drop):
                    engine.drop((message.session, message.frame_number), bool(message.base))
                elif isinstance(message, Load):
                    engine.load_bundle(message)
                elif isinstance(message, Unload):
                    engine.unload_bundle(message.digest)
                elif isinstance(message, Shutdown):
                    return
                message = self._link.receive(block=False)
            if engine.busy:
                self._step_started = time.monotonic()
                engine.step()
                self._step_started = 0.0
            self._flush()

    def _flush(self) -> None:
        if self._said:
            self._link.send(*self._said)
            self._said.clear()

    def _status(self) -> Status:
        if self._engine is None or not self._loaded:
            return Status(log_lines_dropped=logs.dropped())
        started = self._step_started
        step_s = time.monotonic() - started if started else 0.0
        return replace(
            self._engine.status(),
            step_s=step_s,
            log_lines_dropped=logs.dropped(),
            resident_bytes=resident_bytes(),
        )


def _leave() -> None:
    """End at once: the front end is gone, so nobody waits for anything."""
    os._exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run an engine process.

    Args:
        argv: arguments without the program's name; the process's own by default.

    Returns:
        The exit code: 0, or that of the error that kept the engine from starting.
    """
    children.die_with_parent()
    return console.run("cloud-server-engine", "cloud", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="cloud-server-engine", description=__doc__)
    parser.add_argument("--address", required=True, help="where the front end listens")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--identity", help="the front end's name for this engine")
    who.add_argument("--spare", action="store_true", help="load, and fork engines when asked to")
    parser.add_argument("--settings", required=True, help="the front end's settings, as JSON")
    given = parser.parse_args(argv)
    keep_heap_compact()
    bound_kernels()
    sys.setswitchinterval(_SWITCH_S)
    process = _Process(from_json(given.settings), given.address)
    if given.spare:
        return keep(process.prepare, process.live)
    return process.live(given.identity)


if __name__ == "__main__":
    sys.exit(main())
