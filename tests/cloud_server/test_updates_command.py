"""`cloud-server updates`: what an operator types, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cloud_server.cli import main
from cloud_server.state import devices, tenants, update_offers
from cloud_server.state.location import open_store
from cloud_server.state.update_moves import Software
from cloud_server.state.update_offers import Told
from cloud_server.state.updates import FOLDER
from projector.bundle.keys import SigningKey
from protos.errors import (
    ConfigError,
    ConflictError,
    DiskFullError,
    MissingError,
    SignatureError,
    UpdateError,
)
from tests.fakes.updates import write_update


class Service:
    """A service's directory with one tenant, and a key that its devices trust."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.directory, self.capsys = folder, folder / "svc", capsys
        assert main(["init", str(self.directory)]) == 0
        self.store = open_store("", self.directory)
        with self.store.write("test") as tx:
            tenants.add(tx, "acme")
            tx.session.flush()
            for number in range(20):
                devices.add(tx, "acme", f"d{number}")
        self.key = SigningKey.create(folder / "maker.pem")
        self.trust = folder / "makers.toml"
        self.trust.write_text(f'[keys]\nmaker = "{self.key.public}"\n')

    def updates(self, *words: object) -> int:
        self.capsys.readouterr()
        return main(["updates", *map(str, words), "--directory", str(self.directory)])

    def add(self, file: Path, *more: object) -> int:
        return self.updates("add", file, "--trust", self.trust, *more)

    @property
    def said(self) -> str:
        return self.capsys.readouterr().out

    def json(self, *words: object) -> Any:
        self.updates(*words, "--json")
        return json.loads(self.said)

    def report(self, count: int, state: str, digest: str = "") -> None:
        software = Software("aarch64", "3.10", "6", 1)
        told = [Told(digest, state, "crash_loop", 1)] if digest else []
        with self.store.write("device", quiet=True) as tx:
            for number in range(count):
                update_offers.check(tx, "acme", f"d{number}", software, told)
            update_offers.turn(tx)


@pytest.fixture
def service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    made = Service(tmp_path, capsys)
    yield made
    made.store.close()


def test_an_operator_adds_offers_looks_pauses_and_retires(service: Service) -> None:
    file = write_update(service.folder / "7.nbupdate", service.key, number=7, machine="aarch64")
    assert service.add(file) == 0
    assert "added update 7 (v2) for aarch64, signed by maker" in service.said
    (kept,) = (service.directory / FOLDER).iterdir()
    assert kept.read_bytes() == file.read_bytes() and kept.stat().st_mode & 0o077 == 0
    service.report(20, "")
    assert service.updates("offer", 7) == 0
    assert "running, stage 1 of 3: 1 %; 1 offered" in service.said
    assert service.updates("list") == 0
    said = " ".join(service.said.split())
    assert " acme " in said and "1 more device has to keep it" in said
    assert service.updates("show", "v2") == 0
    assert "signed by  maker" in service.said
    for verb, state in (("pause", "paused"), ("resume", "running"), ("withdraw", "withdrawn")):
        assert service.json(verb, 7)["state"] == state
    assert service.updates("retire", 7) == 0 and not kept.exists()
    assert service.json("list") == []
    assert service.add(file) == 0 and kept.exists(), "a retired one may be added again"


def test_the_exit_code_tells_that_an_update_halted(service: Service) -> None:
    assert service.add(write_update(service.folder / "u", service.key)) == 0
    service.report(20, "")
    assert service.updates("offer", 2, "--stages", "50%,100%", "--failure-limit", "10%") == 0
    assert service.updates("show", 2) == 0
    digest = service.json("show", 2)["digest"]
    service.report(20, "failed", digest)
    assert service.updates("show", 2) == UpdateError.exit_code
    shown = service.json("show", 2)["offers"][0]
    assert shown["state"] == "halted" and shown["failed"] == {"crash_loop": 10}
    assert len(shown["on"]) == 10 and "at most 10 % may" in shown["why"]


def test_only_what_a_trusted_key_signed_is_kept(service: Service) -> None:
    other = SigningKey.create(service.folder / "other.pem")
    assert service.add(write_update(service.folder / "u", other)) == SignatureError.exit_code
    good = write_update(service.folder / "u", service.key)
    altered = bytearray(good.read_bytes())
    altered[altered.index(bytes(1000)) + 500] ^= 1
    good.write_bytes(altered)
    assert service.add(good) == UpdateError.exit_code
    assert service.add(service.folder / "nothing") == UpdateError.exit_code
    assert not (service.directory / FOLDER).exists()


def test_the_files_are_bounded_and_added_once(service: Service) -> None:
    good = write_update(service.folder / "u", service.key)
    assert service.add(good, "--most-gib", 1e-6) == DiskFullError.exit_code
    assert service.add(good) == 0
    assert service.add(good) == ConflictError.exit_code
    (kept,) = (service.directory / FOLDER).iterdir()
    kept.unlink()
    assert service.add(good) == 0, "another machine of the same service keeps its copy"
    assert kept.exists()


@pytest.mark.slow
def test_what_makes_no_sense_is_refused(service: Service) -> None:
    assert service.add(write_update(service.folder / "u", service.key)) == 0
    for words, kind in (
        (("offer", 3), MissingError), (("offer", 2, "--tenant", "none"), MissingError),
        (("offer", 2, "--tenant", "service"), ConflictError),
        (("offer", 2, "--stages", "10%,1%"), ConfigError),
        (("offer", 2, "--stages", "x"), ConfigError),
        (("offer", 2, "--stages", "200%"), ConfigError),
        (("offer", 2, "--failure-limit", "100%"), ConfigError),
        (("offer", 2, "--healthy", -1), ConfigError),
        (("pause", 2), MissingError), (("show", 9), MissingError),
    ):  # fmt: skip
        assert service.updates(*words) == kind.exit_code, words
    assert service.updates("offer", 2) == 0
    assert service.updates("retire", 2) == ConflictError.exit_code
    assert time.time() - service.json("list")[0]["added_s"] < 600
