"""The service does what its OpenAPI description says: a running one, with TLS and keys."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloud_server.cli import main
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.secured import Premises

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Described:
    """A service in processes of its own."""

    url: str
    premises: Premises
    roots: Path
    log: list[str]
    ports: dict[str, int]
    pid: int

    def get(self, path: str) -> tuple[int, str]:
        """A page that needs no key."""
        context = ssl.create_default_context(cafile=str(self.roots))
        with urllib.request.urlopen(self.url + path, timeout=30, context=context) as reply:
            return reply.status, reply.read().decode()


@pytest.fixture(scope="module")
def described(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Described]:
    folder = tmp_path_factory.mktemp("described")
    premises = Premises(folder / "service")
    roots = folder / "roots.pem"
    roots.write_bytes(premises.authority.roots_pem)
    flags = ("--directory", str(premises.directory), "--host", "127.0.0.1", "--open-port", "0")
    http = ("--api-host", "127.0.0.1", "--api-port", "0")
    with stage.running_server(files.model, [files.bundle], *flags, *http) as server:
        url = f"https://127.0.0.1:{server.ports['api_port']}"
        yield Described(url, premises, roots, server.log, server.ports, server.process.pid)
        assert server.process.poll() is None, "it still runs"
    premises.store.close()


def fuzzed(described: Described, key: str, folder: Path, *more: str) -> str:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{described.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}", "--tls-verify", str(described.roots)]
    command += ["--checks", "all", "--no-color", "--continue-on-failure", *more]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


# The operator comes last: it may remove the application's tenant.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["application", "operator"])
def test_every_route_answers_as_its_description_says(
    described: Described, tmp_path: Path, kind: str
) -> None:
    if kind == "operator":
        scopes = ("ask", "read", "manage")
        key = described.premises.key("service", "root", kind="operator", scopes=scopes)
    else:
        key = described.premises.key("globex", "dashboard", scopes=("ask", "read"))
    said = fuzzed(described, key, tmp_path, "--max-examples", "12", "--seed", "7")
    paths = json.loads(described.get("/openapi.json")[1])["paths"]
    assert f"Tested: {sum(map(len, paths.values()))}\n" in said, said
    assert not [line for line in described.log if '"event": "api"' in line], "no unexpected error"


def test_the_description_and_health_need_no_key_and_nothing_from_the_internet(
    described: Described,
) -> None:
    status, text = described.get("/openapi.json")
    description = json.loads(text)
    assert status == 200 and description["security"] == [{"key": []}]
    assert "/v1/chat/completions" in description["paths"]
    assert "http://" not in text and "https://" not in text
    assert described.get("/healthz")[0] == 200


def test_the_doctor_knows_that_the_running_service_holds_its_ports(
    described: Described, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{name.replace('_', '-')}={port}" for name, port in described.ports.items()]

    def ports(directory: Path) -> list[dict[str, str]]:
        main(["doctor", "--quick", "--json", "--directory", str(directory), *flags])
        found = json.loads(capsys.readouterr().out)
        return [line for line in found if line["subject"].startswith("port, ")]

    own = ports(described.premises.directory)
    assert [line["level"] for line in own] == ["green"] * 4, own
    assert all(f"held by the running service, pid {described.pid}" in line["found"] for line in own)
    assert [line["level"] for line in ports(tmp_path)] == ["red"] * 4, "another directory's service"
