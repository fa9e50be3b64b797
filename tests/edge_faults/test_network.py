"""Real agents on bad networks: every picture has one record in the end, none is answered twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.identity.identity_file import IdentityFile
from tests.checkout import ROOT
from tests.edge_agent.uplink.networks import NameServer, login_page
from tests.edge_faults.faults import EdgeFaults
from tests.edge_faults.station import Device, Service, until
from tests.fakes.foreign_authority import ForeignAuthority

Make = Callable[..., Device]
MBIT, KBIT = 1_000_000, 1_000
COMPILER = shutil.which("cc") or shutil.which("gcc")
DAY_S = 86_400
KEEPALIVE_S = 28
FORGETS_S = {"30": 8, "60": 15, "300": 75}
"""The router's memory in seconds, by the one that it stands for: time runs four times as fast."""


def begun(device: Device, *servers: str) -> Device:
    """Started, with an answer for its first picture."""
    device.start(*servers)
    device.show()
    device.until_answered()
    return device


def judged(kind: str, device: Device, edge_faults: EdgeFaults, faults: int, **more: float) -> None:
    """Wait for the last answer, end the agent, and report."""
    last_s = device.until_answered()
    device.stop()
    lost, doubled = device.ended()
    more = {"last_answer_after_s": round(last_s, 1), "sigterm_s": round(device.stops[-1], 1)} | more
    edge_faults.judged(f"network: {kind}", faults, len(device.shown), lost, doubled, **more)


def test_a_bandwidth_that_falls_to_20_kbit_and_comes_back(
    device: Make, service: Service, edge_faults: EdgeFaults
) -> None:
    gate = device("steps")
    gate.way.rate(10 * MBIT)
    begun(gate, f"{gate.way.here}:{service.port}")
    steps = [10 * MBIT, MBIT, 100 * KBIT, 20 * KBIT, 100 * KBIT, MBIT, 10 * MBIT, 20 * KBIT]
    for rate in (*steps, 10 * MBIT):
        gate.way.rate(rate)
        gate.show(12)
        time.sleep(1.5)
    judged("bandwidth steps", gate, edge_faults, gate.way.faults)


def test_packets_that_are_lost_late_and_in_another_order(
    device: Make, service: Service, edge_faults: EdgeFaults
) -> None:
    gate = device("losses")
    begun(gate, f"{gate.way.here}:{service.port}")
    for share in (0.01, 0.05, 0.1, 0.2):
        gate.way.loss(share)
        gate.show(10)
        time.sleep(2.0)
    gate.way.loss(0.01)
    gate.way.air.delay_s, gate.way.air.jitter_s, gate.way.air.overtaking = 0.15, 0.2, 0.2
    for _ in range(3):
        gate.show(10)
        time.sleep(1.5)
    gate.until_answered()
    overtaken = gate.way.air.overtaken
    assert overtaken > 0
    judged("loss, delay, order", gate, edge_faults, 8, packets_overtaken=overtaken)


def test_outages_of_every_kind_while_pictures_come(
    device: Make, service: Service, edge_faults: EdgeFaults
) -> None:
    gate, chance = device("outages"), random.Random(11)
    begun(gate, f"{gate.way.here}:{service.port}")
    outages = 21
    for number in range(outages):
        kind = ("drop", "reject", "unplugged")[number % 3]
        if kind == "unplugged":
            gate.way.unplug()
        else:
            gate.way.cut(kind)
        gate.show(3)
        time.sleep(chance.choice((0.3, 1.0, 3.0)))
        if kind == "unplugged":
            gate.way.plug()
        else:
            gate.way.heal()
        gate.show(2)
        time.sleep(chance.choice((0.2, 1.0)))
    judged("outages of seconds", gate, edge_faults, outages)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler, so no clock jumps")
def test_days_without_a_network(
    device: Make, service: Service, edge_faults: EdgeFaults, tmp_path: Path
) -> None:
    """Simulated: the device's clocks jump by a day, as after a suspension."""
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    source = ROOT / "tests" / "faults" / "clock.c"
    build = [str(COMPILER), "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(build, check=True)
    shift.write_text("0")
    environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
    gate = device("days", environment=environment)
    begun(gate, f"{gate.way.here}:{service.port}")
    gate.way.cut("reject")
    for day in range(1, 6):
        gate.show(8)
        until(lambda: gate.waiting() == 8 * day, "the frames are on the disk")  # noqa: B023
        shift.write_text(str(DAY_S * day))
    gate.way.heal()
    gate.show(4)
    judged("days without a network", gate, edge_faults, 5)
    assert gate.span_s() > 5 * DAY_S


def test_a_name_that_moves_to_another_address(
    device: Make, service: Service, edge_faults: EdgeFaults
) -> None:
    gate = device("names")
    here, there = gate.way.here, gate.way.there
    names, moves = NameServer(here), 6
    with names.open(here):
        begun(gate, f"dns://{here}:{names.port}/cloud.example:{service.port}")
        for number in range(moves):
            old, new = (here, there) if number % 2 == 0 else (there, here)
            names.addresses = (new,)
            gate.way.heal(f"ip daddr {new} tcp dport {service.port}")
            gate.way.cut("reject with tcp reset", f"ip daddr {old} tcp dport {service.port}")
            gate.show(4)
            gate.until_answered()
        judged("names that move", gate, edge_faults, moves, asked=names.asked)


def test_a_login_page_in_the_services_place(
    device: Make, service: Service, edge_faults: EdgeFaults, tmp_path: Path
) -> None:
    gate = device("portal")
    begun(gate, f"{gate.way.here}:{service.port}")
    shown = tmp_path / "shown.pem"
    shown.write_bytes(ForeignAuthority().server(0, 4e9, "login.hotel.example"))
    secret = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secret.load_cert_chain(shown)
    for number, context in enumerate((None, secret), 1):
        with login_page(context, gate.way.here) as port:
            gate.way.lead(service.port, port)
            gate.show(6)
            until(
                lambda: len(gate.told("captive portal")) >= number,  # noqa: B023
                "the agent says what is in the way",
            )
            gate.way.lead_no_more()
            gate.until_answered()
    assert any("login.hotel.example" in said for said in gate.told("captive portal"))
    judged("login pages", gate, edge_faults, 2)


def test_a_certificate_that_ends_without_a_network(
    device: Make, service: Service, edge_faults: EdgeFaults
) -> None:
    """It may still renew itself."""
    gate = device("ended")
    server = f"{gate.way.here}:{service.port}"
    begun(gate, server).stop()
    identity = service.short_lived("ended", 10.0)
    IdentityFile.under(gate.state).save(identity)
    gate.way.cut("reject")
    gate.start(server)
    gate.show(10)
    until(lambda: gate.waiting() == 10, "the frames are on the disk")
    time.sleep(max(0.0, identity.not_after_s + 1 - time.time()))
    gate.way.heal()
    gate.show(5)
    judged("certificate that ends", gate, edge_faults, 1)
    assert gate.events("renewed")


def learnt_s(device: Device) -> float:
    """The interval that the device has learnt; the first one before that."""
    file = device.state / "keepalive.json"
    known = json.loads(file.read_text())["networks"] if file.exists() else {}
    return float(next(iter(known.values()), KEEPALIVE_S))


def broken(device: Device) -> int:
    """How many of its streams have broken so far."""
    return len(device.events("stream_broken"))


def test_routers_that_forget_idle_connections(
    device: Make, service: Service, edge_faults: EdgeFaults
) -> None:
    flags = ("--keepalive-s", str(KEEPALIVE_S))
    program = "tests.edge_faults.quick_keepalive"
    them = {name: device(f"nat-{name}", *flags, program=program) for name in FORGETS_S}
    for name, each in them.items():
        each.way.forget(FORGETS_S[name])
        each.start(f"{each.way.here}:{service.port}")
        each.show()
    for each in them.values():
        each.until_answered()
    faults = 0
    for name in ("30", "60"):
        each, breaks = them[name], 0
        while learnt_s(each) >= FORGETS_S[name]:
            breaks += 1
            until(lambda: broken(each) >= breaks, "the dead connection is found")  # noqa: B023
            each.show(2)
            each.until_answered()
        faults += breaks
    quiet = {name: broken(each) for name, each in them.items()}
    time.sleep(2.2 * FORGETS_S["60"])
    for each in them.values():
        each.show(3)
        each.until_answered()
        each.stop()
    ends = [each.ended() for each in them.values()]
    lost, doubled = sum(end[0] for end in ends), sum(end[1] for end in ends)
    frames = sum(len(each.shown) for each in them.values())
    learnt = {f"learnt_s_nat_{name}": learnt_s(each) for name, each in them.items()}
    edge_faults.judged("network: NAT forgets", faults, frames, lost, doubled, **learnt)
    assert quiet == {name: broken(each) for name, each in them.items()}
    assert learnt_s(them["300"]) == KEEPALIVE_S and quiet["300"] == 0


@pytest.fixture(scope="module")
def second(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Another front end of the same service, which tests may end."""
    made = Service(tmp_path_factory.mktemp("second"), service.identities)
    made.start()
    yield made
    made.stop()


def test_two_servers_that_come_and_go(
    device: Make, service: Service, second: Service, edge_faults: EdgeFaults
) -> None:
    gate, chance, flips = device("flapping", "--server-back-s", "1"), random.Random(12), 24
    begun(gate, *(f"{gate.way.here}:{one.port}" for one in (service, second)))
    there = {service.port: True, second.port: True}
    for number in range(flips):
        port = (service.port, second.port)[number % 2] if number % 5 else service.port
        there[port] = not there[port]
        if there[port]:
            gate.way.heal(f"tcp dport {port}")
        else:
            gate.way.cut("reject with tcp reset", f"tcp dport {port}")
        gate.show(3)
        time.sleep(chance.uniform(0.1, 1.0))
    for port in there:
        gate.way.heal(f"tcp dport {port}")
    judged("two servers flap", gate, edge_faults, flips, switches=len(gate.events("server")))
    assert gate.events("server"), "the second server never carried a frame"


def test_a_service_that_ends_and_comes_back(
    device: Make, second: Service, edge_faults: EdgeFaults
) -> None:
    gate, ends = device("restarts"), [signal.SIGKILL, signal.SIGTERM] * 2
    begun(gate, f"{gate.way.here}:{second.port}")
    for how in ends:
        gate.show(6)
        second.stop(how)
        gate.show(6)
        second.start()
        gate.show(6)
    gate.until_answered()
    gate.kill()  # the agent too
    gate.show(6)
    gate.start(f"{gate.way.here}:{second.port}")
    judged("service restarts, agent kill -9", gate, edge_faults, len(ends) + 1)
