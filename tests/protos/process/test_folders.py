"""What lies in a folder besides files never stops whoever reads it, and is counted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.process.folders import list_files, open_file, said


@pytest.fixture
def cluttered(tmp_path: Path) -> Iterator[Path]:
    """A folder with two files and one of everything else."""
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "inner").mkdir()
    (tmp_path / "to-inner").symlink_to(tmp_path / "inner")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / ".hidden.txt").write_text("no")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        yield tmp_path


def test_only_files_are_listed_and_the_rest_is_counted_by_what_it_is(cluttered: Path) -> None:
    found = list_files(cluttered)
    assert [path.name for path in found.files] == ["a.txt", "b.txt"]
    assert found.skipped == {
        **{"subfolder": 2, "broken_link": 2, "hidden": 1, "pipe_or_device": 2},
    }
    assert "2 broken link" in said(found.skipped)


@pytest.mark.timeout(20)  # it used to wait for a writer, for ever
@pytest.mark.parametrize("name", ["pipe.txt", "inner", "s"])
def test_what_is_no_file_is_refused_and_never_waited_for(cluttered: Path, name: str) -> None:
    with pytest.raises(OSError):
        open_file(cluttered / name)
    with open_file(cluttered / "a.txt") as file:
        assert file.read() == b"b"
