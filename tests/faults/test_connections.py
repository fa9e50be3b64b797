"""Connections that stall, vanish or bring garbage, beside devices that must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.serve.device import Device
from benchmarks.serve.ledger import Entry
from benchmarks.serve.load import fleet
from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site
from protos.calls import SERVICE, SESSION_METADATA_KEY
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.faults.arena import ITEMS, Faults, steady, times

pytestmark = pytest.mark.slow

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0)[1:] + b"\x04\x00" + bytes(4)
"""What an HTTP/2 client says first, with empty settings."""
STRANGER = 20
"""Number of the first device whose connections misbehave; good devices have lower numbers."""


@pytest.fixture(scope="module")
def quick() -> tuple[str, ...]:
    """Silent peers are noticed within seconds."""
    return (
        *("--handshake-timeout-s", "2", "--keepalive-s", "1", "--keepalive-timeout-s", "1"),
        *("--max-connections", "4000"),
    )


@pytest.fixture(scope="module")
def context(place: Site, tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """TLS as a device has it."""
    folder = tmp_path_factory.mktemp("tls")
    known = place.identities.devices[STRANGER]
    (folder / "device.pem").write_bytes(known.key + known.chain)
    roots = place.identities.authority.trusted_pem.decode()
    made = ssl.create_default_context(cadata=roots)
    made.load_cert_chain(folder / "device.pem")
    made.set_alpn_protocols(["h2"])
    return made


def connect(place: Site) -> socket.socket:
    host, _, port = place.at.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


@contextmanager
def secured(place: Site, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with connect(place) as plain, context.wrap_socket(plain, server_hostname="localhost") as made:
        yield made


def drop(plain: socket.socket) -> None:
    """Reset the connection, as a device does that loses power behind a firewall."""
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.close()


def beside_good_devices(
    place: Site,
    pool: Pool,
    calm: list[str],
    faults: Faults,
    kind: str,
    misbehave: Callable[[], int],
) -> None:
    """Do something bad in a thread while devices work; they must get all their answers."""

    async def scenario() -> None:
        async with steady(place.dial, pool) as load:
            await load.more(16)
            injected = await asyncio.to_thread(misbehave)
            await load.more(32)
        verdict = faults.judged(kind, injected, load.entries, calm, load.strangers)
        assert verdict.answered == verdict.requests

    asyncio.run(scenario())


def closed_by_server(made: socket.socket) -> bool:
    """Read until the service closes; false if it does not within 30 s."""
    made.settimeout(30)
    try:
        while made.recv(1 << 16):
            continue
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_half_open_connections_are_closed_and_hinder_nobody(
    place: Site, pool: Pool, calm: list[str], faults: Faults, context: ssl.SSLContext
) -> None:
    each = times(5, 100)

    def stall() -> int:
        with contextlib.ExitStack() as opened:
            never_spoke = [opened.enter_context(connect(place)) for _ in range(each)]
            only_tls = [opened.enter_context(secured(place, context)) for _ in range(each)]
            vanished = [opened.enter_context(secured(place, context)) for _ in range(each)]
            for made in vanished:
                made.sendall(PREFACE)
            assert all(map(closed_by_server, (*never_spoke, *only_tls, *vanished)))
        return 3 * each

    beside_good_devices(place, pool, calm, faults, "half-open connections", stall)


def test_thousands_of_connects_and_drops_hinder_nobody(
    place: Site, pool: Pool, calm: list[str], faults: Faults, context: ssl.SSLContext
) -> None:
    plain, secure = times(200, 9000), times(20, 1000)

    def come_and_go() -> int:
        for _ in range(plain):
            drop(connect(place))
        for _ in range(secure):
            with secured(place, context) as made:
                made.sendall(PREFACE)
        return plain + secure

    beside_good_devices(place, pool, calm, faults, "connects and drops", come_and_go)


@pytest.mark.parametrize("when", ["before", "after"])
def test_garbage_at_line_rate_before_and_after_the_handshake_hinders_nobody(
    place: Site,
    pool: Pool,
    calm: list[str],
    faults: Faults,
    context: ssl.SSLContext,
    when: str,
) -> None:
    connections = times(20, 400)
    chance = random.Random(when)

    def shout() -> int:
        for _ in range(connections):
            with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                made: socket.socket = opened.enter_context(
                    connect(place) if when == "before" else secured(place, context)
                )
                if when == "after" and chance.random() < 0.5:
                    made.sendall(PREFACE)
                for _ in range(64):
                    made.sendall(chance.randbytes(1 << 16))
        return connections

    beside_good_devices(place, pool, calm, faults, f"garbage {when} the handshake", shout)


def test_garbage_messages_on_a_good_connection_are_refused_one_by_one(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    messages = times(50, 2000)
    chance = random.Random(1)

    async def scenario() -> None:
        refused = 0
        async with (
            steady(place.dial, pool) as load,
            fleet(1, place.dial, pool, first=STRANGER) as (device,),
        ):
            infer = place.dial(STRANGER)().stream_stream(f"/{SERVICE}/Infer")
            call = infer(metadata=((SESSION_METADATA_KEY, device.reply.session_id),))
            for _ in range(messages):
                entry = device.prepare(chance.randrange(ITEMS))
                raw = bytearray(device.sealed(entry))
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
                await call.write(bytes(raw) if chance.random() < 0.7 else chance.randbytes(90))
                event = pb.InferEvent.FromString(await call.read())
                assert event.HasField("refused"), event
                refused += 1
            call.cancel()
            await load.more(8)
        faults.judged("garbage messages", refused, load.entries, calm, load.strangers)

    asyncio.run(scenario())


def test_slow_and_silent_readers_hinder_nobody_and_slow_ones_get_every_answer(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    readers, requests = times(2, 8), times(60, 400)

    async def scenario() -> None:
        async with (
            steady(place.dial, pool) as load,
            fleet(2 * readers, place.dial, pool, first=STRANGER, tries=50) as lazy,
        ):
            reading = asyncio.Event()
            slow, silent = lazy[:readers], lazy[readers:]
            sends = [
                asyncio.create_task(_without_reading(device, requests, reading)) for device in lazy
            ]
            await load.more(64)
            reading.set()
            for device in silent:
                await device.close()
            sent = await asyncio.gather(*sends[:readers])
            await asyncio.gather(*(device.settle(120) for device in slow))
            await asyncio.gather(*sends[readers:], return_exceptions=True)
            await load.more(16)
        entries = [*load.entries, *(entry for each in sent for entry in each)]
        faults.judged("slow and silent readers", 2 * readers, entries, calm, load.strangers)

    asyncio.run(scenario())


async def _without_reading(device: Device, requests: int, reading: asyncio.Event) -> list[Entry]:
    """Send far more than the credit and read nothing until told to."""
    device.hold_reading(reading)
    entries = [device.prepare(number % ITEMS) for number in range(requests)]
    for entry in entries:
        await device.send(entry)
    return entries
