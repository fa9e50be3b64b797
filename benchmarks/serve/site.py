"""Starts a service to measure, in its own processes, and connects devices to it."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.serve.identities import Identities
from edge_agent.uplink.dial import Dial
from protos.process.memory import resident_bytes
from reference.demo.halves import (
    BUNDLE,
    CLOUD_MODEL,
    ENVIRONMENT,
    Ready,
    cloud_server,
    ready,
)
from reference.demo.processes import Child

OPEN = (
    *("--negotiations-per-s", "0", "--device-requests-per-s", "0"),
    *("--log-level", "warning"),
)
"""Flags that lift the bounds on rates, which are not measured: all simulated devices share one
address and ask as fast as they can. The bound on a device's requests under way stays.
"""
_PREFIX = "neural_bridge_cloud_"


@dataclass
class Site:
    """A running service.

    Attributes:
        server: its front end.
        at: its addresses.
        identities: its directory, and the devices that it knows.
    """

    server: Child
    at: Ready
    identities: Identities

    def dial(self, device: int) -> Dial:
        """The dial of a device, by its number."""
        return self.dial_by(self.at.address, device)

    def dial_by(self, address: str, device: int) -> Dial:
        """The dial of a device for another address, such as a load balancer's."""
        known = self.identities.devices[device]
        return partial(self.identities.channel, address, known)

    @property
    def api_port(self) -> int:
        """Port of the HTTP API."""
        port: int = self.server.ready(1)["api_port"]
        return port

    def metric(self, name: str) -> float:
        """A metric's value, by its name without prefix, with labels; 0 if it is missing."""
        found = re.findall(rf"^{_PREFIX}{re.escape(name)} (\S+)$", self.metrics(), re.M)
        return float(found[0]) if found else 0.0

    def metrics(self) -> str:
        """The whole metrics page."""
        asked = urllib.request.Request(self.at.metrics)
        asked.add_header("Authorization", f"Bearer {self.identities.operator}")
        with urllib.request.urlopen(asked, timeout=30) as page:
            text: str = page.read().decode()
        return text

    def tree(self) -> dict[str, list[int]]:
        """Process ids of the front end, its engines and its spare."""
        below = descendants(self.server.pid)
        engines = [pid for pid, line in below.items() if "cloud_server.engine.process" in line]
        spares = [pid for pid in engines if "--spare" in below[pid] and _has_child(pid)]
        return {
            "front_end": [self.server.pid],
            "engine": [pid for pid in engines if pid not in spares],
            "spare": spares,
        }

    def memory(self) -> dict[str, int]:
        """Resident bytes of each kind of process."""
        return {kind: sum(map(resident_bytes, pids)) for kind, pids in self.tree().items()}


@contextmanager
def site(
    folder: Path, identities: Identities, *flags: str, bundle: Path = BUNDLE, threads: int = 1
) -> Iterator[Site]:
    """Start a service with the reference model; it ends with the block."""
    given = (*OPEN, *secured(identities), *flags)
    with cloud_server(folder / "service.log", *given, bundle=bundle, threads=threads) as server:
        yield Site(server, ready(server), identities)


def secured(identities: Identities) -> tuple[str, ...]:
    """Flags of a service with identities, on a free loopback port."""
    ports = ("--open-port", "0", "--api-port", "0")
    return ("--directory", str(identities.directory), *ports, "--host", "127.0.0.1")


@contextmanager
def stubbed(
    folder: Path,
    identities: Identities,
    host: str = "127.0.0.1",
    bundle: Path = BUNDLE,
    module: str = "benchmarks.serve.stub_engine",
    **more: object,
) -> Iterator[Site]:
    """Start a service whose engine answers at once.

    Args:
        folder: for its log.
        identities: its directory.
        host: where it listens.
        bundle: what it serves.
        module: what runs it.
        more: further settings of it.
    """
    settings = {
        "model": str(CLOUD_MODEL),
        "bundles": [str(bundle)],
        "directory": str(identities.directory),
        "host": host,
        "port": 0,
        "open_port": 0,
        "api_port": 0,
        "metrics_port": 0,
        "negotiations_per_s": 0,
        "device_requests_per_s": 0,
        "log_level": "warning",
        **more,
    }
    command = [module, "serve", json.dumps(settings)]
    with Child("stub", command, folder / "stub.log", ENVIRONMENT) as server:
        yield Site(server, ready(server), identities)


def descendants(parent: int) -> dict[int, str]:
    """Process ids and command lines of a process's children, and theirs."""
    found: dict[int, str] = {}
    for child in _children(parent):
        with contextlib.suppress(OSError):
            found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        found |= descendants(child)
    return found


def _children(parent: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def _has_child(pid: int) -> bool:
    return bool(_children(pid))


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks: float = (int(fields[11]) + int(fields[12])) / 100
    return ticks
