"""`cloud-server bundles`, as an operator types it, without a running service."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cloud_server.cli import main
from projector.bundle.load import Bundle
from protos.errors import (
    BundleCorruptError,
    ConfigError,
    ConflictError,
    DiskFullError,
    MissingError,
    StateError,
)
from tests.checkout import ROOT

BUNDLE = ROOT / "reference/bundles/edge-a-cloud"


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["init", str(tmp_path / "home")]) == 0
    capsys.readouterr()
    return tmp_path / "home"


def test_a_bundle_is_copied_verified_listed_and_activated(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(BUNDLE, tmp_path / "mine"))
    info = Bundle.peek(mine)
    where = ("--directory", str(home))
    assert main(["bundles", "add", str(mine), *where]) == 0
    shutil.rmtree(mine)
    kept = home / "bundles" / info.digest
    assert Bundle.load(kept, info.source, info.target).digest == info.digest
    assert main(["bundles", "activate", f"{info.id}@{info.version}", *where]) == 0
    capsys.readouterr()
    assert main(["bundles", "list", *where]) == 0
    assert f"{info.id}@{info.version}" in capsys.readouterr().out
    assert main(["bundles", "list", "--json", *where]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["wanted"], row["digest"], row["front_ends"]) == ("active", info.digest, [])


def test_what_cannot_be_done_ends_with_its_errors_code(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--directory", str(home))
    damaged = Path(shutil.copytree(BUNDLE, tmp_path / "damaged"))
    (damaged / "canary.json").write_text("{}")
    assert main(["bundles", "add", str(damaged), *where]) == BundleCorruptError.exit_code
    assert main(["bundles", "activate", "nothing@1", *where]) == MissingError.exit_code
    assert main(["bundles", "add", str(BUNDLE), *where]) == 0
    assert main(["bundles", "add", str(BUNDLE), *where]) == ConflictError.exit_code
    name = Bundle.peek(BUNDLE).digest[:8]
    assert main(["bundles", "rollback", name, *where]) == ConflictError.exit_code
    waited = ["bundles", "activate", name, "--wait", "0.3", *where]
    assert main(waited) == StateError.exit_code
    assert "no front end has reported on it" in capsys.readouterr().err
    for share in ("0", "110%", "x", "10%%"):
        typed = ["bundles", "activate", name, "--share", share, *where]
        assert main(typed) == ConfigError.exit_code
        assert "such as 10%" in capsys.readouterr().err


def test_a_disk_that_is_full_leaves_no_half_bundle_and_takes_none_away(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--directory", str(home))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        assert main(["bundles", "add", str(BUNDLE), *where]) == DiskFullError.exit_code
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "no room to write" in capsys.readouterr().err
    assert list((home / "bundles").iterdir()) == []
    assert main(["bundles", "add", str(BUNDLE), *where]) == 0
    (kept,) = (home / "bundles").iterdir()
    inode = kept.stat().st_ino
    assert main(["bundles", "add", str(BUNDLE), *where]) == ConflictError.exit_code
    assert kept.stat().st_ino == inode, "what is served is not copied over"


def test_a_bundle_of_texts_is_not_told_to_add_a_canary_set() -> None:
    info = Bundle.peek(BUNDLE)
    assert "projector canary adds one" in info.without_canary
    texts = replace(info, source=replace(info.source, grid=(1, info.source.tokens)))
    assert "read texts" in texts.without_canary and "adds one" not in texts.without_canary
