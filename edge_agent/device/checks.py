"""The doctor's checks of a device; each makes findings, and none trusts that another one passed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.assemble import choose_dials, identity_file, load_model, model_path, state_directory
from edge_agent.cameras.camera import Camera
from edge_agent.cameras.states import ADVICE, STATES
from edge_agent.device import status
from edge_agent.device.power import read
from edge_agent.identity import show
from edge_agent.memory_preflight import require_memory
from edge_agent.metrics import Metrics
from edge_agent.plan import unknown_point
from edge_agent.settings import Settings
from edge_agent.sources import open_source
from edge_agent.sources.address import shown
from edge_agent.sources.opened import open_sources
from edge_agent.sources.turns import Turns
from edge_agent.uplink.dial import InsecureDial, SecureDial, explained
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.negotiate import negotiate
from projector.models.exported.manifest import is_export
from protos.errors import BridgeError, CertificateError, ConfigError, OfflineError
from protos.layout import KVLayout
from protos.process import addresses, findings
from protos.process.files import expanded
from protos.process.findings import GREEN, RED, YELLOW, Finding, ending

_MIB = 1 << 20
_FULL_BYTES, _LITTLE_BYTES = 64 * _MIB, 1024 * _MIB
_HOT_C, _TOO_HOT_C = 85.0, 97.0
_CALL_S = 10.0
_LOOK_S = 0.05
_POINT = "correct point or highest_point in the settings; the log and edge-agent status name it"
_SERVICE = "systemctl restart neural-bridge-edge"


@dataclass
class Checks:
    """The checks of one device.

    Attributes:
        chosen: the settings.
        quick: neither load the model nor open cameras nor call the service.
        root: where `sys`, `etc` and `var` lie.
        running: status of the running agent; None if none runs.
        layout: cache layout of the model, once it was loaded.
    """

    chosen: Settings
    quick: bool = False
    root: Path = Path("/")
    running: dict[str, Any] | None = None
    layout: KVLayout | None = None
    _dials: list[InsecureDial | SecureDial] = field(default_factory=list, repr=False)

    def every(self) -> Iterator[tuple[str, Callable[[], Iterator[Finding]], float]]:
        """Subject, check, and the longest time that it may take, seconds."""
        yield "agent", self.agent, 10.0
        yield "clock", self.clock, 10.0
        yield "disk", self.disk, 10.0
        yield "certificate", self.certificate, 10.0
        yield "power", self.power, 10.0
        yield "temperature", self.temperature, 10.0
        yield "memory", self.memory, 20.0
        yield "model", self.model, 300.0
        yield "cameras", self.cameras, 90.0
        yield "network", self.network, 60.0
        yield "server", self.server, 60.0

    # ------------------------------------------------------------------ the machine

    def agent(self) -> Iterator[Finding]:
        """Whether an agent runs, and how it is."""
        folder = state_directory(self.chosen)
        if folder is None:
            yield Finding("agent", YELLOW, "no state directory", "give --state-dir")
            return
        try:
            found = self.running = status.ask(folder)
        except ConfigError as error:
            if "hangs" in error.message:
                yield Finding("agent", RED, error.message, _SERVICE)
            else:
                yield Finding("agent", GREEN, "does not run")
            return
        said = f"runs, process {found['pid']}, {found['version']}: {found['state']}"
        if found["stuck"]:
            yield Finding("agent", RED, f"{said}, {found['stuck']} does not move", _SERVICE)
        else:
            yield Finding("agent", GREEN, said)

    def clock(self) -> Iterator[Finding]:
        """The clock; an enrolled device works with a wrong one."""
        for finding in findings.clock():
            if finding.level == RED and not self.chosen.ca:
                advice = "run a time service; the agent works, and corrects its times later"
                finding = Finding("clock", YELLOW, finding.found, advice)
            yield finding

    def disk(self) -> Iterator[Finding]:
        """Free space and write permission where the agent stores files."""
        state = state_directory(self.chosen)
        if state is None:
            yield Finding(
                "disk, state",
                RED,
                "no home folder that can be written",
                "give --state-dir: without it every start fetches its encoder, and no log is kept",
            )
        places = {"state": state, "spool": self.chosen.spool or (state and state / "spool")}
        if self.chosen.output != "-":
            places["output"] = expanded(Path(self.chosen.output)).absolute().parent
        for name, place in places.items():
            if place is not None:
                yield self._place(f"disk, {name}", place, name == "spool")

    def _place(self, subject: str, place: Path, is_spool: bool) -> Finding:
        there = place.absolute()
        while not there.exists() and there != there.parent:
            there = there.parent
        free = shutil.disk_usage(there).free
        found = f"{free // _MIB:,} MiB free at {place}"
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            return Finding(
                subject, RED, f"{there} is read-only", "the disk may be broken: dmesg; mount it rw"
            )
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            return Finding(subject, RED, f"{there} cannot be written", "make its user the owner")
        if free < _FULL_BYTES:
            return Finding(subject, RED, found, "make room: the spool and the log need some")
        used = 0
        if is_spool and place.is_dir():
            used = sum(file.stat().st_size for file in place.iterdir() if file.is_file())
        if is_spool and free < self.chosen.spool_bytes - used:
            advice = f"lower --spool-bytes ({self.chosen.spool_bytes:,}), or make room"
            return Finding(subject, YELLOW, f"{found}: less than the spool may take", advice)
        if free < _LITTLE_BYTES:
            return Finding(subject, YELLOW, found, "make room before it is full")
        return Finding(subject, GREEN, found)

    def power(self) -> Iterator[Finding]:
        """Power mode, watts and throttling."""
        found = read(self.root)
        watts = "power is not measured" if found.watts is None else f"{found.watts:.1f} W"
        said = f"{watts}, mode {found.mode}" if found.mode else f"{watts}, no power modes"
        if found.throttled:
            yield Finding(
                "power",
                YELLOW,
                f"{said}; heat slows the processors down",
                "cool the device, or choose a lower power mode: nvpmodel -m N",
            )
        elif found.mode.upper().startswith("MAXN"):
            yield Finding(
                "power", YELLOW, said, "25 W answers more per joule: nvpmodel -q --verbose lists"
            )
        else:
            yield Finding("power", GREEN, said)

    def temperature(self) -> Iterator[Finding]:
        """The hottest zone."""
        found = read(self.root)
        if found.celsius is None:
            yield Finding("temperature", GREEN, "not measured")
            return
        zone = max(found.zones, key=lambda name: found.zones[name])
        said = f"{found.celsius:.0f} °C ({zone})"
        advice = "shade, air or a fan; a lower power mode"
        level = RED if found.celsius >= _TOO_HOT_C else YELLOW if found.celsius >= _HOT_C else GREEN
        yield Finding("temperature", level, said, "" if level == GREEN else advice)

    # ------------------------------------------------------------------ what the agent uses

    def memory(self) -> Iterator[Finding]:
        """Whether the model fits."""
        path = model_path(self.chosen)
        if self.running is not None:
            yield Finding("memory", GREEN, "the running agent holds the model")
            return
        need, free = require_memory(
            path, self.chosen.device, self.chosen.dtype, self.chosen.max_new_tokens
        )
        needed = f"about {(need.host + need.gpu) // _MIB:,} MiB needed"
        if free is None:
            yield Finding("memory", YELLOW, f"{needed}; the system does not say what is free",
                          "watch the first start")  # fmt: skip
        else:
            yield Finding("memory", GREEN, f"{needed}, {free.bytes // _MIB:,} MiB free")

    def model(self) -> Iterator[Finding]:
        """The model, and what it really runs on."""
        path = model_path(self.chosen)
        kind = "edge export" if is_export(path) else "checkpoint for torch"
        if self.running is not None:
            held = self.running["model"]
            if held is None:
                yield Finding("model", YELLOW, f"{path}: {kind}, still loading", "wait")
                return
            runs, because = held["device"], held["fallback"]
        elif self.quick:
            yield Finding("model", GREEN, f"{path}: {kind}; not loaded (--quick)")
            return
        else:
            loaded = load_model(self.chosen.model_copy(update={"start_limit_s": 0.0}))
            self.layout = loaded.layout
            runs, because = loaded.running.device, loaded.running.fallback
        said = f"{path}: {kind}, runs on {runs}"
        if because:
            yield Finding(
                "model", YELLOW, f"{said}; {because}",
                "install the runtime for this machine's GPU, or set --device to make it an error",
            )  # fmt: skip
        else:
            yield Finding("model", GREEN, said)

    def cameras(self) -> Iterator[Finding]:
        """One picture of each source."""
        if not self.chosen.source:
            yield Finding("cameras", RED, "no source", "give --source")
            return
        if self.running is not None and self.running["cameras"]:
            for name, one in self.running["cameras"].items():
                yield _camera(name, one["state"], "the running agent says")
            return
        source = open_sources(self.chosen, open_source)
        members = source.members if isinstance(source, Turns) else ()
        cameras = [member for member in members if isinstance(member, Camera)]
        named = ", ".join(shown(address) for address in self.chosen.source)
        if not cameras:
            yield Finding("sources", GREEN, f"{named}: can be opened")
        for camera in cameras:
            if self.quick:
                yield Finding(f"camera, {camera.name}", GREEN, "not opened (--quick)")
            else:
                yield _look(camera)

    # ------------------------------------------------------------------ the way to the service

    def certificate(self) -> Iterator[Finding]:
        """The device's identity: until when it is valid, and when it is renewed."""
        found = identity_file(self.chosen).load()
        if found is None:
            plain = self.chosen.insecure or not self.chosen.ca
            yield Finding(
                "certificate",
                YELLOW,
                "this device is not enrolled" + (": plain text" if plain else ""),
                "cloud-server devices add NAME prints a code; then edge-agent enrol",
            )
            return
        figures = show.figures(found, identity_file(self.chosen).path)
        if figures["days_left"] is None:
            yield Finding("certificate", YELLOW, f"{figures['clock']}, so its age is unknown",
                          "nothing: the agent renews it at each start")  # fmt: skip
            return
        due = " (renewal is due)" if time.time() >= found.renew_at_s else ""
        finding = ending(
            "certificate", f"{found.tenant}/{found.device}{due}", found.not_after_s, False,
            "a running agent",
        )  # fmt: skip
        if figures["ended"]:
            again = (
                "a running agent renews it; if the service refuses that (longer ago than "
                "--late-renewal-days), a new code is needed: edge-agent enrol --force"
            )
            finding = Finding("certificate", RED, finding.found, again)
        yield finding

    def network(self) -> Iterator[Finding]:
        """Name, address and port of each server, and the proxy on the way."""
        for dial in self._way():
            if dial.proxy:
                yield Finding("network", GREEN, f"{dial.address} through the proxy {dial.proxy}")
                continue
            if dial.address.startswith(("unix:", "unix-abstract:")):
                yield Finding("network", GREEN, f"{dial.address}: on this machine")
                continue
            yield _reach(addresses.first(dial.address))

    def server(self) -> Iterator[Finding]:
        """Whether the service agrees on a session."""
        if self.running is not None:
            if self.running.get("point_fallback"):
                yield Finding("point", RED, "the service's bundle lacks the point of the settings: "
                              "its default is used", _POINT)  # fmt: skip
            if self.running["connected"]:
                yield Finding("server", GREEN, "the running agent is connected")
                return
            advice = "its log says why (last errors of edge-agent status)"
            yield Finding("server", RED, "the running agent has no connection", advice)
        elif self.quick:
            yield Finding("server", GREEN, "not called (--quick)")
        elif self.layout is None:
            yield Finding("server", YELLOW, "not called: there is no model", "see model")
        else:
            for dial in self._way():
                yield asyncio.run(_negotiated(dial, self.layout, self.chosen))

    def _way(self) -> list[InsecureDial | SecureDial]:
        self._dials = self._dials or choose_dials(self.chosen)
        return self._dials


def _look(camera: Camera) -> Finding:
    """Open a camera and wait for its first picture."""
    came = threading.Event()
    camera.attach(Metrics(), _Quiet())
    camera.start(came.set)
    try:
        until = time.monotonic() + camera.patience.open_s
        while time.monotonic() < until and camera.state not in ADVICE and not came.wait(_LOOK_S):
            pass
        capture = camera.take()
        if capture is not None and capture.picture is not None:
            width, height = capture.picture.size
            found = f"{width} × {height} from {camera.address.shown}"
            return Finding(f"camera, {camera.name}", GREEN, found)
        state, cause = camera.state, camera.cause
    finally:
        camera.close()
    state = "silent" if state == "starting" else state
    return _camera(camera.name, state, camera.address.shown, cause)


class _Quiet:
    """A log that nobody reads: the finding says it."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _camera(name: str, state: str, said: str, cause: str = "") -> Finding:
    level = {"seeing": GREEN, "ended": GREEN, "starting": YELLOW}.get(state, RED)
    advice = "" if level == GREEN else ADVICE.get(state, "wait for its first picture")
    found = f"{said}: {state}: {STATES.get(state, '')}" + (f" ({cause})" if cause else "")
    return Finding(f"camera, {name}", level, found, advice)


def _reach(address: addresses.Address) -> Finding:
    """Look a name up and connect."""
    try:
        every = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding(
            "network", RED, f"{address.host}: the name is not known ({error.strerror or error})",
            "check the name, and the name server in /etc/resolv.conf",
        )  # fmt: skip
    causes: Mapping[str, None] = {}
    for family, kind, protocol, _, place in every[:8]:
        try:
            with socket.socket(family, kind, protocol) as trying:
                trying.settimeout(_CALL_S / 2)
                trying.connect(place)
            return Finding("network", GREEN, f"{address} answers at {place[0]}")
        except OSError as error:
            causes = {**causes, f"{place[0]}: {error.strerror or error}": None}
    return Finding(
        "network", RED, f"{address} does not answer ({'; '.join(causes)})",
        "check address, port, cable and firewall; is the service up?",
    )  # fmt: skip


async def _negotiated(
    dial: InsecureDial | SecureDial, layout: KVLayout, chosen: Settings
) -> Finding:
    async with dial() as channel:
        try:
            session = await negotiate(channel, layout, EncoderStore(None), Metrics(), _CALL_S)
        except BridgeError as error:
            why = explained(dial, error)
            advice = "see network" if isinstance(why, OfflineError) else f"see error {why.code}"
            if isinstance(why, CertificateError):
                advice = "see certificate"
            return Finding("server", RED, f"{dial.address}: {why.name}: {why.message}", advice)
    unknown = unknown_point(chosen.point, chosen.highest_point, session.points)
    if unknown is not None:
        return Finding("server", RED, f"{dial.address}: {unknown.message}", _POINT)
    return Finding(
        "server", GREEN,
        f"{dial.address} agrees: bundle {session.bundle_id}@{session.bundle_version}",
    )  # fmt: skip
