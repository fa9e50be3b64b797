"""Several sources in one agent: fair turns, names, masks, and what ends them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.settings import Settings
from edge_agent.sources import Capture, LiveSource, Source, open_source
from edge_agent.sources.folder import Folder
from edge_agent.sources.opened import open_sources
from edge_agent.sources.turns import Finite, Turns
from protos.errors import ConfigError, MaskError, SourceError


def opened(**settings: object) -> Source:
    return open_sources(Settings(**settings), open_source)  # type: ignore[arg-type]


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[str, str]]:
    for name, number in (("a", 5), ("b", 2)):
        (tmp_path / name).mkdir()
        for place in range(number):
            Image.new("RGB", (40, 20), (200, 10 * place, 0)).save(tmp_path / name / f"{place}.png")
    yield f"folder://{tmp_path}/a?name=gate", f"folder://{tmp_path}/b?name=yard"


def test_each_source_gets_its_turn(folders: tuple[str, str]) -> None:
    captures = list(opened(source=folders))
    assert [(c.camera, c.name) for c in captures] == [
        ("gate", "gate/0.png"),
        ("yard", "yard/0.png"),
        ("gate", "gate/1.png"),
        ("yard", "yard/1.png"),
        ("gate", "gate/2.png"),
        ("gate", "gate/3.png"),
        ("gate", "gate/4.png"),
    ]


class Ticking:
    """A member that has something only when a test says so."""

    done = False

    def __init__(self, name: str) -> None:
        self.name, self.waiting = name, 0

    def start(self, wake: object) -> None:
        self.wake = wake

    def take(self) -> Capture | None:
        if not self.waiting:
            return None
        self.waiting -= 1
        return Capture(self.name, None, 0.0, text="x")

    def close(self) -> None:
        self.done = True


def test_a_busy_camera_does_not_keep_a_quiet_one_waiting() -> None:
    busy, quiet = Ticking("busy"), Ticking("quiet")
    captures = iter(Turns([busy, quiet]))
    busy.waiting, quiet.waiting = 100, 2
    assert [next(captures).name for _ in range(6)] == ["busy", "quiet"] * 2 + ["busy"] * 2
    quiet.waiting = 1
    assert [next(captures).name for _ in range(2)] == ["quiet", "busy"]


def test_close_ends_an_iteration_that_waits_and_its_members() -> None:
    members = [Ticking("a"), Ticking("b")]
    turns = Turns(members)
    assert isinstance(turns, LiveSource)
    threading.Timer(0.1, turns.close).start()
    assert list(turns) == [] and all(member.done for member in members)


def test_one_plain_folder_comes_as_it_is(folders: tuple[str, str]) -> None:
    source = opened(source=folders[0].partition("?")[0], max_picture_pixels=100)
    assert isinstance(source, Folder) and len(source) == 5 and source.max_pixels == 100
    assert [capture.name for capture in source][:2] == ["0.png", "1.png"]


def test_a_mask_is_painted_before_a_folders_pictures_are_seen(folders: tuple[str, str]) -> None:
    for capture in opened(source=folders, mask=["gate=0,0 0.5,0 0.5,1 0,1"]):
        assert capture.picture is not None
        hidden = not np.asarray(capture.picture)[:, :20].any()
        assert hidden == (capture.camera == "gate")
        assert np.asarray(capture.picture)[:, 23:, 0].min() == 200


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"mask": ["gaet=0,0 1,0 1,1"]}, ConfigError, "did you mean gate"),
        ({"mask": ["0,0 1,0 1,1"]}, ConfigError, "write CAMERA="),
        ({"mask": ["gate="]}, ConfigError, "write CAMERA="),
        ({"mask": ["gate=/nowhere.png"]}, MaskError, "camera gate"),
        ({"trigger": ["evry=1s"]}, ConfigError, "did you mean every"),
        ({"trigger": ["every=1s"]}, ConfigError, "no source is one"),
    ],
)
def test_masks_and_triggers_that_fit_no_source_end_the_start(
    folders: tuple[str, str], settings: dict[str, list[str]], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        opened(source=folders, **settings)


def test_names_are_checked(folders: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="2 sources are named 'gate'"):
        opened(source=[folders[0], folders[0]])
    with pytest.raises(ConfigError, match="lower case"):
        opened(source=["rtsp://u:sesame@cam/live?name=My Gate"])
    with pytest.raises(SourceError, match="no such file"):
        opened(source=[folders[0], "/nowhere"])


def test_cameras_without_a_name_are_numbered() -> None:
    turns = opened(source=["rtsp://a/1", "csi://0?name=gate", "v4l2:///dev/video1"])
    assert isinstance(turns, Turns)
    assert [member.name for member in turns.members] == ["camera1", "gate", "camera3"]  # type: ignore[attr-defined]


def test_a_broken_mask_stops_its_camera_alone(tmp_path: Path) -> None:
    cameras = ["rtsp://a/1?name=gate", "rtsp://b/1?name=yard"]
    turns = opened(source=cameras, mask=[f"gate={tmp_path}/gone.png"])
    assert isinstance(turns, Turns)
    turns.close()
    with pytest.raises(MaskError):
        opened(source=cameras[:1], mask=[f"gate={tmp_path}/gone.png"])


def test_a_yard_may_have_a_name_of_its_own() -> None:
    pytest.importorskip("reference")
    (capture,) = opened(source=["yard://test?name=gate&count=1&questions=1"])
    assert capture.camera == "gate" and capture.questions


def test_a_finite_member_ends() -> None:
    member = Finite((Capture("a", None, 0.0, text="x"),), lambda capture: capture)
    member.start(lambda: None)
    assert member.take() is not None and not member.done
    assert member.take() is None and member.done


class Asked:
    """A camera that notes that it was asked for a picture."""

    def __init__(self, name: str) -> None:
        self.name, self.requests = name, 0

    def request(self) -> None:
        self.requests += 1


def test_a_picture_is_asked_of_one_camera_by_its_name_or_of_all() -> None:
    gate, yard = Asked("gate"), Asked("yard")
    turns = Turns([gate, yard])  # type: ignore[list-item]
    turns.request("yard")
    assert (gate.requests, yard.requests) == (0, 1)
    turns.request()
    assert (gate.requests, yard.requests) == (1, 2)
    with pytest.raises(ConfigError, match="named 'yrad'; did you mean"):
        turns.request("yrad")
