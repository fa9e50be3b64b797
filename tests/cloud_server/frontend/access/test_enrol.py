"""Enrol and Renew: a code enrols one device once, and a device renews only its own certificate."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import update

from cloud_server.identity import certificates as made
from cloud_server.identity.authority import DAY_S, ROOT_KEY
from cloud_server.identity.tls import AUTHORITY, SERVER, write_server
from cloud_server.state import certificates, devices
from cloud_server.state.audit import entries
from cloud_server.state.tables import CertificateRow, CodeRow
from edge_agent.identity.enrol import request_of
from protos.errors import (
    BridgeError,
    CertificateError,
    EnrolmentError,
    FrameMalformedError,
    OverloadedError,
    UnauthenticatedError,
)
from protos.identity import OneTimeCode, device_uri
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.identity.pki import Device
from tests.cloud_server.secured import Secured, asked, secured
from tests.fakes.loop import on_loop

_NOW = time.time()


async def fails(server: Secured, code: object, request: bytes | None = None) -> BridgeError:
    with pytest.raises(BridgeError) as error:
        await server.enrol(str(code), request)
    return error.value


@on_loop
async def test_a_certificate_names_the_device_whose_code_it_was(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        code, key = server.premises.code("gate-7", "globex"), made.fresh_key()
        reply = await asked(
            server.stub().Enrol(pb.EnrolRequest(code=str(code), request_der=request_of(key)))
        )
        assert (reply.tenant, reply.device) == ("globex", "gate-7")
        leaf = x509.load_pem_x509_certificates(reply.chain_pem)[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
            device_uri("globex", "gate-7")
        ]
        assert reply.not_after_s == reply.now_s + 90 * DAY_S
        late_s = leaf.not_valid_after_utc.timestamp() - reply.not_after_s
        assert abs(late_s - 365 * DAY_S) < 2, "TLS lets it in for as long as it may be renewed"
        assert reply.roots_pem == server.premises.authority.roots_pem
        assert leaf.public_key() == key.public_key()


@on_loop
async def test_a_used_an_expired_a_wrong_and_a_malformed_code_are_refused_in_the_same_words(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        premises = server.premises
        used, expired, shut, older = (premises.code(name) for name in ("a", "b", "c", "d"))
        newer = premises.code("d")
        await server.enrol(used)
        with premises.store.write("test") as tx:
            devices.disable(tx, "acme", "c")
            end = update(CodeRow).where(
                CodeRow.device_id == devices.find(tx.session, "acme", "b").id
            )
            tx.session.execute(end.values(expires_s=tx.now_s - 1))
        wrong = OneTimeCode.fresh(premises.authority.root_der)
        tried = [used, expired, shut, older, wrong, "", "NB1-", "x" * 200, str(wrong)[:-1]]
        errors = [await fails(server, code) for code in tried]
        assert {(type(error), error.message) for error in errors} == {
            (EnrolmentError, errors[0].message)
        }
        await server.enrol(newer)


@pytest.mark.slow
@on_loop
async def test_a_code_used_twice_at_once_gives_one_certificate(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc", enrolment_burst=100) as server:
        for number in range(4):
            code = server.premises.code(f"gate-{number}")
            tries = [server.enrol(code) for _ in range(6)]
            ends = await asyncio.gather(*tries, return_exceptions=True)
            assert sum(isinstance(end, Device) for end in ends) == 1, ends
            assert sum(isinstance(end, EnrolmentError) for end in ends) == 5, ends
        with server.premises.store.read() as session:
            assert len(certificates.of(session, "acme", "gate-0")) == 1


@on_loop
async def test_a_bad_request_does_not_use_the_code_up(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        code = server.premises.code()
        assert isinstance(await fails(server, code, b"rubbish"), CertificateError)
        assert isinstance(await fails(server, code, bytes(5000)), CertificateError)
        assert isinstance(await fails(server, code, bytes(9000)), FrameMalformedError)
        raw = server.channel().unary_unary("/neuralbridge.v1.Bridge/Enrol")
        with pytest.raises(FrameMalformedError):
            await asked(raw(b"\xff\xff\xff"))
        await server.enrol(code)


@on_loop
async def test_who_guesses_codes_is_told_to_wait(paths: dict[str, Any], tmp_path: Path) -> None:
    slow = {"enrolments_per_s": 0.001, "enrolment_burst": 3}
    async with secured(paths, tmp_path / "svc", **slow) as server:
        code = server.premises.code()
        for _ in range(3):
            await fails(server, OneTimeCode.fresh(b"x"))
        assert isinstance(await fails(server, code), OverloadedError)


@on_loop
async def test_every_certificate_is_in_the_audit_log(paths: dict[str, Any], tmp_path: Path) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        await renewed(server, device)
        with server.premises.store.read() as session:
            done = [(entry.actor, entry.action, entry.subject) for entry in entries(session)]
        assert ("enrolment", "code.redeem", "gate-3") in done
        assert ("enrolment", "certificate.issue", "gate-3") in done
        assert ("device:acme/gate-3", "certificate.issue", "gate-3") in done


async def renewed(server: Secured, device: Device) -> Device:
    key = made.fresh_key()
    reply = await asked(server.stub(device).Renew(pb.RenewRequest(request_der=request_of(key))))
    return Device(made.key_pem(key), reply.chain_pem, reply.roots_pem)


@on_loop
async def test_a_device_renews_over_its_connection_and_the_old_certificate_serves_on(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        old = await server.enrol(server.premises.code())
        new = await renewed(server, old)
        assert new.chain_pem != old.chain_pem
        for device in (old, new):
            assert (await (await server.edge(device)).say("count 1")).answer.text == "0"


async def aged(server: Secured, days: float, **also: Any) -> None:
    """Move every certificate's end into the past."""
    with server.premises.store.write("test") as tx:
        tx.session.execute(
            update(CertificateRow).values(not_after_s=time.time() - days * DAY_S, **also)
        )
        tx.audit("test", "acme", "gate-3")
    await server.settled()


@on_loop
async def test_a_certificate_that_has_expired_is_renewed_and_good_for_nothing_else(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc", late_renewal_days=100.0) as server:
        old = await server.enrol(server.premises.code())
        await aged(server, 99)
        with pytest.raises(UnauthenticatedError):
            await asked(server.stub(old).Negotiate(pb.NegotiateRequest()))
        new = await renewed(server, old)
        assert (await (await server.edge(new)).say("count 1")).answer.text == "0"
        await aged(server, 101)
        with pytest.raises(UnauthenticatedError):
            await renewed(server, new)


@pytest.mark.quick(1)
@pytest.mark.parametrize("how", ["revoke", "disable", "enrol again"])
@on_loop
async def test_a_revoked_certificate_is_not_renewed_after_its_end(
    paths: dict[str, Any], tmp_path: Path, how: str
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        old = await server.enrol(server.premises.code())
        await aged(server, 10)
        if how == "enrol again":
            await server.enrol(server.premises.code())
        else:
            with server.premises.store.write("test") as tx:
                if how == "revoke":
                    assert len(devices.revoke(tx, "acme", "gate-3")) == 1
                else:
                    devices.disable(tx, "acme", "gate-3")
                    devices.enable(tx, "acme", "gate-3")
        await server.settled()
        with pytest.raises(UnauthenticatedError):
            await renewed(server, old)


@on_loop
async def test_renew_needs_a_client_certificate(paths: dict[str, Any], tmp_path: Path) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        key = server.premises.operator()
        await server.settled()
        asking = pb.RenewRequest(request_der=request_of(made.fresh_key()))
        for metadata in ((), (("authorization", f"Bearer {key}"),)):
            with pytest.raises(UnauthenticatedError):
                await asked(server.stub().Renew(asking, metadata=metadata))


@on_loop
async def test_a_device_that_renews_all_the_time_is_told_to_wait(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        with pytest.raises(OverloadedError) as error:
            for _ in range(20):
                device = await renewed(server, device)
        assert error.value.retryable


@on_loop
async def test_a_device_learns_of_the_roots_successor_when_it_renews_and_outlives_the_root(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        keys = server.premises.directory / AUTHORITY
        old = await server.enrol(server.premises.code())
        server.premises.authority.new_root(keys / ROOT_KEY, _NOW)
        server.service.access.reload()
        new = await renewed(server, old)
        present, successor, cross = x509.load_pem_x509_certificates(new.roots_pem)
        assert made.pem(present) == old.roots_pem
        cross.verify_directly_issued_by(present)
        moved = server.premises.authority.renew_intermediate(keys / "successor-key.pem", _NOW)
        write_server(server.premises.directory / SERVER, moved, ["127.0.0.1"], _NOW)
        server.service.access.reload()
        last = await renewed(server, new)
        alone = moved.retire_root()
        write_server(server.premises.directory / SERVER, alone, ["127.0.0.1"], _NOW)
        server.service.access.reload()
        kept = Device(last.key_pem, last.chain_pem, made.pem(successor))
        assert (await (await server.edge(kept)).say("count 1")).answer.text == "0"


@on_loop
async def test_a_certificate_forged_with_a_stolen_intermediate_key_is_refused(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    """Also with a real certificate's serial number: the service compares digests."""
    async with secured(paths, tmp_path / "svc") as server:
        real = await server.enrol(server.premises.code())
        leaf, intermediate = x509.load_pem_x509_certificates(real.chain_pem)
        key = made.fresh_key()
        forged = x509.CertificateBuilder(
            leaf.issuer,
            leaf.subject,
            key.public_key(),
            leaf.serial_number,
            leaf.not_valid_before_utc,
            leaf.not_valid_after_utc,
            list(leaf.extensions),
        ).sign(server.premises.authority.intermediate.key, leaf.signature_hash_algorithm)
        stolen = Device(made.key_pem(key), made.pem(forged, intermediate), real.roots_pem)
        with pytest.raises(UnauthenticatedError):
            await asked(server.stub(stolen).Negotiate(pb.NegotiateRequest()))
        with pytest.raises(UnauthenticatedError):
            await renewed(server, stolen)
