"""Keepalive learns what the way allows: from connections that died idle, and from the server."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from edge_agent.metrics import Metrics
from edge_agent.uplink.dial import dial_insecure
from edge_agent.uplink.keepalive import FILE, Keepalive, network_now
from protos.errors import EngineUnavailableError, OfflineError
from protos.process import logs
from tests.edge_agent.uplink.networks import Nat
from tests.edge_agent.uplink.traffic import (
    assert_one_answer_each,
    bridge,
    deliver_all,
    requests,
    run,
    total,
)
from tests.fakes.fake_edge import fake_uplink

_DEAD = OfflineError("the server cannot be reached: Stream removed (ping timeout)")
_TOO_MANY = OfflineError("the server cannot be reached: Too many pings")
_PATIENT = (("grpc.http2.min_ping_interval_without_data_ms", 10),)
_SERVER = "cloud.example:50051"


class Place:
    """Where the device is."""

    network = "eth0 10.0.0.1"

    def __call__(self) -> str:
        return self.network


def made(folder: Path | None, place: Place | None = None, **settings: float) -> Keepalive:
    return Keepalive(folder, Metrics(), logs.configure("error"), place or Place(), **settings)


def found_dead(keepalive: Keepalive, server: str = _SERVER) -> float:
    keepalive.ended(server, _DEAD, 0.0)
    keepalive.reached(server)
    return keepalive.interval_s(server)


@pytest.mark.slow
def test_a_nat_that_forgets_idle_connections_is_learnt_and_then_kept_awake(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(options=_PATIENT) as served:
            with Nat(int(served.address.rpartition(":")[2]), forgets_s=1.5).open() as nat:
                keepalive = made(tmp_path, start_s=2.0, floor_s=0.02, ping_timeout_s=0.2)
                dial = dataclasses.replace(
                    dial_insecure(f"127.0.0.1:{nat.port}"), keepalive=keepalive
                )
                uplink = fake_uplink(dial, tmp_path)
                name = dial.address
                await uplink.connect()
                while uplink.connected:  # idle until a ping finds it dead
                    await asyncio.sleep(0.01)
                await uplink.connect()
                assert keepalive.interval_s(name) == 1.0  # gRPC itself pings no more often
                lost = nat.forgotten
                await asyncio.sleep(1.8)
                items, before = requests(2), total(uplink.metrics.reconnects)
                assert_one_answer_each(await deliver_all(uplink, items), items)
                assert nat.forgotten == lost and total(uplink.metrics.reconnects) == before
                await uplink.close()

    run(test)


@pytest.mark.slow
def test_a_server_that_says_too_many_pings_is_pinged_less_often_and_never_more(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        strict = (
            ("grpc.http2.min_ping_interval_without_data_ms", 60_000),
            ("grpc.http2.max_ping_strikes", 1),
        )
        async with bridge(options=strict) as served:
            keepalive = made(tmp_path, start_s=1.0, floor_s=0.02, ping_timeout_s=5.0)
            dial = dataclasses.replace(dial_insecure(served.address), keepalive=keepalive)
            uplink = fake_uplink(dial, tmp_path)
            await uplink.connect()
            while uplink.connected:
                await asyncio.sleep(0.01)
            assert keepalive.interval_s(dial.address) == 2.0
            assert found_dead(keepalive, dial.address) == 2.0
            items = requests(2)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            await uplink.close()
            assert made(tmp_path, start_s=1.0).interval_s(dial.address) == 2.0

    run(test)


def test_it_starts_long_and_shortens_step_by_step_to_its_floor(tmp_path: Path) -> None:
    keepalive = made(tmp_path)
    assert keepalive.interval_s(_SERVER) == 240.0
    assert [found_dead(keepalive) for _ in range(5)] == [120.0, 60.0, 30.0, 20.0, 20.0]
    assert made(tmp_path).interval_s(_SERVER) == 20.0, "it is kept on disk"


def test_an_outage_is_no_reason_to_ping_more_often() -> None:
    keepalive = made(None)
    keepalive.ended(_SERVER, _DEAD, 0.0)
    keepalive.not_reached()
    keepalive.reached(_SERVER)
    assert keepalive.interval_s(_SERVER) == 240.0


def test_a_stream_that_ends_in_use_is_no_reason_either() -> None:
    keepalive = made(None)
    for error in (EngineUnavailableError("the server ended the stream"), OfflineError("GOAWAY")):
        keepalive.ended(_SERVER, error, 500.0)
        keepalive.reached(_SERVER)
    silent = EngineUnavailableError("no answer within 60 s")
    keepalive.ended(_SERVER, silent, 1.0)  # it was not idle
    keepalive.reached(_SERVER)
    assert keepalive.interval_s(_SERVER) == 240.0
    keepalive.ended(_SERVER, silent, 130.0)
    keepalive.reached(_SERVER)
    assert keepalive.interval_s(_SERVER) == 120.0


def test_each_network_has_an_interval_of_its_own() -> None:
    place = Place()
    keepalive = made(None, place)
    assert found_dead(keepalive) == 120.0
    place.network = "wwan0 100.64.0.1"
    assert keepalive.interval_s(_SERVER) == 240.0
    keepalive.ended(_SERVER, _DEAD, 0.0)
    place.network = "eth0 10.0.0.1"  # another network than the one that was left
    keepalive.reached(_SERVER)
    assert keepalive.interval_s(_SERVER) == 120.0


def test_what_a_server_forbids_holds_on_every_network(tmp_path: Path) -> None:
    place = Place()
    keepalive = made(tmp_path, place)
    found_dead(keepalive)
    keepalive.ended(_SERVER, _TOO_MANY, 0.0)
    assert keepalive.interval_s(_SERVER) == 240.0
    assert found_dead(keepalive) == 240.0
    place.network = "wwan0 100.64.0.1"
    assert found_dead(keepalive) == 240.0
    assert found_dead(keepalive, "other.example:1") == 120.0


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"networks": {"a": -1}, "servers": {}}', '{"networks": 3, "servers": {}}'],
)
def test_a_damaged_file_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    keepalive = made(tmp_path)
    assert keepalive.interval_s(_SERVER) == 240.0
    found_dead(keepalive)
    assert made(tmp_path).interval_s(_SERVER) == 120.0


def test_the_network_is_that_of_the_default_route(tmp_path: Path) -> None:
    assert network_now(tmp_path) == ""
    head = "Iface\tDestination\tGateway\tFlags\n"
    near = "eth0\t0001A8C0\t00000000\t0001\n"
    (tmp_path / "route").write_text(head + near)
    (tmp_path / "ipv6_route").write_text(
        f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 00000001 00000000 00000003 wlan0\n"
    )
    assert network_now(tmp_path) == "wlan0 fe80::1"
    (tmp_path / "route").write_text(head + near + "eth0\t00000000\t0101A8C0\t0003\n")
    assert network_now(tmp_path) == "eth0 192.168.1.1"
