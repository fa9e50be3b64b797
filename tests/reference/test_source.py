"""The yard as a source of captures."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.sources import open_source
from protos.errors import SourceError
from reference.yard import ask, render, sample_scenes, sample_sequence


def test_yard_uri_gives_the_split_s_pictures_and_questions() -> None:
    source = open_source("yard://test?start=62&count=4&questions=5")
    captures = list(source)
    scenes = sample_scenes("test", 62, 4)
    assert [c.name for c in captures] == [f"test/{i:06d}" for i in range(62, 66)]
    assert len(source) == 4
    for place, (capture, pixels) in enumerate(zip(captures, render(scenes), strict=True)):
        assert capture.picture is not None
        np.testing.assert_array_equal(np.asarray(capture.picture), pixels)
        assert capture.questions == tuple(q.text for q in ask(scenes, place, 5, 0))


def test_a_sequence_s_uri_gives_frames_of_one_camera() -> None:
    captures = list(open_source("yard://test?sequence=3&start=60&count=8&questions=4"))
    frames = sample_sequence("test", 3, 60, 8)
    assert [c.name for c in captures] == [f"test/sequence-000003/{i:06d}" for i in range(60, 68)]
    for place, (capture, pixels) in enumerate(zip(captures, render(frames.drawn), strict=True)):
        np.testing.assert_array_equal(np.asarray(capture.picture), pixels)
        assert capture.questions == tuple(q.text for q in frames.ask(place, 4, 0))
    assert len(list(open_source("yard://test?sequence=0&count=2&questions=0"))) == 2


@pytest.mark.parametrize(
    "uri",
    ["yard://moon", "yard://test?count=0", "yard://test?count=-3", "yard://test?colour=red"]
    + ["yard://test?sequence=x", "yard://test?sequence=-1"],
)
def test_a_bad_yard_uri_is_a_source_error_that_names_it(uri: str) -> None:
    with pytest.raises(SourceError, match="yard://"):
        open_source(uri)
