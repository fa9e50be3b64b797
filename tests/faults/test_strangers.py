"""Certificates that are no longer or never were good, stolen sessions and replayed requests."""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.serve.device import Device
from benchmarks.serve.identities import TENANTS, Credential, certified
from benchmarks.serve.load import fleet
from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site
from cloud_server.identity.authority import Authority
from cloud_server.identity.certificates import key_pem, pem
from cloud_server.state import certificates, devices
from cloud_server.state.location import open_store
from protos.calls import SERVICE, SESSION_METADATA_KEY
from protos.errors import BridgeError, OfflineError, UnauthenticatedError
from protos.identity import device_uri
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.faults.arena import ITEMS, Faults, Steady, steady, times

pytestmark = pytest.mark.slow

STRANGER = 20


def self_signed(place: Site, folder: Path) -> Credential:
    """A certificate that a stranger made, in the name of a device that exists."""
    known = place.identities.devices[0]
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, known.device)])
    uri = x509.UniformResourceIdentifier(device_uri(known.tenant, known.device))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int(known.serial, 16))
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(2040, 1, 1))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Credential(known.tenant, known.device, known.serial, key_pem(key), pem(made))


def foreign(place: Site, folder: Path) -> Credential:
    """A certificate of another service's authority, in the name of a device that exists."""
    known = place.identities.devices[0]
    folder.mkdir()
    authority = Authority.create(folder, time.time())
    store = open_store("", place.identities.directory)
    try:
        with store.write("test") as tx:
            made = certified(tx, authority, known.tenant, known.device)
    finally:
        store.close()
    return made


def of_authority(place: Site, name: str, life_s: float) -> Credential:
    """A certificate of the service's own authority for a device of this name."""
    store = open_store("", place.identities.directory)
    try:
        with store.write("test") as tx:
            devices.add(tx, TENANTS[0], name)
            return certified(tx, place.identities.authority, TENANTS[0], name, life_s)
    finally:
        store.close()


def expired(place: Site, folder: Path) -> Credential:
    return of_authority(place, "expired", -3600.0)


def revoked(place: Site, folder: Path) -> Credential:
    made = of_authority(place, "revoked", 86400.0)
    store = open_store("", place.identities.directory)
    try:
        with store.write("test") as tx:
            certificates.revoke(tx, made.tenant, made.serial)
    finally:
        store.close()
    return made


def removed(place: Site, folder: Path) -> Credential:
    """A removed device's certificate, though the name is in use again."""
    made = of_authority(place, "removed", 86400.0)
    store = open_store("", place.identities.directory)
    try:
        with store.write("test") as tx:
            devices.remove(tx, made.tenant, made.device)
            devices.add(tx, made.tenant, made.device)
    finally:
        store.close()
    return made


MAKERS: dict[str, Callable[[Site, Path], Credential]] = {
    "self-signed": self_signed,
    "of a foreign authority": foreign,
    "expired": expired,
    "revoked": revoked,
    "of a removed device": removed,
}


def beside(
    place: Site,
    pool: Pool,
    work: Callable[[Steady], Coroutine[Any, Any, int]],
) -> tuple[Steady, int]:
    """Do something while devices work."""

    async def scenario() -> tuple[Steady, int]:
        async with steady(place.dial, pool) as load:
            await load.more(8)
            injected = await work(load)
            await load.more(8)
        return load, injected

    return asyncio.run(scenario())


def test_no_certificate_that_is_not_good_opens_a_session(
    place: Site, pool: Pool, calm: list[str], faults: Faults, tmp_path: Path
) -> None:
    each = times(3, 40)
    bad = {name: make(place, tmp_path / name) for name, make in MAKERS.items()}
    got_in = []

    async def knock(load: Steady) -> int:
        for name, credential in bad.items():
            dial = partial(place.identities.channel, place.at.address, credential)
            for _ in range(each):
                device = Device(name, dial, pool)
                try:
                    await device.connect()
                    got_in.append(name)
                except BridgeError as error:
                    assert isinstance(error, OfflineError | UnauthenticatedError), error
                await device.close()
        return each * len(bad)

    load, injected = beside(place, pool, knock)
    assert not got_in, "a stranger got a session"
    faults.judged("bad certificates", injected, load.entries, calm, load.strangers + len(got_in))


def test_a_replayed_request_is_answered_from_memory_or_refused_never_computed_for_another(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    replays = times(20, 400)
    chance = random.Random(2)

    async def replay(load: Steady) -> int:
        async with (
            fleet(1, place.dial, pool, first=STRANGER) as (owner,),
            fleet(1, place.dial, pool, first=STRANGER + 1) as (thief,),
        ):
            entries = [owner.prepare(item) for item in range(ITEMS)]
            raws = [owner.sealed(entry) for entry in entries]
            for entry in entries:
                await owner.send(entry)
                await owner.settle(60)
            assert all(entry.answered for entry in entries)
            streams = {}
            for number, device in ((STRANGER, owner), (STRANGER + 1, thief)):
                channel = place.dial(number)()
                call = channel.stream_stream(
                    f"/{SERVICE}/Infer", response_deserializer=pb.InferEvent.FromString
                )
                metadata = ((SESSION_METADATA_KEY, device.reply.session_id),)
                streams[device.name] = channel, call(metadata=metadata)
            for _ in range(replays):
                item = chance.randrange(ITEMS)
                _, mine = streams[owner.name]
                await mine.write(raws[item])
                event = await mine.read()
                assert event.answer.from_memory and event.answer.text == calm[item], event
                _, theirs = streams[thief.name]
                await theirs.write(raws[item])
                event = await theirs.read()
                assert event.HasField("refused"), f"another device's request was taken: {event}"
            for channel, call in streams.values():
                call.cancel()
                await channel.close()
        return 2 * replays

    load, injected = beside(place, pool, replay)
    faults.judged("replayed requests", injected, load.entries, calm, load.strangers)


def test_a_revoked_device_is_shut_out_of_its_open_stream_within_seconds(
    place: Site, pool: Pool, calm: list[str], faults: Faults
) -> None:
    victims = times(1, 10)

    async def revoke(load: Steady) -> int:
        for number in range(victims):
            known = of_authority(place, f"shut-out-{number}", 86400.0)
            dial = partial(place.identities.channel, place.at.address, known)
            device = Device(known.device, dial, pool)
            for _ in range(100):  # until the service knows the new certificate
                try:
                    await device.connect()
                    break
                except UnauthenticatedError:
                    await asyncio.sleep(0.1)
            await device.send(entry := device.prepare(0))
            await device.settle(60)
            assert entry.answered
            store = open_store("", place.identities.directory)
            try:
                with store.write("test") as tx:
                    certificates.revoke(tx, known.tenant, known.serial)
            finally:
                store.close()
            assert await asyncio.wait_for(device.broke(), 10) == UnauthenticatedError.name
            await device.close()
        return victims

    load, injected = beside(place, pool, revoke)
    faults.judged("revoked on an open stream", injected, load.entries, calm, load.strangers)
