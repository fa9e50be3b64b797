"""TLS of the server: what it shows, which versions it takes, and files that change under it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from cloud_server.identity import certificates
from cloud_server.identity.authority import DAY_S, ROOT_KEY, SUCCESSOR_KEY, Authority
from cloud_server.identity.tls import AUTHORITY, SERVER, ServerTls, secrets_in_reach, write_server
from protos.errors import CertificateError
from tests.cloud_server.identity.pki import Device, enrolled, foreign_server
from tests.fakes.loop import on_loop

NOW = time.time()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / AUTHORITY).mkdir()
    authority = Authority.create(tmp_path / AUTHORITY, NOW)
    write_server(tmp_path / SERVER, authority, ["localhost", "127.0.0.1"], NOW)
    return tmp_path


def tls_of(directory: Path, *pair: Path, clock: float = NOW) -> ServerTls:
    certificate, key = (*pair, None, None)[:2]
    return ServerTls(directory, certificate, key, lambda: clock, structlog.get_logger())


async def _echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


@asynccontextmanager
async def served(tls: ServerTls) -> AsyncIterator[tuple[int, int]]:
    """An echo on the devices' port and on the open port."""
    server = grpc.aio.server()
    handlers = {"Echo": grpc.stream_stream_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", handlers),))
    mutual, plain = (
        server.add_secure_port("127.0.0.1:0", tls.credentials(kind)) for kind in (True, False)
    )
    await server.start()
    try:
        yield mutual, plain
    finally:
        await server.stop(0)


def stream(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream("/t/Echo")(timeout=60)


async def echoed(call: Any, said: bytes = b"x") -> bool:
    await call.write(said)
    return bool(await call.read() == said)


async def reached(port: int, credentials: grpc.ChannelCredentials) -> bool:
    """Whether a new connection gets an answer."""
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        try:
            return await echoed(stream(channel))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return False


@on_loop
async def test_a_device_is_let_in_and_a_client_without_certificate_is_not(
    directory: Path,
) -> None:
    device = enrolled(directory)
    async with served(tls_of(directory)) as (mutual, plain):
        assert await reached(mutual, device.credentials())
        assert not await reached(mutual, device.only_roots())
        assert await reached(plain, device.only_roots())


@pytest.mark.parametrize("days", [-1.0, -3650.0])
@on_loop
async def test_an_expired_certificate_is_refused_at_the_handshake(
    directory: Path, days: float
) -> None:
    device = enrolled(directory, life_s=days * DAY_S)
    async with served(tls_of(directory)) as (mutual, _):
        assert not await reached(mutual, device.credentials())


@on_loop
async def test_strangers_certificates_are_refused_at_the_handshake(
    directory: Path, tmp_path: Path
) -> None:
    good = enrolled(directory)
    (tmp_path / "other" / AUTHORITY).mkdir(parents=True)
    Authority.create(tmp_path / "other" / AUTHORITY, NOW)
    other = enrolled(tmp_path / "other")
    key = certificates.fresh_key()
    alone = certificates.pem(certificates.make_root(key, NOW + DAY_S))
    strangers = {
        "of another authority": (other.key_pem, other.chain_pem),
        "self-signed": (certificates.key_pem(key), alone),
        "with another key": (other.key_pem, good.chain_pem),
    }
    server_key, server_chain = _pair((directory / SERVER).read_bytes())
    strangers["the server's own"] = (server_key, server_chain)
    async with served(tls_of(directory)) as (mutual, _):
        for name, (key_pem, chain_pem) in strangers.items():
            shown = Device(key_pem, chain_pem, good.roots_pem)
            assert not await reached(mutual, shown.credentials()), name


@on_loop
async def test_a_certificate_that_is_not_valid_yet_is_refused_at_the_handshake(
    directory: Path,
) -> None:
    device = enrolled(directory, begins_s=NOW + 30 * DAY_S)
    async with served(tls_of(directory)) as (mutual, _):
        assert not await reached(mutual, device.credentials())


def _pair(pem: bytes) -> tuple[bytes, bytes]:
    key, _, chain = pem.partition(b"-----END PRIVATE KEY-----\n")
    return key + b"-----END PRIVATE KEY-----\n", chain


@on_loop
async def test_a_changed_certificate_is_shown_to_new_connections_and_open_streams_live_on(
    directory: Path,
) -> None:
    device, tls = enrolled(directory), tls_of(directory)
    async with served(tls) as ports:
        for port in ports:
            async with grpc.aio.secure_channel(
                f"127.0.0.1:{port}", device.credentials()
            ) as channel:
                before = stream(channel)
                assert await echoed(before)
                seen = await asyncio.to_thread(_leaf, port, device)
                write_server(directory / SERVER, tls.authority, ["127.0.0.1"], NOW)
                assert tls.refresh() and not tls.refresh()
                assert await asyncio.to_thread(_leaf, port, device) != seen
                assert await echoed(before, b"still")


def _leaf(port: int, device: Device) -> bytes | None:
    context = device.context()
    with socket.create_connection(("127.0.0.1", port)) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
            return secured.getpeercert(True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"-----BEGIN CERTIFICATE-----\nrubbish"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:400]),
        lambda path: path.write_bytes(
            certificates.key_pem(certificates.fresh_key()) + _pair(path.read_bytes())[1]
        ),
    ],
)
@on_loop
async def test_a_bad_file_keeps_the_old_certificate(directory: Path, damage: Any) -> None:
    device, tls = enrolled(directory), tls_of(directory)
    good = (directory / SERVER).read_bytes()
    async with served(tls) as (mutual, _):
        damage(directory / SERVER)
        assert not tls.refresh()
        assert await reached(mutual, device.credentials())
        (directory / SERVER).write_bytes(good)
        assert tls.refresh() and await reached(mutual, device.credentials())


@on_loop
async def test_certificates_of_a_replaced_intermediate_go_on_and_so_does_a_retired_roots_device(
    directory: Path,
) -> None:
    """The whole way of an authority: new intermediate, successor, intermediate of it, old gone."""
    old, tls = enrolled(directory), tls_of(directory)

    def change(act: Any) -> None:
        authority = act(Authority.open(directory / AUTHORITY))
        write_server(directory / SERVER, authority, ["127.0.0.1"], NOW)
        assert tls.refresh()

    keys = directory / AUTHORITY
    async with served(tls) as (mutual, plain):
        change(lambda a: a.renew_intermediate(keys / ROOT_KEY, NOW))
        assert await reached(mutual, old.credentials())
        change(lambda a: a.new_root(keys / ROOT_KEY, NOW))
        between = enrolled(directory)
        change(lambda a: a.renew_intermediate(keys / SUCCESSOR_KEY, NOW))
        late = enrolled(directory)
        for device in (old, between, late):
            for port in (mutual, plain):
                assert await reached(port, device.credentials())
        change(lambda a: a.retire_root())
        assert await reached(mutual, late.credentials())
        assert not await reached(mutual, between.credentials()), "its chain ends at the old root"
        assert not await reached(plain, old.only_roots())


@on_loop
async def test_the_open_port_shows_the_root_that_a_code_names_and_the_other_spares_it(
    directory: Path,
) -> None:
    device, tls = enrolled(directory), tls_of(directory)
    async with served(tls) as ports:
        shown = [await asyncio.to_thread(_chain, port, device) for port in ports]
    assert tls.authority.root_der == shown[1][-1]
    assert tls.authority.root_der not in shown[0]


def _chain(port: int, device: Device) -> list[bytes]:
    context = device.context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as plain:
        with context.wrap_socket(plain) as secured:
            inner = secured._sslobj  # type: ignore[attr-defined]
            return [
                ssl.PEM_cert_to_DER_cert(c.public_bytes()) for c in inner.get_unverified_chain()
            ]


@on_loop
async def test_a_companys_certificate_is_shown_instead_and_followed(
    directory: Path, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    company = foreign_server(certificate, key)
    tls = tls_of(directory, certificate, key)
    device = enrolled(directory)
    shown = Device(device.key_pem, device.chain_pem, company)
    async with served(tls) as (mutual, plain):
        assert await reached(mutual, shown.credentials())
        assert await reached(plain, shown.only_roots())
        assert not await reached(plain, device.only_roots())
        again = foreign_server(certificate, key)
        assert tls.refresh()
        assert await reached(plain, Device(b"", b"", again).only_roots())
        assert not await reached(plain, shown.only_roots())


def test_an_rsa_key_of_a_company_is_taken(directory: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "both.pem"
    foreign_server(certificate, certificate, rsa.generate_private_key(65537, 2048))
    assert tls_of(directory, certificate).context().minimum_version is ssl.TLSVersion.TLSv1_3


def test_a_key_of_another_certificate_is_named(directory: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    foreign_server(certificate, key)
    key.write_bytes(certificates.key_pem(certificates.fresh_key()))
    with pytest.raises(CertificateError, match=r"privkey\.pem: is not the private key of"):
        tls_of(directory, certificate, key)
    with pytest.raises(CertificateError, match=r"missing\.pem: cannot be read"):
        tls_of(directory, tmp_path / "missing.pem")


def test_a_companys_certificate_that_has_ended_is_not_shown(
    directory: Path, tmp_path: Path
) -> None:
    certificate = tmp_path / "both.pem"
    foreign_server(certificate, certificate)
    with pytest.raises(CertificateError, match=r"both\.pem: has expired"):
        tls_of(directory, certificate, clock=NOW + 31 * DAY_S)


def test_a_service_that_was_off_for_long_makes_itself_a_new_certificate(directory: Path) -> None:
    later_s = NOW + 200 * DAY_S
    assert tls_of(directory, clock=later_s).shown.end_s == int(later_s + 90 * DAY_S)
    with pytest.raises(CertificateError, match="renew-intermediate"):
        tls_of(directory, clock=NOW + 3 * 365 * DAY_S)


def test_the_servers_own_certificate_is_renewed_in_its_last_third_under_the_same_names(
    directory: Path,
) -> None:
    def names(tls: ServerTls) -> Any:
        return tls.shown.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)

    clock = [NOW]
    tls = ServerTls(directory, None, None, lambda: clock[0], structlog.get_logger())
    before, named = tls.shown, names(tls)
    assert not tls.renew() and tls.shown is before
    clock[0] = NOW + 61 * DAY_S
    assert tls.renew() and not tls.renew()
    assert tls.shown.end_s == int(NOW + 151 * DAY_S) and names(tls) == named
    assert os.stat(directory / SERVER).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_loop
async def test_http_speaks_tls_1_3_alone_and_follows_the_files(
    directory: Path, version: ssl.TLSVersion
) -> None:
    device, tls = enrolled(directory), tls_of(directory)
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=tls.context()
    )
    port = server.sockets[0].getsockname()[1]

    def serial() -> str:
        context = device.context()
        context.maximum_version = version
        with socket.create_connection(("127.0.0.1", port)) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
                return str((secured.getpeercert() or {})["serialNumber"])

    async with server:
        if version is ssl.TLSVersion.TLSv1_2:
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(serial)
            return
        before = await asyncio.to_thread(serial)
        write_server(directory / SERVER, tls.authority, ["127.0.0.1"], NOW)
        tls.refresh()
        assert await asyncio.to_thread(serial) != before


def test_keys_that_others_can_reach_are_named(directory: Path) -> None:
    named = [path.name for path, _ in secrets_in_reach(directory)]
    assert named == [ROOT_KEY]
    (directory / AUTHORITY / ROOT_KEY).unlink()
    assert secrets_in_reach(directory) == []
    (directory / SERVER).chmod(0o640)
    assert secrets_in_reach(directory) == [(directory / SERVER, "others may read it: chmod 600")]
