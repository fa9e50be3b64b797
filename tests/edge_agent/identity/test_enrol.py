"""Enrolment: who is asked, what is sent, what is stored, and what happens when it is cut short."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.identity import enrol as enrolling
from edge_agent.identity.enrol import enrol
from edge_agent.identity.identity import Identity
from edge_agent.identity.identity_file import IdentityFile
from protos.errors import (
    BridgeError,
    CertificateError,
    ConflictError,
    DiskFullError,
    EnrolmentError,
    OfflineError,
)
from protos.identity import OneTimeCode
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import make_encoder
from tests.fakes.secure_bridge import DEVICE, TENANT, SecureBridge


@asynccontextmanager
async def service(folder: Path, **kwargs: Any) -> AsyncIterator[SecureBridge]:
    served = SecureBridge(make_encoder(), folder=folder, **kwargs)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 30)

    asyncio.run(limited())


@pytest.fixture
def file(tmp_path: Path) -> IdentityFile:
    return IdentityFile.under(tmp_path / "state")


async def enrolled(served: SecureBridge, file: IdentityFile, **kwargs: Any) -> Identity:
    return await enrol(served.open_address, OneTimeCode.parse(served.code()), file, **kwargs)


def test_a_device_gets_its_name_and_stores_its_key_for_itself_alone(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "authority") as served:
            made = await enrolled(served, file)
            assert (made.tenant, made.device) == (TENANT, DEVICE)
            assert file.load() == made
            assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
            assert os.listdir(file.path.parent) == [file.path.name]
            (sent,) = served.enrolments
            assert "PRIVATE" in made.key_pem and b"PRIVATE" not in sent.SerializeToString()

    run(test)


def test_an_enrolled_device_keeps_its_identity_unless_it_is_told_to_replace_it(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "authority") as served:
            first = await enrolled(served, file)
            with pytest.raises(ConflictError, match="acme/gate-3.*--force"):
                await enrolled(served, file)
            assert len(served.enrolments) == 1, "the code is not used up"
            second = await enrolled(served, file, force=True)
            assert file.load() == second != first

    run(test)


def test_a_code_that_is_refused_leaves_the_old_identity(tmp_path: Path, file: IdentityFile) -> None:
    async def test() -> None:
        async with service(tmp_path / "authority") as served:
            first = await enrolled(served, file)
            used = OneTimeCode.parse(served.enrolments[0].code)
            with pytest.raises(EnrolmentError, match="wrong, used or expired"):
                await enrol(served.open_address, used, file, force=True)
            assert file.load() == first

    run(test)


def test_a_code_of_another_service_is_not_sent(tmp_path: Path, file: IdentityFile) -> None:
    async def test() -> None:
        async with service(tmp_path / "one") as one, service(tmp_path / "other") as other:
            with pytest.raises(CertificateError, match="nothing was sent"):
                await enrol(other.open_address, OneTimeCode.parse(one.code()), file)
            assert not other.enrolments and file.load() is None

    run(test)


def test_a_stranger_between_who_shows_the_real_root_gets_no_code(
    tmp_path: Path, file: IdentityFile
) -> None:
    """The root's certificate is public: showing it at the end of a chain proves nothing."""

    async def test() -> None:
        async with service(tmp_path / "one") as one:
            stranger = SecureBridge(make_encoder(), folder=tmp_path / "stranger")
            own = stranger.authority.sign_server(["localhost"], time.time())
            stranger.server_pem = own + one.authority.roots_pem
            await stranger.start()
            with pytest.raises(CertificateError, match="nothing was sent"):
                await enrol(stranger.open_address, OneTimeCode.parse(one.code()), file)
            assert not stranger.enrolments and file.load() is None
            await stranger.stop()

    run(test)


def test_a_server_of_another_name_gets_no_code_unless_the_name_is_given(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a", names=("cloud.example",)) as served:
            with pytest.raises(CertificateError, match="not for the name localhost.*--server-name"):
                await enrolled(served, file)
            assert not served.enrolments
            await enrolled(served, file, server_name="cloud.example")

    run(test)


@pytest.mark.parametrize("ca", ["own", "stranger"])
def test_with_certificates_of_another_authority_the_code_goes_only_to_that_authoritys_servers(
    tmp_path: Path, file: IdentityFile, ca: str
) -> None:
    async def test() -> None:
        foreign = SecureBridge(make_encoder(), folder=tmp_path / "foreign").authority
        pem = foreign.sign_server(["localhost"], time.time())
        async with service(tmp_path / "a", server_pem=pem) as served:
            trusted = {"own": served.authority, "stranger": foreign}["own" if ca == "own" else ca]
            path = tmp_path / "ca.pem"
            path.write_bytes(trusted.trusted_pem)
            if ca == "own":
                with pytest.raises(CertificateError, match="--ca"):
                    await enrolled(served, file, ca=str(path))
                assert not served.enrolments
                return
            with pytest.raises(CertificateError, match="give its roots with --ca"):
                await enrolled(served, file)
            made = await enrolled(served, file, ca=str(path))
            assert made.roots_pem.encode() == served.authority.trusted_pem

    run(test)


def test_a_service_whose_roots_are_not_the_codes_is_refused_after_the_call(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served, service(tmp_path / "b") as other:
            code = str(OneTimeCode.fresh(other.authority.root_der))
            served.codes.add(code)
            path = tmp_path / "ca.pem"
            path.write_bytes(served.authority.trusted_pem)
            with pytest.raises(CertificateError, match="not the one that the code names"):
                await enrol(served.open_address, OneTimeCode.parse(code), file, ca=str(path))
            assert file.load() is None

    run(test)


def test_a_full_disk_is_noticed_before_the_code_is_used_up(
    tmp_path: Path, file: IdentityFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")

    def no_room(path: Path, content: bytes, mode: int = 0o666) -> None:
        with full.open("wb", buffering=0) as device:
            device.write(content)

    async def test() -> None:
        async with service(tmp_path / "a") as served:
            first = await enrolled(served, file)
            with monkeypatch.context() as patch:
                patch.setattr("edge_agent.identity.identity_file.write_file", no_room)
                with pytest.raises(DiskFullError):
                    await enrolled(served, file, force=True)
            assert len(served.enrolments) == 1 and file.load() == first
            assert os.listdir(file.path.parent) == [file.path.name]

    run(test)


def test_an_enrolment_that_was_killed_can_be_repeated(
    tmp_path: Path, file: IdentityFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the service signed and before the identity was stored: a draft may be left."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    async def test() -> None:
        async with service(tmp_path / "a") as served:
            code = served.code()
            with monkeypatch.context() as patch:
                patch.setattr("os.replace", kill)
                patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
                with pytest.raises(Killed):
                    await enrol(served.open_address, OneTimeCode.parse(code), file)
            assert file.load() is None
            (draft,) = file.path.parent.glob("*.part")
            assert stat.S_IMODE(draft.stat().st_mode) == 0o600
            os.utime(draft, (0, 0))
            made = await enrolled(served, file)
            assert file.load() == made
            assert os.listdir(file.path.parent) == [file.path.name], "its key is not left behind"

    run(test)


def test_a_certificate_for_another_key_or_name_is_not_stored(
    tmp_path: Path, file: IdentityFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            stranger = enrolling.request_of(enrolling.fresh_key())
            issue = served._issue
            monkeypatch.setattr(served, "_issue", lambda _, t, d: issue(stranger, t, d))
            with pytest.raises(CertificateError, match="not of this key"):
                await enrolled(served, file)
            monkeypatch.setattr(served, "_issue", lambda r, t, d: _renamed(issue(r, t, d)))
            with pytest.raises(CertificateError, match="not of device acme/gate-4"):
                await enrolled(served, file)
            assert file.load() is None

    def _renamed(reply: Any) -> Any:
        reply.device = "gate-4"
        return reply

    run(test)


def test_a_service_in_plain_text_or_gone_is_told_apart(tmp_path: Path, file: IdentityFile) -> None:
    async def test() -> None:
        plain = FakeBridge(make_encoder())
        await plain.start()
        code = OneTimeCode.fresh(b"any")
        with pytest.raises(OfflineError, match="does not speak TLS 1.3"):
            await enrol(plain.address, code, file)
        await plain.stop()
        with pytest.raises(OfflineError, match="cannot be reached"):
            await enrol("127.0.0.1:1", code, file)

    run(test)


# ---------------------------------------------------------------------- the file


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_may_read_is_refused_with_what_to_do(
    tmp_path: Path, file: IdentityFile, mode: int
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            await enrolled(served, file)
            file.path.chmod(mode)
            with pytest.raises(CertificateError, match=f"mode {mode:o}.*chmod 600"):
                file.load()
            file.path.chmod(0o600)
            file.path.parent.chmod(0o777)
            with pytest.raises(CertificateError, match="chmod 700"):
                file.load()

    run(test)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("BEGIN PRIVATE", "BEGIN PRIVAT"),
        lambda text: text.replace('"issued_s": ', '"issued_s": "x", "y": '),
        lambda text: text.replace(DEVICE, "gate-4"),
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "\0" * 50,
        lambda text: text.replace("MI", "MJ", 1),
    ],
)
def test_a_damaged_file_says_enrol_again(
    tmp_path: Path, file: IdentityFile, damage: Callable[[str], str]
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            await enrolled(served, file)
            file.path.write_text(damage(file.path.read_text()))
            with pytest.raises(CertificateError, match="enrol --force|enrol this device again"):
                file.load()
            with pytest.raises(ConflictError, match="--force"):
                await enrolled(served, file)
            await enrolled(served, file, force=True)

    run(test)


def test_another_devices_key_beside_this_certificate_is_found(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            one = await enrolled(served, file)
            other = await enrolled(served, file, force=True)
            file.save(replace(one, key_pem=other.key_pem))
            with pytest.raises(CertificateError, match="not of this key"):
                file.load()

    run(test)


def test_errors_of_the_service_keep_their_type(tmp_path: Path, file: IdentityFile) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            served.enrol_errors = [BridgeError("new"), EnrolmentError("too often")]
            with pytest.raises(BridgeError, match="new"):
                await enrolled(served, file)
            with pytest.raises(EnrolmentError, match="too often"):
                await enrolled(served, file)

    run(test)
