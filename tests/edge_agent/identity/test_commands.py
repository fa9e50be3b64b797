"""`edge-agent enrol` and `identity`, and runs of an enrolled device, as a shell sees them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent import assemble, cli
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.identity.show import figures, table
from edge_agent.settings import PREFIX, Settings
from protos.errors import (
    CertificateError,
    ConfigError,
    ConflictError,
    EnrolmentError,
    UnauthenticatedError,
)
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, make_encoder
from tests.fakes.foreign_authority import ForeignAuthority
from tests.fakes.secure_bridge import DAY_S, SecureBridge


class Served:
    """A server in a thread of its own."""

    def __init__(self, bridge: FakeBridge) -> None:
        self.bridge = bridge
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.do(bridge.start())

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self.do(self.bridge.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[SecureBridge]:
    bridge = SecureBridge(make_encoder(), folder=tmp_path / "authority")
    served = Served(bridge)
    bridge.thread = served  # type: ignore[attr-defined]
    yield bridge
    served.close()


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> IdentityFile:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.setenv(PREFIX + "STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv(PREFIX + "BACKOFF_S", "0.01")
    monkeypatch.setattr(assemble, "load", lambda *_: FakeModel())
    (tmp_path / "config.json").write_text("{}")
    picture = Image.new("RGB", (9, 9), (4, 1, 2))
    picture.putpixel((8, 0), (255, 1, 2))
    picture.save(tmp_path / "a.png")
    return IdentityFile.under(tmp_path / "state")


def enrol(served: SecureBridge, *more: str) -> int:
    return cli.main(["enrol", "--server", served.open_address, "--code", served.code(), *more])


def ask(served: FakeBridge, tmp_path: Path, *more: str) -> int:
    arguments = ["--model", str(tmp_path), "--server", served.address]
    return cli.main(["ask", str(tmp_path / "a.png"), "x", *arguments, *more])


def test_a_device_enrols_shows_who_it_is_and_asks(
    secure: SecureBridge,
    settings: IdentityFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert enrol(secure) == 0
    out, err = capsys.readouterr()
    assert out.startswith("enrolled as acme/gate-3; the certificate is valid until") and not err
    assert cli.main(["identity"]) == 0
    shown = capsys.readouterr().out
    assert "acme" in shown and "gate-3" in shown and secure.open_address in shown
    assert cli.main(["identity", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    found = settings.load()
    assert found is not None
    assert fields["serial"] == found.serial and fields["days_left"] == 90.0
    assert "PRIVATE" not in shown + json.dumps(fields)
    assert ask(secure, tmp_path) == 0
    assert capsys.readouterr() == ("about x\n", "")
    assert secure.serials == [found.serial]


def test_an_enrolled_device_sends_frames_where_the_service_takes_them(
    secure: SecureBridge,
    settings: IdentityFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asking = ["ask", str(tmp_path / "a.png"), "x", "--model", str(tmp_path)]
    assert cli.main(["enrol", "--code", secure.code()]) == ConfigError.exit_code
    assert "--server" in capsys.readouterr().err
    assert enrol(secure) == 0
    assert f"frames go to {secure.address};" in capsys.readouterr().out
    assert cli.main(asking) == 0
    assert capsys.readouterr().out == "about x\n"
    found = settings.load()
    assert found is not None
    settings.path.write_text(found.to_json().replace('"server"', '"nowhere"'))
    assert cli.main(asking) == CertificateError.exit_code
    older = json.loads(found.to_json())
    del older["server"]
    settings.path.write_text(json.dumps(older))  # of a version that did not know it
    assert ask(secure, tmp_path) == 0


def test_a_code_can_come_from_standard_input_where_no_list_of_processes_shows_it(
    secure: SecureBridge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(secure.code() + "\n"))
    assert cli.main(["enrol", "--server", secure.open_address, "--code", "-"]) == 0
    assert capsys.readouterr().out.startswith("enrolled as acme/gate-3")


@pytest.mark.parametrize("code", ["", "NB1", "NB1-AAAA-BBBB", "-x"])
def test_a_text_that_is_no_code_is_one_line_and_is_not_sent(
    secure: SecureBridge, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["enrol", "--server", secure.open_address, f"--code={code}"]) == (
        EnrolmentError.exit_code
    )
    err = capsys.readouterr().err
    assert err.startswith("edge-agent: enrolment: ") and len(err.splitlines()) == 1
    assert not secure.enrolments


def test_a_second_enrolment_is_refused_unless_it_is_meant(
    secure: SecureBridge, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrol(secure) == 0
    assert enrol(secure) == ConflictError.exit_code
    assert "--force replaces that identity" in capsys.readouterr().err
    assert enrol(secure, "--force") == 0


def test_a_device_without_an_identity_says_how_to_get_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["identity"]) == CertificateError.exit_code
    out, err = capsys.readouterr()
    assert not out and "this device is not enrolled" in err and "edge-agent enrol" in err


def test_a_key_that_others_may_read_ends_every_command(
    secure: SecureBridge,
    settings: IdentityFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert enrol(secure) == 0
    settings.path.chmod(0o644)
    assert cli.main(["identity"]) == CertificateError.exit_code
    assert ask(secure, tmp_path) == CertificateError.exit_code
    assert cli.main(["run", "--check-config", "--model", str(tmp_path)]) == (
        CertificateError.exit_code
    )
    assert capsys.readouterr().err.count("chmod 600") == 3
    assert not secure.negotiations


def test_a_revoked_device_gets_the_exit_code_of_that(
    secure: SecureBridge,
    settings: IdentityFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert enrol(secure) == 0
    found = settings.load()
    assert found is not None
    secure.revoked.add(found.serial)
    os.utime(settings.path, (1, 1))  # no front end can be so late
    assert ask(secure, tmp_path) == UnauthenticatedError.exit_code
    err = capsys.readouterr().err
    assert "unauthenticated: the service does not accept the certificate of acme/gate-3" in err
    assert found.serial in err and "this certificate was revoked" in err
    assert secure.negotiations == 0
    # With a small model that may answer instead, the device goes on seeing.
    run = ["run", "--source", str(tmp_path / "a.png"), "--question", "x", "--edge-fallback"]
    assert cli.main([*run, "--model", str(tmp_path), "--server", secure.address]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["edge_answer"], record["fallback"]) == ("edge x", "offline")
    assert record["error"]["name"] == "unauthenticated"


def test_a_short_run_renews_if_it_is_time(
    secure: SecureBridge, settings: IdentityFile, tmp_path: Path
) -> None:
    secure.now = lambda: time.time() + 10 * DAY_S  # so this device's clock is behind
    assert enrol(secure) == 0
    before = settings.load()
    assert ask(secure, tmp_path) == 0
    after = settings.load()
    assert before is not None and after is not None and before.serial != after.serial
    assert secure.renewals == [before.serial]


def test_an_enrolled_device_speaks_plain_text_only_if_told_to(
    secure: SecureBridge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrol(secure) == 0
    plain = FakeBridge(make_encoder())
    served = Served(plain)
    assert ask(plain, tmp_path) == CertificateError.exit_code
    assert "give --insecure" in capsys.readouterr().err and not plain.negotiations
    assert ask(plain, tmp_path, "--insecure") == 0
    assert ask(plain, tmp_path, "--insecure", "--ca", "system") == ConfigError.exit_code
    served.close()


def test_a_file_of_roots_that_cannot_be_used_is_named(
    secure: SecureBridge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.pem").write_text("")
    for name, said in (("empty.pem", "holds no certificates"), ("none.pem", "cannot be read")):
        ca = str(tmp_path / name)
        assert ask(secure, tmp_path, "--ca", ca) == CertificateError.exit_code
        assert said in capsys.readouterr().err


def test_the_systems_roots_are_those_of_the_system(
    secure: SecureBridge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "system.pem"
    path.write_bytes(secure.authority.trusted_pem)
    assert enrol(secure) == 0
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    assert ask(secure, tmp_path, "--ca", "system") == 0
    monkeypatch.delenv("SSL_CERT_FILE")
    assert ask(secure, tmp_path, "--ca", "system") == CertificateError.exit_code
    assert "an authority named by --ca" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("now_s", "ended", "said"),
    [(0.0, False, "wrong: it says 1970-01-01"), (1.8e9, False, "plausible"), (9e9, True, "plausi")],
)
def test_what_is_shown_says_when_the_clock_cannot_be_right(
    secure: SecureBridge, settings: IdentityFile, now_s: float, ended: bool, said: str
) -> None:
    assert enrol(secure, "--connect-timeout-s", "5") == 0
    found = settings.load()
    assert found is not None
    shown = figures(found, settings.path, now_s)
    assert shown["ended"] is ended and shown["clock"].startswith(said)
    assert (shown["days_left"] is None) is (now_s == 0)
    assert len(table(shown).splitlines()) == len(shown)


def test_a_failed_handshake_leaves_one_line_on_standard_error(
    secure: SecureBridge, tmp_path: Path
) -> None:
    """gRPC would add lines of its own, and standard error holds only ours."""
    (tmp_path / "ca.pem").write_bytes(ForeignAuthority().root_pem)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edge_agent", "enrol", "--code", secure.code(), "--force"),
            *("--server", secure.open_address, "--ca", str(tmp_path / "ca.pem")),
            *("--state-dir", str(tmp_path / "state")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k != "GRPC_VERBOSITY"},  # as a shell has it
    )
    assert done.returncode == CertificateError.exit_code
    assert done.stderr.startswith("edge-agent: certificate: ")
    assert len(done.stderr.splitlines()) == 1
