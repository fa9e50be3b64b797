"""An encoder that arrives in pieces: what is there after a kill, on a full disk, beside another."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.part_file import PartFile
from protos.errors import BundleCorruptError

BLOB = os.urandom(5000)
DIGEST = hashlib.sha256(BLOB).hexdigest()


def begin(store: EncoderStore, digest: str, piece: bytes) -> None:
    with store.part(digest) as part:
        part.add(piece)


def begun(store: EncoderStore, digest: str = DIGEST) -> bytes:
    with store.part(digest) as part:
        assert part.resumed == bool(part.data)
        return bytes(part.data)


def test_what_had_arrived_is_there_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal\n"
        "from edge_agent.uplink.encoder_store import EncoderStore\n"
        f"with EncoderStore(pathlib.Path({str(tmp_path)!r})).part({DIGEST!r}) as part:\n"
        f"    part.add({BLOB[:1000]!r})\n"
        f"    part.add({BLOB[1000:1001]!r})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    store = EncoderStore(tmp_path)
    with store.part(DIGEST) as part:
        assert part.data == BLOB[:1001]
        part.add(BLOB[1001:])
        store.keep(part)
    assert EncoderStore(tmp_path).get(DIGEST) == BLOB and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_gets_its_room_back_and_the_download_goes_on_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EncoderStore(tmp_path)
    begin(store, DIGEST, BLOB[:1000])

    def full(file: PartFile, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PartFile, "append", full)
        begin(store, DIGEST, BLOB[1000:2000])
        assert not list(tmp_path.iterdir())
        assert begun(store) == BLOB[:2000]
    assert begun(store) == BLOB[:2000]
    assert begun(EncoderStore(tmp_path)) == BLOB[:2000], "there is room again"


def test_of_many_parts_those_of_two_encoders_stay(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path)
    for age in range(4):
        begin(store, str(age) * 64, b"part")
        os.utime(tmp_path / f"{str(age) * 64}.part", (100.0 + age, 100.0 + age))
    assert {path.name[0] for path in tmp_path.iterdir()} == {"2", "3"}
    memory = EncoderStore(None)
    for age in range(4):
        begin(memory, str(age) * 64, b"part")
    assert [begun(memory, str(age) * 64) for age in (3, 2)] == [b"part", b""]


def test_two_downloads_of_one_encoder_do_not_mix(tmp_path: Path) -> None:
    one, two = EncoderStore(tmp_path), EncoderStore(tmp_path)
    with one.part(DIGEST) as first:
        first.add(BLOB[:1000])
        with two.part(DIGEST) as second:
            assert not second.data
            second.add(BLOB)
            two.keep(second)
        first.add(BLOB[1000:])
        one.keep(first)
    assert two.get(DIGEST) == BLOB and len(list(tmp_path.iterdir())) == 1


def test_a_part_that_another_process_removed_is_kept_all_the_same(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path)
    with store.part(DIGEST) as part:
        part.add(BLOB)
        (tmp_path / f"{DIGEST}.part").unlink()
        store.keep(part)
    assert store.get(DIGEST) == BLOB


def test_a_part_that_is_no_file_or_a_link_is_left_alone(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / f"{DIGEST}.part", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    for make in (lambda: path.symlink_to(elsewhere), lambda: os.mkfifo(path), path.mkdir):
        make()
        store = EncoderStore(tmp_path)
        begin(store, DIGEST, BLOB[:9])
        assert begun(store) == BLOB[:9] and elsewhere.read_bytes() == b"mine"
        path.rmdir() if path.is_dir() else path.unlink()


def test_wrong_bytes_are_never_kept(tmp_path: Path) -> None:
    for store in (EncoderStore(tmp_path), EncoderStore(None)):
        with store.part(DIGEST) as part:
            part.add(BLOB[:-1])
            with pytest.raises(BundleCorruptError):
                store.keep(part)
        assert store.get(DIGEST) is None
