"""Sources: which there are, and how one is found."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent import sources
from edge_agent.sources import Capture, Source, open_source, scheme_of
from edge_agent.sources.folder import Folder
from protos.errors import SourceError


def save(path: Path, colour: tuple[int, int, int] = (10, 200, 30), **kwargs: Any) -> Path:
    Image.new("RGB", (12, 8), colour).save(path, **kwargs)
    return path


MEMBERS = {"folder": "folder:{}", "yard": "yard://test?count=3&questions=2"}
"""An address per scheme; the folder's holds three pictures."""


def test_every_source_that_is_installed_is_under_contract() -> None:
    assert set(MEMBERS) == set(sources.schemes())


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
