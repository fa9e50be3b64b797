"""Which roots a device trusts: a new one only if an old one vouches for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cloud_server.identity.authority import ROOT_KEY, Authority
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.identity.roots import accepted, certificates
from protos.errors import CertificateError
from tests.edge_agent.identity.test_enrol import enrolled, run, service
from tests.edge_agent.identity.test_renewal import Device, Time
from tests.edge_agent.uplink.traffic import assert_one_answer_each, deliver_all, requests
from tests.fakes.secure_bridge import DAY_S


def authority(folder: Path) -> Authority:
    folder.mkdir()
    return Authority.create(folder, time.time())


def followed(folder: Path) -> tuple[Authority, Authority]:
    """An authority before and after its root got a successor."""
    before = authority(folder)
    return before, before.new_root(folder / ROOT_KEY, time.time())


def test_a_successor_signed_by_a_trusted_root_is_accepted(tmp_path: Path) -> None:
    before, after = followed(tmp_path / "a")
    pem, refused = accepted(before.trusted_pem.decode(), after.roots_pem)
    assert certificates(pem.encode()) == list(after.roots) and not refused


def test_an_accepted_successor_is_trusted_without_the_old_root(tmp_path: Path) -> None:
    before, after = followed(tmp_path / "a")
    pem, _ = accepted(before.trusted_pem.decode(), after.roots_pem)
    successor = after.roots_pem[after.roots_pem.index(b"-----BEGIN", 10) :]
    pem, refused = accepted(pem, successor)
    assert certificates(pem.encode()) == [after.roots[1]] and not refused


def test_a_root_that_nobody_vouches_for_is_refused_and_named(tmp_path: Path) -> None:
    one, stranger = authority(tmp_path / "a"), authority(tmp_path / "b")
    pem, refused = accepted(one.trusted_pem.decode(), one.roots_pem + stranger.roots_pem)
    assert certificates(pem.encode()) == [one.roots[0]]
    assert refused == [stranger.roots[0].subject.rfc4514_string()]


def test_a_successor_of_another_service_is_refused(tmp_path: Path) -> None:
    one = authority(tmp_path / "a")
    _, stranger = followed(tmp_path / "b")
    with pytest.raises(CertificateError, match="keeps what it has"):
        accepted(one.trusted_pem.decode(), stranger.roots_pem)
    assert stranger.cross is not None
    # A cross of the right name, vouching for another key, by a root that is not trusted.
    pem, refused = accepted(one.trusted_pem.decode(), one.roots_pem + stranger.roots_pem)
    assert certificates(pem.encode()) == [one.roots[0]] and len(refused) == 2


@pytest.mark.parametrize("offer", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nMIIB"])
def test_an_offer_that_cannot_be_read_changes_nothing(tmp_path: Path, offer: bytes) -> None:
    with pytest.raises(CertificateError, match="cannot be read|keeps what it has"):
        accepted(authority(tmp_path / "a").trusted_pem.decode(), offer)


def test_a_devices_certificate_is_no_root(tmp_path: Path) -> None:
    """The intermediate, or a device, must not be able to make a root."""
    one = authority(tmp_path / "a")
    by_intermediate = one.sign_server(["localhost"], time.time())
    chain = by_intermediate[by_intermediate.index(b"-----BEGIN CERTIFICATE") :]
    pem, refused = accepted(one.trusted_pem.decode(), chain)
    assert certificates(pem.encode()) == [one.roots[0]] and not refused


def test_a_device_follows_its_service_to_the_roots_successor(tmp_path: Path) -> None:
    """Old root, both, then the successor alone: the device renews once, and stays connected."""

    async def test() -> None:
        now = Time(time.time())
        folder = tmp_path / "a"
        async with service(folder, now=now) as served:
            made = await enrolled(served, IdentityFile.under(tmp_path / "state"))
            device = Device(served, tmp_path, now, now)
            await deliver_all(device.uplink, requests(1))
            served.authority = served.authority.new_root(folder / ROOT_KEY, now())
            key = folder / "successor-key.pem"
            served.authority = served.authority.renew_intermediate(key, now())
            await served.restart()  # its chain leads to the successor, and by the cross to the root
            assert_one_answer_each(await deliver_all(device.uplink, items := requests(1)), items)
            now.at += 61 * DAY_S
            await device.renewal.turn()
            after = device.enrolled.now
            assert len(certificates(after.roots_pem.encode())) == 2 and after != made
            served.authority = served.authority.retire_root()
            await served.restart()
            assert_one_answer_each(await deliver_all(device.uplink, items := requests(1)), items)
            assert served.serials[-1] == after.serial
            await device.uplink.close()

    run(test)


def test_a_device_that_missed_the_successor_is_told_to_enrol_again(tmp_path: Path) -> None:
    async def test() -> None:
        folder = tmp_path / "a"
        async with service(folder) as served:
            file = IdentityFile.under(tmp_path / "state")
            await enrolled(served, file)
            device = Device(served, tmp_path, Time(time.time()), Time(0.0))
            served.authority = served.authority.new_root(folder / ROOT_KEY, time.time())
            key = folder / "successor-key.pem"
            served.authority = served.authority.renew_intermediate(key, time.time()).retire_root()
            await served.restart()
            with pytest.raises(CertificateError, match="not from the authority.*enrol again"):
                await device.uplink.connect()
            await device.uplink.close()

    run(test)
