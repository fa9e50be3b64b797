"""A device in the field: the real agent in a namespace of its own, enrolled at a real service.

Pictures are put into the folder that it watches. Every one of them has to have exactly one record
in the end, with an answer: `Device.ended` says how many have none, and how many records are too
many.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import io
import json
import os
import random
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serve.identities import TENANTS, Identities, certified
from benchmarks.serve.site import secured
from cloud_server.identity.authority import DAY_S
from cloud_server.state import codes, devices
from cloud_server.state.location import open_store
from edge_agent.identity.enrol import enrol
from edge_agent.identity.identity import Identity
from edge_agent.identity.identity_file import IdentityFile
from protos.identity import OneTimeCode
from reference.demo.halves import ENVIRONMENT, Ready, cloud_server, ready
from reference.demo.processes import Child
from reference.demo.testset import TestSet
from tests.edge_faults.way import Way

QUESTION = "is there a fire ?"
TENANT = TENANTS[0]
_LOOK_S = 0.05
_PATIENCE_S = 120.0


@functools.cache
def files() -> list[bytes]:
    """Pictures of the yard, as files."""
    made = []
    for picture in TestSet.load("test", 24, 1).pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        made.append(file.getvalue())
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(holds: Callable[[], bool], what: str, patience_s: float = _PATIENCE_S) -> float:
    """Wait until something holds; returns how long that took, seconds.

    Raises:
        TimeoutError: it did not.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience_s:
            raise TimeoutError(f"{what}: not within {patience_s:g} s")
        time.sleep(_LOOK_S)
    return time.monotonic() - began


@dataclass
class Service:
    """A front end with identities and the reference model, which comes back at the same ports.

    Attributes:
        folder: for its logs.
        identities: of its authority, devices and tenants.
        flags: further ones.
    """

    folder: Path
    identities: Identities
    flags: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    open_port: int = field(default_factory=free_port)
    at: Ready | None = None
    _starts: int = 0
    _child: Child | None = None

    def start(self) -> Service:
        """Start it, and wait until it takes requests."""
        self._starts += 1
        log = self.folder / f"service-{self.port}-{self._starts}.log"
        ports = ["--port", str(self.port), "--open-port", str(self.open_port)]
        bounds = ["--negotiations-per-s", "0", "--device-requests-per-s", "0"]
        given = [*secured(self.identities), "--host", "0.0.0.0", *ports, *bounds, *self.flags]
        self._child = cloud_server(log, *given, "--log-level", "warning").__enter__()
        self.at = ready(self._child)
        return self

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it."""
        child, self._child = self._child, None
        if child is not None:
            os.kill(child.pid, how)
            child.wait(lambda: None, 60)
            child.__exit__(None, None, None)

    def code(self, device: str) -> OneTimeCode:
        """A code for a device, which need not be known yet."""
        made = OneTimeCode.fresh(self.identities.authority.root_der)
        store = open_store("", self.identities.directory)
        try:
            with store.write("test") as tx:
                if device not in {one.name for one in devices.every(tx.session, TENANT)}:
                    devices.add(tx, TENANT, device)
                codes.issue(tx, TENANT, device, made.secret_sha256)
        finally:
            store.close()
        return made

    def short_lived(self, device: str, life_s: float) -> Identity:
        """A known device's identity that ends soon, and may be renewed for a day more."""
        store = open_store("", self.identities.directory)
        authority = self.identities.authority
        try:
            with store.write("test") as tx:
                made = certified(tx, authority, TENANT, device, life_s, DAY_S)
        finally:
            store.close()
        now_s = time.time()
        return Identity(
            TENANT,
            device,
            f"localhost:{self.open_port}",
            made.key.decode(),
            made.chain.decode(),
            authority.trusted_pem.decode(),
            int(now_s),
            int(now_s + life_s),
        )


@dataclass
class Device:
    """One agent, over its restarts.

    Attributes:
        folder: of its pictures, state, records and logs.
        name: at the service.
        way: to the service.
        model: an edge export.
        flags: further ones of `edge-agent run`.
        environment: further variables of the process.
        program: module and what precedes the arguments of `run`.
        shown: names of the pictures so far.
        stops: how long it took to end after each SIGTERM, seconds.
    """

    folder: Path
    name: str
    way: Way
    model: Path
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    program: str = "edge_agent"
    shown: list[str] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)
    _starts: int = 0
    _child: Child | None = None
    _chance: random.Random = field(default_factory=lambda: random.Random(9))

    def __post_init__(self) -> None:
        for each in (self.pictures, self.state, self.folder / "coming"):
            each.mkdir(parents=True, exist_ok=True)

    @property
    def pictures(self) -> Path:
        """The folder that it watches."""
        return self.folder / "pictures"

    @property
    def state(self) -> Path:
        """Its state directory."""
        return self.folder / "state"

    def enrol(self, service: Service) -> None:
        """Enrol it, from this side."""
        file = IdentityFile.under(self.state)
        asyncio.run(enrol(f"localhost:{service.open_port}", service.code(self.name), file))

    def start(self, *servers: str) -> None:
        """Start the agent."""
        self._starts += 1
        agent = [self.program, "run", "--model", str(self.model), "--question", QUESTION]
        agent += [part for server in servers for part in ("--server", server)]
        agent += ["--server-name", "localhost", "--source", f"folder://{self.pictures}?watch=1"]
        agent += ["--state-dir", str(self.state), "--output", str(self.output), "--resume"]
        agent += ["--max-new-tokens", "4", "--threads", "1", *self.flags]
        child = _OnDevice(self.way, "edge-agent", agent, self.log, ENVIRONMENT | self.environment)
        self._child = child.__enter__()

    @property
    def output(self) -> Path:
        """The file of its records."""
        return self.folder / "records.jsonl"

    @property
    def log(self) -> Path:
        """The log of its present run."""
        return self.folder / f"agent-{self._starts}.log"

    def logged(self) -> list[dict[str, Any]]:
        """The log of all its runs."""
        runs = sorted(self.folder.glob("agent-*.log"))
        lines = [line for run in runs for line in run.read_text(errors="replace").splitlines()]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log's lines with that event."""
        return [row for row in self.logged() if row["event"] == name]

    def told(self, text: str) -> list[str]:
        """The causes in its log that hold a text, each once, in their order."""
        return list(
            dict.fromkeys(str(r["cause"]) for r in self.logged() if text in str(r.get("cause")))
        )

    def span_s(self) -> float:
        """From the first line of its log to the last, by its own clock, seconds."""
        rows = self.logged()
        first, last = (
            datetime.datetime.fromisoformat(rows[place]["timestamp"].replace("Z", "+00:00"))
            for place in (0, -1)
        )
        return (last - first).total_seconds()

    def waiting(self) -> int:
        """Frames on its disk."""
        with contextlib.closing(sqlite3.connect(self.state / "spool" / "spool.db")) as db:
            found: int = db.execute("SELECT count(*) FROM frames").fetchone()[0]
        return found

    def show(self, count: int = 1) -> None:
        """Put pictures into the folder, each whole at once."""
        for _ in range(count):
            name = f"{len(self.shown):05d}.png"
            coming = self.folder / "coming" / name
            coming.write_bytes(self._chance.choice(files()))
            coming.rename(self.pictures / name)
            self.shown.append(name)

    def records(self) -> list[dict[str, Any]]:
        """Its records so far."""
        if not self.output.exists():
            return []
        return [json.loads(line) for line in self.output.read_text().splitlines() if line]

    def answered(self) -> int:
        """Pictures that have an answer."""
        return len({one["capture"] for one in self.records() if one["answer"] is not None})

    def until_answered(self, patience_s: float = _PATIENCE_S) -> float:
        """Wait until every picture has its answer; returns how long that took, seconds."""

        def all_of_them() -> bool:
            self.alive()
            return self.answered() >= len(self.shown)

        try:
            return until(all_of_them, "an answer for every picture", patience_s)
        except TimeoutError as error:
            said = self.log.read_text(errors="replace").splitlines()[-12:]
            left = f"{self.answered()} of {len(self.shown)} answered"
            raise TimeoutError("\n  ".join([f"{error}; {left}", *said])) from error

    def alive(self) -> None:
        """Check that the agent has not ended.

        Raises:
            AssertionError: it has.
        """
        assert self._child is not None
        ended = not Path(f"/proc/{self._child.pid}").exists()
        assert not ended, self.log.read_text(errors="replace")[-2000:]

    def stop(self, patience_s: float = 60.0) -> float:
        """End the agent by SIGTERM; returns how long that took, seconds."""
        child, self._child = self._child, None
        assert child is not None
        began = time.monotonic()
        os.kill(child.pid, signal.SIGTERM)
        child.check(child.wait(lambda: None, patience_s))
        self.stops.append(time.monotonic() - began)
        child.__exit__(None, None, None)
        return self.stops[-1]

    def kill(self) -> None:
        """End the agent at once."""
        child, self._child = self._child, None
        if child is not None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait(lambda: None, 30)
            child.__exit__(None, None, None)

    def ended(self) -> tuple[int, int]:
        """Pictures without an answer, and records too many."""
        records = self.records()
        assert not [one for one in records if one["error"]], "a frame ended with an error"
        counts = Counter(str(one["capture"]) for one in records)
        ids = Counter(str(one["request_id"]) for one in records)
        lost = sum(not counts[name] for name in self.shown)
        return lost, max(sum(n - 1 for n in counts.values()), sum(n - 1 for n in ids.values()))


class _OnDevice(Child):
    """A child in a device's namespace; its process id is the agent's."""

    def __init__(
        self, way: Way, name: str, arguments: list[str], log: Path, environment: dict[str, str]
    ) -> None:
        super().__init__(name, arguments, log, environment)
        self._arguments = way.command(*self._arguments)
