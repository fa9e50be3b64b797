"""Real agents on bad networks: every picture has one record in the end, none is answered twice."""

from __future__ import annotations

import random
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable
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
    gate, life_s = device("ended", enrolled=False), 30.0
    identity = service.short_lived("ended", life_s)
    IdentityFile.under(gate.state).save(identity)
    begun(gate, f"{gate.way.here}:{service.port}")
    assert time.time() < identity.renew_at_s, "this machine is too slow for this test"
    gate.way.cut("reject")
    gate.show(10)
    time.sleep(max(0.0, identity.not_after_s + 1 - time.time()))
    gate.way.heal()
    gate.show(5)
    judged("certificate that ends", gate, edge_faults, 1)
    assert gate.events("renewed")
