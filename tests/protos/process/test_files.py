"""Text files as editors write them, and places where nothing can be written."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protos.errors import ConfigError, DiskFullError, SourceError
from protos.process import files


def test_a_byte_order_mark_is_no_part_of_a_text() -> None:
    assert files.text_of("é".encode("utf-8-sig"), "f") == "é"
    assert files.text_of("é".encode(), "f") == "é"
    assert files.text_of(b"", "f") == ""
    assert files.text_of(b"a", "f") == "a"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("text", ["is there a fire ?", "hi", "fire – or smoke ? “no”"])
def test_another_encoding_is_refused_by_its_name(encoding: str, text: str) -> None:
    raw = text.encode(encoding)
    with pytest.raises(
        SourceError, match=rf"note\.txt cannot be read.*UTF-{encoding[4:6]}.*save it as UTF-8"
    ):
        files.text_of(raw, "note.txt", SourceError)


def test_what_is_no_utf_8_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"note\.txt cannot be read as a text"):
        files.text_of("é".encode("latin-1"), "note.txt")


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with (
        pytest.raises(ConfigError, match="ready file .*taken"),
        files.writing(f"ready file {tmp_path / 'taken'}"),
    ):
        files.write_file(tmp_path / "taken", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_many_writers_of_one_file_leave_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    wholes = [bytes([letter]) * 200_000 for letter in b"abcd"]

    def write(whole: bytes) -> None:
        for _ in range(20):
            files.write_file(path, [whole[:1000], memoryview(whole)[1000:]])
            assert path.read_bytes() in wholes

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, wholes))
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_the_permissions_that_were_asked_for(tmp_path: Path, mode: int) -> None:
    files.write_file(tmp_path / "f", b"x", mode)
    assert (tmp_path / "f").stat().st_mode & 0o777 == mode


def test_of_several_files_all_are_written_or_none(tmp_path: Path) -> None:
    files.write_files(tmp_path / "new", {"a": b"1", "b": b"2", "c": b"3"})
    (tmp_path / "new" / "b.part").mkdir()
    with pytest.raises(ConfigError, match=r"cannot write 4 bytes in .*new"):
        files.write_files(tmp_path / "new", {"a": b"44", "b": b"55"}, gone=("c",))
    found = {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir() if p.is_file()}
    assert found == {"a": b"1", "b": b"2", "c": b"3"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="no room to write 1 bytes"):
        files.write_files(tmp_path, {"a": b"1"})
    assert not list(tmp_path.iterdir())


def test_drafts_go_once_nobody_can_be_writing_them(tmp_path: Path) -> None:
    for name in ("old.part", "young.part", "old.txt"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / "old.part", (1.0, 1.0))
    os.utime(tmp_path / "old.txt", (1.0, 1.0))
    files.drop_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"young.part", "old.txt"}
