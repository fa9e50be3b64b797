"""Encoders on disk: kept under their digest, checked, pruned."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from edge_agent.uplink.encoder_store import EncoderStore
from protos.errors import BundleCorruptError, ConfigError, DiskFullError


def test_an_encoder_is_kept_under_its_digest(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path / "new")
    digest = hashlib.sha256(b"blob").hexdigest()
    assert store.get(digest) is None
    store.put(digest, b"blob")
    assert store.get(digest) == b"blob"
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"{digest}.safetensors"]


def test_a_blob_that_is_another_one_is_neither_kept_nor_handed_out(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path)
    digest = hashlib.sha256(b"blob").hexdigest()
    with pytest.raises(BundleCorruptError):
        store.put(digest, b"other")
    (tmp_path / f"{digest}.safetensors").write_bytes(b"other")
    assert store.get(digest) is None


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(BundleCorruptError):
        EncoderStore(tmp_path).get(digest)


def test_of_many_encoders_those_used_last_stay_and_half_written_ones_go(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path)
    blobs = [bytes([i]) * 9 for i in range(10)]
    names = [hashlib.sha256(blob).hexdigest() for blob in blobs]
    (tmp_path / "cut-off.part").write_bytes(b"half")
    os.utime(tmp_path / "cut-off.part", (1.0, 1.0))
    for age, (name, blob) in enumerate(zip(names[:9], blobs, strict=False)):
        store.put(name, blob)
        os.utime(tmp_path / f"{name}.safetensors", (100.0 + age, 100.0 + age))
    assert store.get(names[1]) == blobs[1]  # used again
    store.put(names[9], blobs[9])
    kept = [name for name in names if store.get(name) is not None]
    assert kept == [names[1], *names[3:]]
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_told_apart_from_a_wrong_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFullError, match="No space left"):
        EncoderStore(tmp_path).put(hashlib.sha256(b"x").hexdigest(), b"x")
    assert not list(tmp_path.iterdir())


def test_a_state_directory_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir"):
        EncoderStore(tmp_path / "file").put(hashlib.sha256(b"x").hexdigest(), b"x")
