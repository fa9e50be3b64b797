"""A service with identities as an operator starts it: its own process, a real engine."""

from __future__ import annotations

import functools
import json
import queue
import signal
import socket
import ssl
from pathlib import Path

import grpc
import pytest

from cloud_server.cli import main
from cloud_server.identity import certificates
from edge_agent.identity.enrol import request_of
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.identity.pki import Device
from tests.fakes.loop import until


def ran(*words: str) -> None:
    assert main(list(words)) == 0


def handshake(port: int, device: Device, version: ssl.TLSVersion) -> str | None:
    context = device.context()
    context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as secured:
            return secured.version()


def taken_over(server: stage.Server) -> int:
    """How many times it has reloaded changed certificates."""
    return sum("certificates taken over" in line for line in server.log)


def more(server: stage.Server, before: int) -> bool:
    return taken_over(server) > before


@pytest.mark.slow
def test_a_device_enrols_asks_and_notices_nothing_while_the_authority_changes(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svc, ready = tmp_path / "svc", tmp_path / "ready.json"
    where = ("--directory", str(svc))
    ran("init", str(svc))
    ran("tenants", "add", "acme", *where)
    capsys.readouterr()
    ran("devices", "add", "gate-3", "--json", *where)
    code = json.loads(capsys.readouterr().out)["code"]
    flags = (*where, "--host", "127.0.0.1", "--open-port", "0", "--api-port", "0")
    with stage.running_server(
        files.model, [files.bundle], *flags, "--ready-file", str(ready)
    ) as server:
        open_port = json.loads(ready.read_text())["open_port"]
        roots_pem, key = (svc / "authority/roots.pem").read_bytes(), certificates.fresh_key()
        stranger = Device(b"", b"", roots_pem)
        with grpc.secure_channel(f"127.0.0.1:{open_port}", stranger.only_roots()) as channel:
            asked = pb.EnrolRequest(code=code, request_der=request_of(key))
            reply = bridge_pb2_grpc.BridgeStub(channel).Enrol(asked, timeout=60)
        device = Device(certificates.key_pem(key), reply.chain_pem, reply.roots_pem)

        for port in (server.port, open_port):
            with pytest.raises(OSError):
                handshake(port, stranger, ssl.TLSVersion.TLSv1_2)
            assert handshake(port, stranger, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"

        def edge() -> stage.Client:
            channel = grpc.secure_channel(
                f"127.0.0.1:{server.port}",
                device.credentials(),
                options=[("grpc.use_local_subchannel_pool", 1)],
            )
            made = stage.Client(channel)
            made.negotiate()
            return made

        old = edge()
        sent: queue.SimpleQueue[pb.InferRequest | None] = queue.SimpleQueue()
        events = old.stub.Infer(iter(sent.get, None), metadata=old.metadata, timeout=240)

        def answered(seed: int) -> bool:
            sent.put(old.frame(seed=seed))
            return any(event.HasField("answer") for event in _until_answer(events))

        assert answered(1)
        for act in (
            ("renew-intermediate", "--root-key", str(svc / "authority/root-key.pem")),
            ("new-root", "--root-key", str(svc / "authority/root-key.pem")),
            ("renew-intermediate", "--root-key", str(svc / "authority/successor-key.pem")),
            ("server-certificate",),
        ):
            before = taken_over(server)
            ran("authority", *act, *where)
            until(functools.partial(more, server, before))
            new = edge()
            assert new.answer(new.frame(seed=3)).text
            new.channel.close()
        assert answered(2)
        sent.put(None)
        old.channel.close()
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0


def _until_answer(events: object) -> list[pb.InferEvent]:
    found: list[pb.InferEvent] = []
    for event in events:  # type: ignore[attr-defined]
        found.append(event)
        if event.HasField("answer") or event.HasField("refused"):
            break
    return found


@pytest.mark.slow
def test_a_changed_settings_file_and_sighup_are_taken_over(files: Files, tmp_path: Path) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text('log_level = "info"\n')

    def said(text: str) -> bool:
        return any(text in line for line in server.log)

    with stage.running_server(files.model, [files.bundle], "--config", str(config)) as server:
        config.write_text('log_level = "warning"\nbatch_size = 3\n')
        until(lambda: said("log level changed"))
        until(lambda: said('["batch_size"]'))
        config.write_text("log_level = 7\n")
        until(lambda: said("settings not taken over"))
        config.write_text('log_level = "debug"\n')
        until(lambda: said('"least": "debug"'))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: said("reloading"))
        with server.channel() as channel:
            client = stage.Client(channel)
            client.negotiate()
            assert client.answer(client.frame()).text
    assert server.process.returncode == 0


@pytest.mark.slow
def test_a_service_for_everyone_warns_when_it_starts(files: Files) -> None:
    flags = ("--insecure", "--host", "0.0.0.0")
    with stage.running_server(files.model, [files.bundle], *flags) as server:
        warned = [json.loads(line) for line in server.log if "INSECURE" in line]
        assert [line["level"] for line in warned] == ["warning"]
        assert server.metric("neural_bridge_cloud_insecure") == 1
