"""Sources: which there are, and how one is found."""

from __future__ import annotations

import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent import sources
from edge_agent.sources import Capture, LiveSource, Source, open_source, scheme_of
from edge_agent.sources.folder import Folder
from protos.errors import SourceError


def save(path: Path, colour: tuple[int, int, int] = (10, 200, 30), **kwargs: Any) -> Path:
    Image.new("RGB", (12, 8), colour).save(path, **kwargs)
    return path


MEMBERS = {"folder": "folder:{}", "yard": "yard://test?count=3&questions=2"}
"""An address per scheme; the folder's holds three pictures."""
LIVE = {
    "csi": "csi://0",
    "file": "file://{}",
    "rtsp": "rtsp://127.0.0.1:1/stream",
    "rtsps": "rtsps://127.0.0.1:1/stream",
    "v4l2": "v4l2:///dev/video77",
}
"""Addresses of sources whose length nobody knows; the file's is a clip."""


def test_every_source_that_is_installed_is_under_contract() -> None:
    assert {*MEMBERS, *LIVE} == set(sources.schemes())


@pytest.mark.quick(1)
@pytest.mark.parametrize("scheme", LIVE)
def test_a_live_source_opens_though_its_camera_is_not_there_and_ends_when_it_is_closed(
    scheme: str, tmp_path: Path
) -> None:
    clip = save(tmp_path / "clip.png")
    source = open_source(LIVE[scheme].format(clip))
    assert isinstance(source, LiveSource) and sources.endless(source) and len(source) == 0
    if scheme != "file":
        threading.Timer(0.3, source.close).start()
    assert len(list(source)) == (scheme == "file")
    source.close()


@pytest.mark.parametrize("scheme", MEMBERS)
def test_a_source_yields_as_many_captures_as_it_says_each_with_one_thing_to_see(
    scheme: str, tmp_path: Path
) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png")
    source = open_source(MEMBERS[scheme].format(tmp_path))
    assert isinstance(source, Source) and scheme_of(MEMBERS[scheme]) == scheme
    captures = list(source)
    assert len(captures) == len(source) == 3
    assert len({capture.name for capture in captures}) == 3
    for one in captures:
        assert [one.picture, one.text, one.error].count(None) == 2
        assert one.captured_at > 0 and one.content
    assert [capture.name for capture in source] == [capture.name for capture in captures]


@pytest.mark.parametrize("scheme", MEMBERS)
def test_an_address_that_leads_nowhere_is_a_source_error(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_source(f"{scheme}://{tmp_path}/nowhere")


def test_an_unknown_scheme_is_refused_with_what_there_is() -> None:
    with pytest.raises(SourceError, match="did you mean 'folder'"):
        open_source("foldr://x")
    assert scheme_of("yard://test?count=2") == "yard"
    assert scheme_of("/a/b") == scheme_of("a b/c") == "folder"


class _Two:
    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __len__(self) -> int:
        return 2

    def __iter__(self):  # type: ignore[no-untyped-def]
        for name in ("1", "2"):
            yield Capture(name, Image.new("RGB", (4, 4)), 0.0, questions=(self.uri,))


def test_another_package_can_bring_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("two", f"{__name__}:_Two", sources.GROUP)
    broken = EntryPoint("broken", "nowhere.at.all:x", sources.GROUP)
    monkeypatch.setattr(sources, "entry_points", lambda group: [point, broken])
    monkeypatch.setattr(EntryPoint, "load", lambda self: _Two if self.name == "two" else _fail())
    assert [c.questions for c in open_source("two://x?n=1")] == [("two://x?n=1",)] * 2
    with pytest.raises(SourceError, match="nowhere.at.all"):
        open_source("broken://")


def _fail() -> None:
    raise ImportError("No module named 'nowhere'")


def test_the_folder_needs_no_installed_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "entry_points", lambda group: [])
    assert list(sources.schemes()) == ["folder"]
    assert isinstance(Folder((Path("x"),)), Source)
