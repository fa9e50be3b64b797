"""Who may call a service with identities; a stranger learns nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sqlalchemy import update

from cloud_server.identity.identify import credential_of
from cloud_server.settings import SETTINGS_FILE, load
from cloud_server.state import keys
from cloud_server.state.tables import KeyRow
from protos.calls import SERVICE
from protos.errors import (
    BridgeError,
    ConfigError,
    FrameMalformedError,
    OverloadedError,
    StateError,
    UnauthenticatedError,
)
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.front_end import running
from tests.cloud_server.identity.pki import enrolled, foreign_server
from tests.cloud_server.secured import Secured, secured, typed
from tests.fakes.loop import on_loop

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "Negotiate": lambda stub, sent: stub.Negotiate(pb.NegotiateRequest(), metadata=sent),
    "FetchEncoder": lambda stub, sent: stub.FetchEncoder(pb.FetchEncoderRequest(), metadata=sent),
    "Infer": lambda stub, sent: stub.Infer(metadata=sent),
    "Events": lambda stub, sent: stub.Events(pb.EventsRequest(), metadata=sent),
    "Ask": lambda stub, sent: stub.Ask(pb.AskRequest(), metadata=sent),
    "Feedback": lambda stub, sent: stub.Feedback(pb.FeedbackRequest(), metadata=sent),
    "Shadow": lambda stub, sent: stub.Shadow(metadata=sent),
    "CheckUpdate": lambda stub, sent: stub.CheckUpdate(pb.CheckUpdateRequest(), metadata=sent),
    "FetchUpdate": lambda stub, sent: stub.FetchUpdate(pb.FetchUpdateRequest(), metadata=sent),
    "Renew": lambda stub, sent: stub.Renew(pb.RenewRequest(), metadata=sent),
    "Attend": lambda stub, sent: stub.Attend(pb.AttendRequest(), metadata=sent),
    "Report": lambda stub, sent: stub.Report(pb.ReportRequest(), metadata=sent),
}
"""A call of every RPC but Enrol, by a stub and with metadata."""


def bearing(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def ending(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """How a call ends, by everything that its caller sees."""
    code, details = await call.code(), await call.details()
    return code, details, str(sorted(await call.trailing_metadata() or ()))


def test_no_call_is_forgotten() -> None:
    methods = pb.DESCRIPTOR.services_by_name["Bridge"].methods
    assert {method.name for method in methods} == {*CALLS, "Enrol"}


@on_loop
async def test_a_device_enrols_and_asks(paths: dict[str, Any], tmp_path: Path) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        edge = await server.edge(device)
        assert (await edge.say("count 2")).answer.text == "0 1"


@on_loop
async def test_a_stranger_gets_the_same_answer_from_every_call_whatever_is_wrong(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        names = ("removed", "disabled", "ended")
        shown = {name: bearing(server.premises.key(name=name)) for name in names}
        with server.premises.store.write("test") as tx:
            keys.remove(tx, "acme", "removed")
            keys.disable(tx, "acme", "disabled")
            ended = update(KeyRow).where(KeyRow.name == "ended")
            tx.session.execute(ended.values(not_after_s=tx.now_s - 1))
        shown |= {
            "nothing": (),
            "unknown": bearing(f"nbk_{'x' * 43}"),
            "empty": bearing(""),
            "long": bearing("x" * 3000),
            "of another scheme": (("authorization", "Basic nbk_xyz"),),
        }
        await server.settled()
        channel = server.stub()
        endings = {
            (name, what): await ending(call(channel, metadata))
            for name, call in CALLS.items()
            for what, metadata in shown.items()
        }
        # A certificate of our own authority that is in no database.
        unknown = server.stub(enrolled(server.premises.directory))
        for name, call in CALLS.items():
            endings[name, "unknown certificate"] = await ending(call(unknown, ()))
        assert len(set(endings.values())) == 1, endings
        assert endings["Ask", "nothing"][0] is grpc.StatusCode.UNAUTHENTICATED
        assert "701" in endings["Ask", "nothing"][2]


@on_loop
async def test_nothing_that_a_stranger_sends_is_read_before_it_is_refused(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    """Else each of its calls could fill the memory with a message of the longest size."""
    slow = {"enrolments_per_s": 0.001, "enrolment_burst": 1}
    async with secured(paths, tmp_path / "svc", **slow) as server:
        channel = server.channel()

        async def refused(name: str, *messages: bytes) -> BridgeError:
            call = channel.stream_unary(f"/{SERVICE}/{name}")(timeout=60)
            for message in messages:
                await call.write(message)
            if messages:
                await call.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            return typed(error.value)

        for name in CALLS:
            assert isinstance(await refused(name), UnauthenticatedError), name
        assert isinstance(await refused("Enrol", b"no request"), FrameMalformedError)
        assert isinstance(await refused("Enrol"), OverloadedError)


@on_loop
async def test_a_call_that_brings_no_message_is_malformed(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        call = server.channel(device).stream_unary(f"/{SERVICE}/Negotiate")(timeout=60)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert isinstance(typed(error.value), FrameMalformedError)


@on_loop
async def test_a_known_key_is_let_in_on_the_open_port(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        key = server.premises.key()
        await server.settled()
        code, _, _ = await ending(CALLS["Shadow"](server.stub(), bearing(key)))
        assert code is grpc.StatusCode.PERMISSION_DENIED, "known, and told that it is no device"


async def cases(server: Secured) -> dict[str, tuple[str, int]]:
    """The metrics page's answers to keys and without one."""
    premises = server.premises
    found = {
        "": ("", 401),
        "unknown": ("nbk_x", 401),
        "another tenant's operator": (
            premises.key("acme", "boss", kind="operator", scopes=("read", "manage")),
            403,
        ),
        "an application": (premises.key("acme", "app"), 403),
        "without read": (
            premises.key("service", "asker", kind="operator", scopes=("manage",)),
            403,
        ),
        "an operator of the service": (premises.operator(), 200),
    }
    await server.settled()
    return found


@pytest.mark.slow
@on_loop
async def test_metrics_are_for_operators_of_the_service_and_health_for_all(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        for who, (key, status) in (await cases(server)).items():
            got, text = await server.page("/metrics", key)
            assert got == status, who
            assert ("neural_bridge_cloud" in text) is (status == 200), who
        for path in ("/healthz", "/readyz"):
            assert (await server.page(path))[0] == 200
        assert "neural_bridge_cloud_insecure 0.0" in (await server.page("/metrics", key))[1]


@on_loop
async def test_metrics_that_others_reach_are_over_tls(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc", metrics_host="0.0.0.0") as server:
        key = server.premises.operator()
        await server.settled()
        assert (await server.page("/metrics", key, "https"))[0] == 200
        assert (await server.page("/readyz", "", "https"))[0] == 200
        assert (await server.page("/metrics", "", "https"))[0] == 401
        with pytest.raises(OSError):
            await server.page("/readyz")


@on_loop
async def test_reflection_is_for_operators_of_the_service(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        asked = reflection_pb2.ServerReflectionRequest(list_services="")

        def reflect(device: Any, metadata: Any) -> Any:
            stub = reflection_pb2_grpc.ServerReflectionStub(server.channel(device))
            return stub.ServerReflectionInfo(iter([asked]), metadata=metadata)

        for who, (key, status) in (await cases(server)).items():
            call = reflect(None, bearing(key))
            if status == 200:
                listed = (await call.read()).list_services_response.service
                assert "neuralbridge.v1.Bridge" in {service.name for service in listed}
                continue
            expected = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}[status]
            assert (await ending(call))[0] is grpc.StatusCode[expected], who
        assert (await ending(reflect(device, ())))[0] is grpc.StatusCode.PERMISSION_DENIED


@on_loop
async def test_grpcs_health_needs_no_identity(paths: dict[str, Any], tmp_path: Path) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        stub = health_pb2_grpc.HealthStub(server.channel())
        reply = await stub.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_call_over_an_older_tls_or_none_is_refused() -> None:
    class Context:
        def __init__(self, about: dict[str, list[bytes]]) -> None:
            self.auth_context = lambda: about

    pem = b"any certificate"
    for about in ({}, {"ssl_tls_version": [b"TLSv1.2"], "x509_pem_cert": [pem]}):
        with pytest.raises(UnauthenticatedError, match="TLS 1.3"):
            credential_of(Context(about))
    about = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [pem]}
    assert credential_of(Context(about)) == pem


def test_a_stranger_is_not_served_in_plain_text_by_mistake(paths: dict[str, Any]) -> None:
    for flag, host in (
        ("host", "0.0.0.0"),
        ("host", "::"),
        ("host", "bridge.example"),
        ("metrics_host", "10.0.0.5"),
    ):
        with pytest.raises(
            ConfigError, match=rf"--{flag.replace('_', '-')} .*--directory.*--insec"
        ):
            load(paths | {flag: host}, environ={}).check_paths()
        load(paths | {flag: host, "insecure": True}, environ={}).check_paths()
    for host in ("127.0.0.1", "::1", "localhost", "127.8.9.10"):
        load(paths | {"host": host}, environ={}).check_paths()


def test_certificates_that_would_not_be_used_are_refused(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--tls-certificate needs --directory"):
        load(paths | {"tls_certificate": tmp_path / "x.pem"}, environ={}).check_paths()
    with pytest.raises(ConfigError, match="--tls-key needs --tls-certificate"):
        load(
            paths | {"tls_key": tmp_path / "x.pem", "directory": tmp_path}, environ={}
        ).check_paths()


@on_loop
async def test_an_insecure_service_says_so_in_its_metrics(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with running(paths, insecure=True) as server:
        assert await server.metric("insecure") == 1
        assert (await (await server.edge()).say("count 1")).answer.text == "0"
    async with running(paths) as server:
        assert await server.metric("insecure") == 0


def test_the_directory_brings_its_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("port = 7\nopen_port = 8\n")
    other = tmp_path / "other.toml"
    other.write_text("port = 9\n")
    directory = {"directory": str(tmp_path)}
    assert load(directory, environ={}).port == 7
    assert load({}, environ={"NEURAL_BRIDGE_CLOUD_DIRECTORY": str(tmp_path)}).open_port == 8
    assert load(directory | {"port": 5}, environ={}).port == 5
    assert load(directory, other, environ={}).port == 9
    assert load(directory, environ={"NEURAL_BRIDGE_CLOUD_CONFIG": str(other)}).port == 9


@on_loop
async def test_callers_stay_known_while_the_database_is_gone(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        code = server.premises.code("gate-4")
        database = server.premises.directory / "state.db"
        database.rename(tmp_path / "away.db")
        with pytest.raises(StateError):
            await server.enrol(code)
        assert (await (await server.edge(device)).say("count 2")).answer.text == "0 1"
        (tmp_path / "away.db").rename(database)
        await server.enrol(code)


@on_loop
async def test_garbage_before_and_after_the_handshake_disturbs_nobody(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        edge = await server.edge(device)

        def plain(port: int, junk: bytes) -> None:
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(junk)

        def after(port: int, junk: bytes) -> None:
            context = device.context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection(("127.0.0.1", port)) as raw:
                with context.wrap_socket(raw) as secure:
                    secure.sendall(junk)

        ports = [server.ports[name] for name in ("port", "open_port", "metrics_port")]
        for _ in range(20):
            junk = os.urandom(700)
            rude = [asyncio.to_thread(plain, port, junk) for port in ports]
            rude += [asyncio.to_thread(after, port, junk) for port in ports[:2]]
            answer, *broken = await asyncio.gather(
                edge.say("count 3"), *rude, return_exceptions=True
            )
            assert isinstance(answer, pb.InferEvent) and answer.answer.text == "0 1 2"
            assert all(isinstance(one, OSError | None) for one in broken), broken


@on_loop
async def test_certificates_are_replaced_under_load(paths: dict[str, Any], tmp_path: Path) -> None:
    """A company's certificate, one of its successors each round, and streams that stay open."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    company = foreign_server(certificate, key)
    where = {"tls_certificate": certificate, "tls_key": key}
    async with secured(paths, tmp_path / "svc", **where) as server:
        server.trusted_pem = company
        device = await server.enrol(server.premises.code())
        old = await server.edge(server.trusting(device))
        stream = old.open()
        for round in range(5):
            server.trusted_pem = foreign_server(certificate, key)
            server.service.access.reload()
            new = await server.edge(server.trusting(device))
            await stream.write(old.frame(seed=round, question="count 1"))
            said = [new.say("count 2", seed=seed) for seed in range(4)]
            for answer in await asyncio.gather(*said):
                assert answer.answer.text == "0 1"
        await stream.done_writing()
        events = [event async for event in stream]
        assert sum(event.HasField("answer") for event in events) == 5


@on_loop
async def test_a_changed_settings_file_changes_quotas_and_certificates_and_names_the_rest(
    paths: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with secured(paths, tmp_path / "svc", log_level="warning") as server:
        operator, access = server.premises.operator(), server.service.access
        device = await server.enrol(server.premises.code())
        assert access.quota_of("acme", "gate-3").requests_per_s == 200
        stream = (await server.edge(device)).open()
        own, certificate, key = server.trusted_pem, tmp_path / "cert.pem", tmp_path / "key.pem"
        company, file = foreign_server(certificate, key), server.premises.directory / SETTINGS_FILE
        before = file.read_text()
        file.write_text(
            f"{before}device_requests_per_s = 3\ndevice_scenes = 2\ntenant_concurrent = 9\n"
            f'tls_certificate = "{certificate}"\ntls_key = "{key}"\nbatch_size = 3\n'
        )
        server.service.reload()
        server.trusted_pem = company
        edge = await server.edge(server.trusting(device))
        while access.quota_of("acme", None).concurrent != 9:
            await asyncio.sleep(0.01)
        quota = access.quota_of("acme", "gate-3")
        assert (quota.requests_per_s, quota.scenes) == (3, 2)
        for seed in range(3):
            assert (await edge.say("", seed=seed)).HasField("accepted")
        page = (await server.page("/metrics", operator))[1]
        assert "\nneural_bridge_cloud_held_scenes 2.0" in page, "the new bound"
        file.write_text(f'{before}tls_key = "{key}"\ndevice_requests_per_s = 4\n')
        server.service.reload()
        file.write_text(f'{before}trusted_keys = "{tmp_path / "none.toml"}"\n')
        server.service.reload()
        assert access.quota_of("acme", "gate-3") == quota, "a bad file changes nothing"
        file.write_text(before)
        server.service.reload()
        server.trusted_pem = own
        assert (await (await server.edge(server.trusting(device))).say("count 1")).answer.text
        await stream.write(edge.frame(seed=9, question="count 1"))
        assert (await stream.read()).WhichOneof("event"), "a stream from before"
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    first, last = [line for line in told if line["event"] == "settings reloaded"]
    assert first["changed"] == [
        "device_requests_per_s",
        "device_scenes",
        "tenant_concurrent",
        "tls_certificate",
        "tls_key",
    ]
    assert first["need_restart"] == ["batch_size"] and last["need_restart"] == []
    refused = [line["cause"] for line in told if line["event"] == "settings not taken over"]
    assert "--tls-key needs --tls-certificate" in refused[0] and "none.toml" in refused[1]
