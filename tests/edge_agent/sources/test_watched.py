"""A watched folder: each file once, and only when it is whole."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from edge_agent.sources import Capture, open_source
from edge_agent.sources.taken import TakenFiles
from edge_agent.sources.watched import WatchedFolder, being_written
from protos.errors import SourceError


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((60, 40), level).save(file, "PNG")
    return file.getvalue()


class Taker:
    """Takes the captures of an address in a thread."""

    def __init__(self, uri: str) -> None:
        self.source, self.captures = open_source(uri), list[Capture]()
        self._thread = threading.Thread(target=lambda: self.captures.extend(self.source))
        self._thread.start()

    def names(self) -> list[str]:
        return [capture.name for capture in self.captures]

    def wait(self, what: Callable[[], bool]) -> None:
        until = time.monotonic() + 20
        while not what():
            assert time.monotonic() < until, self.names()
            time.sleep(0.01)

    def close(self) -> None:
        self.source.close()  # type: ignore[attr-defined]
        self._thread.join()


@pytest.fixture
def taker(tmp_path: Path) -> Iterator[Taker]:
    (tmp_path / "before.png").write_bytes(png(1))
    (tmp_path / "questions.jsonl").write_text("{}")
    made = Taker(f"folder://{tmp_path}?watch=1")
    made.wait(lambda: made.names() == ["before.png"])
    yield made
    made.close()


@pytest.mark.slow
def test_new_replaced_and_renamed_files_come_once_each(taker: Taker, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2))
    taker.wait(lambda: "a.png" in taker.names())
    (tmp_path / "a.png").write_bytes(png(3))
    (tmp_path / ".b.png.tmp").write_bytes(png(4))
    (tmp_path / ".b.png.tmp").rename(tmp_path / "b.png")
    taker.wait(lambda: "b.png" in taker.names() and taker.names().count("a.png") == 2)
    (tmp_path / "a.png").unlink()
    (tmp_path / "end.png").write_bytes(png(5))
    taker.wait(lambda: "end.png" in taker.names())
    assert sorted(taker.names()) == ["a.png", "a.png", "b.png", "before.png", "end.png"]
    assert len({capture.content for capture in taker.captures}) == 5
    assert all(capture.error is None for capture in taker.captures)


@pytest.mark.slow
def test_a_file_that_is_still_being_written_is_waited_for(taker: Taker, tmp_path: Path) -> None:
    whole = png(6)
    with (tmp_path / "slow.png").open("wb") as file:
        file.write(whole[:500])
        file.flush()
        assert being_written(tmp_path / "slow.png")
        (tmp_path / "other.png").write_bytes(png(7))
        taker.wait(lambda: "other.png" in taker.names())
        assert "slow.png" not in taker.names()
        file.write(whole[500:])
    taker.wait(lambda: "slow.png" in taker.names())
    assert not being_written(tmp_path / "slow.png")
    assert all(capture.error is None for capture in taker.captures)


@pytest.mark.slow
def test_half_a_file_is_looked_at_again_before_it_counts_as_broken(
    taker: Taker, tmp_path: Path
) -> None:
    whole = png(8)
    (tmp_path / "half.png").write_bytes(whole[:700])
    (tmp_path / "paused.png").write_bytes(whole[:700])
    (tmp_path / "other.png").write_bytes(png(9))
    taker.wait(lambda: "other.png" in taker.names())
    with (tmp_path / "paused.png").open("ab") as file:
        file.write(whole[700:])
    taker.wait(lambda: len(taker.captures) == 4)
    errors = {capture.name: capture.error for capture in taker.captures}
    assert errors["half.png"] is not None and errors["half.png"].name == "picture"
    assert errors["paused.png"] is None


def test_a_folder_that_goes_and_comes_back_is_watched_on(tmp_path: Path) -> None:
    folder = tmp_path / "card"
    folder.mkdir()
    taker = Taker(f"{folder}?watch=1")
    try:
        folder.rename(tmp_path / "away")
        (tmp_path / "away" / "a.png").write_bytes(png(1))
        os.rename(tmp_path / "away", folder)
        taker.wait(lambda: taker.names() == ["a.png"])
    finally:
        taker.close()


def test_what_cannot_be_watched_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        open_source(f"folder://{tmp_path}/nowhere?watch=1")
    with pytest.raises(SourceError, match="did you mean watch"):
        open_source(f"folder://{tmp_path}?wach=1")
    (tmp_path / "odd?watch=1").mkdir()
    (tmp_path / "odd?watch=1" / "a.png").write_bytes(png(1))
    assert len(list(open_source(f"folder://{tmp_path}/odd?watch=1"))) == 1


def watched(folder: Path, memory: Path) -> Iterator[WatchedFolder]:
    """The folder, opened again and again, each time as after a restart."""
    while True:
        source = open_source(f"folder://{folder}?watch=1")
        assert isinstance(source, WatchedFolder)
        source.remember(memory)
        yield source


def looked(source: WatchedFolder) -> None:
    """Two looks, after which a file is whole."""
    source._look()
    source._look()


def taken(source: WatchedFolder, most: int = 100) -> list[str]:
    looked(source)
    names: list[str] = []
    while len(names) < most and (capture := source.take()) is not None:
        names.append(capture.name)
    return names


def test_a_restart_gives_only_what_was_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(png(1))
    starts = watched(folder, tmp_path / "memory")
    first = next(starts)
    assert taken(first, most=2) == ["a.png", "b.png"]
    # killed here: the second was given, and nobody knows whether it was worked on
    second = next(starts)
    assert taken(second) == ["b.png", "c.png"]
    second.finished()
    second.close()
    (folder / "a.png").write_bytes(png(2))  # another picture under an old name
    third = next(starts)
    assert taken(third, most=1) == ["a.png"]
    third.close()  # ended with an error
    fourth = next(starts)
    assert taken(fourth) == ["a.png"]
    fourth.finished()
    assert taken(next(starts)) == []


def test_a_folder_that_was_away_for_a_while_gives_none_again(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    source = next(watched(folder, tmp_path / "memory"))
    assert taken(source) == ["a.png"]
    folder.rename(tmp_path / "away")
    folder.mkdir()
    assert taken(source) == []  # what an empty mount point shows
    folder.rmdir()
    (tmp_path / "away").rename(folder)
    assert taken(source) == []


def test_the_memory_is_bounded_and_survives_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_agent.sources import taken as module

    monkeypatch.setattr(module, "MOST", 5)
    monkeypatch.setattr(module, "_SLACK", 10)
    memory = TakenFiles(tmp_path, Path("/pictures"))
    for number in range(30):
        memory.add(f"{number}.png", (number, 1, 2))
        memory.tidy({f"{number}.png"})
    (file,) = tmp_path.iterdir()
    assert len(memory.marks) <= 5 and len(file.read_text().splitlines()) <= 13
    with file.open("a") as more:
        more.write('["cut off.png", 1, ')
    assert TakenFiles(tmp_path, Path("/pictures")).marks == memory.marks
    (tmp_path / "not a folder").write_text("")
    TakenFiles(tmp_path / "not a folder", Path("/pictures")).add("a", (1, 2, 3))
