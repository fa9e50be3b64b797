"""`cloud-server init` and `cloud-server authority`, as an operator types them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from cloud_server.cli import main
from cloud_server.identity import certificates
from cloud_server.identity.authority import Authority
from cloud_server.settings import load
from protos.errors import (
    BundleMissingError,
    CertificateError,
    ConfigError,
    ConflictError,
    ModelError,
)

PRIVATE = ("state.db", "server.pem", "settings.toml", "authority/intermediate.pem")


@pytest.fixture
def directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["init", str(tmp_path / "svc"), "--name", "bridge.example"]) == 0
    said = capsys.readouterr().out
    assert "MOVE THE ROOT'S KEY OFFLINE" in said and str(tmp_path / "svc/authority") in said
    return tmp_path / "svc"


def ran(directory: Path, *words: str) -> int:
    return main(["authority", *words, "--directory", str(directory)])


def shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert ran(directory, "show", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def names(directory: Path) -> set[str]:
    raw = (directory / "server.pem").read_bytes()
    leaf = x509.load_pem_x509_certificates(raw)[0]
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(found.get_values_for_type(x509.DNSName))


def test_only_the_owner_can_read_what_init_makes(directory: Path) -> None:
    for name in ("", "authority"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o700
    for name in PRIVATE:
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600, name
    assert {"bridge.example", "localhost"} <= names(directory)


def test_a_front_end_with_only_the_shared_authority_gets_its_first_certificate(
    directory: Path, tmp_path: Path
) -> None:
    other, database = tmp_path / "other", ("--database", f"sqlite:///{directory / 'state.db'}")
    (other / "authority").mkdir(parents=True)
    for name in ("roots.pem", "intermediate.pem"):
        (other / "authority" / name).write_bytes((directory / "authority" / name).read_bytes())
    assert ran(other, "server-certificate", *database) == CertificateError.exit_code, "which names?"
    assert ran(other, "server-certificate", *database, "--name", "b.example") == 0
    assert names(other) == {"b.example"}


def test_init_never_writes_into_what_is_there(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert main(["init", str(directory)]) == ConflictError.exit_code
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before
    assert main(["init", str(tmp_path / "x"), "--name", "a b"]) == ConfigError.exit_code
    assert not (tmp_path / "x").exists()


def test_init_can_name_model_and_bundles_so_that_serve_needs_the_directory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ('mo"del', "a", "b"):
        (tmp_path / path).mkdir()
    flags = ("--model", 'mo"del', "--bundles", "a", "--bundles", "b")
    assert main(["init", "svc", *flags]) == ModelError.exit_code
    (tmp_path / 'mo"del/config.json').touch()
    assert main(["init", "svc", *flags]) == BundleMissingError.exit_code
    assert not (tmp_path / "svc").exists()
    for path in ("a", "b"):
        (tmp_path / path / "bundle.json").touch()
    assert main(["init", "svc", *flags]) == 0
    assert capsys.readouterr().out.endswith("  cloud-server serve\n")
    monkeypatch.chdir("/")
    settings = load({"directory": str(tmp_path / "svc")}, None, {})
    assert settings.model == tmp_path / 'mo"del'
    assert settings.bundles == (tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("url", ["mysql://x", "postgresql://nobody@127.0.0.1:1/x"])
def test_init_leaves_nothing_half_made(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "svc"
    assert main(["init", str(folder), "--database", url]) != 0
    assert list(folder.iterdir()) == []
    assert main(["init", str(folder)]) == 0


def test_the_whole_life_of_a_root(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = shown(directory, capsys)
    assert len(first["root_keys_here"]) == 1
    offline = tmp_path / "usb.pem"
    (directory / "authority/root-key.pem").rename(offline)

    assert ran(directory, "renew-intermediate", "--root-key", str(offline)) == 0
    second = shown(directory, capsys)
    assert second["root"] == first["root"] and second["root_keys_here"] == []
    assert second["intermediate"] != first["intermediate"]
    assert second["server"] != first["server"] and "bridge.example" in names(directory)

    assert ran(directory, "retire-root") == ConflictError.exit_code
    assert ran(directory, "new-root", "--root-key", str(offline)) == 0
    assert "MOVE ITS KEY OFFLINE" in capsys.readouterr().out
    assert ran(directory, "new-root", "--root-key", str(offline)) == ConflictError.exit_code
    successor_key = Path(shown(directory, capsys)["root_keys_here"][0])
    assert ran(directory, "renew-intermediate", "--root-key", str(successor_key)) == 0
    third = shown(directory, capsys)
    assert ran(directory, "retire-root") == 0
    last = shown(directory, capsys)
    assert last["root"] == third["successor"] and "successor" not in last

    audited = ["audit", "--directory", str(directory), "--action", "authority.", "--json"]
    assert main(audited) == 0
    lines = capsys.readouterr().out
    for action in ("renew_intermediate", "new_root", "retire_root"):
        assert f"authority.{action}" in lines


def test_the_server_gets_the_names_that_are_asked_for(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(directory, "server-certificate") == 0
    assert "bridge.example" in names(directory)
    assert ran(directory, "server-certificate", "--name", "other.example") == 0
    assert names(directory) == {"other.example"}
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("no longer in it") and "localhost" in said and "other" not in said


def test_check_config_reads_the_certificates(
    directory: Path, paths: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "--check-config", "--directory", str(directory)]
    words += ["--model", str(paths["model"]), "--bundles", str(paths["bundles"][0])]
    (directory / "server.pem").write_text("rubbish")
    assert main(words) == CertificateError.exit_code
    assert "server.pem" in capsys.readouterr().err


def test_a_mistake_is_named_and_changes_nothing(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(certificates.key_pem(certificates.fresh_key()))
    before = Authority.open(directory / "authority")
    for words in (
        ("renew-intermediate", "--root-key", str(stranger)),
        ("new-root", "--root-key", str(tmp_path / "missing.pem")),
        ("renew-intermediate", "--root-key", str(directory / "settings.toml")),
    ):
        assert ran(directory, *words) == CertificateError.exit_code
        assert words[-1] in capsys.readouterr().err
    assert Authority.open(directory / "authority").roots_pem == before.roots_pem
    assert main(["authority", "show", "--directory", str(tmp_path)]) == CertificateError.exit_code
    assert main(["authority", "show"]) == ConfigError.exit_code
    assert "cloud-server init" in capsys.readouterr().err
