"""Settings read again while the agent runs: what changes, what waits for a restart."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np

from edge_agent.agent import Agent
from edge_agent.cameras.camera import Camera
from edge_agent.device.notify import Notify
from edge_agent.device.reload import Reload
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.settings import Settings, load
from edge_agent.sources.address import Address
from edge_agent.sources.turns import Turns
from protos.errors import ConfigError
from protos.process import logs
from tests.edge_agent.cameras.clips import clip
from tests.fakes.fake_edge import FakeModel


class Reloaded:
    """An agent that does not run, and what a reload of it says."""

    def __init__(self, folder: Path, cameras: tuple[Camera, ...] = (), **before: Any) -> None:
        nobody: Any = MagicMock()  # nothing is sent
        model: Any = FakeModel()
        self.agent = Agent(Turns(cameras), model, nobody, Plan(), print, Metrics(), nobody)
        self.before, self.fresh = self.of(**before), self.of(**before)
        self.lines: list[dict[str, Any]] = []
        log = logs.configure("info", "edge_agent", stream=self)
        self.reload = Reload(self.before, lambda: self.fresh, self.agent, Notify({}), log)

    @staticmethod
    def of(**values: Any) -> Settings:
        return load(values, environ={})

    def write(self, text: str) -> int:
        self.lines.append(json.loads(text))
        return len(text)

    def flush(self) -> None:
        pass

    def take(self, **values: Any) -> dict[str, Any]:
        self.fresh = self.of(**values)
        self.reload.read()
        return self.lines[-1]


def test_what_can_change_changes_and_the_rest_is_named(tmp_path: Path) -> None:
    one = Reloaded(tmp_path, questions=["a ?"], server=["a.example:1"])
    said = one.take(
        questions=["b ?", "c ?"], max_new_tokens=3, guard_limit=0.5, priority="alarm",
        server=["b.example:1"], spool_bytes=1 << 21,
    )  # fmt: skip
    assert said["event"] == "settings reloaded"
    assert said["changed"] == ["guard_limit", "max_new_tokens", "priority", "questions"]
    assert said["need_restart"] == ["server", "spool_bytes"]
    assert one.agent.questions == ("b ?", "c ?") and one.agent.plan.max_new_tokens == 3
    assert one.agent.plan.guard.limit == 0.5 and one.agent.plan.priority == 1
    assert one.take(questions=["b ?", "c ?"], max_new_tokens=3, guard_limit=0.5, priority="alarm",
                    server=["a.example:1"])["event"] == "reloading", "nothing differs"  # fmt: skip


def test_settings_that_cannot_be_read_change_nothing(tmp_path: Path) -> None:
    one = Reloaded(tmp_path, questions=["a ?"])

    def broken() -> Settings:
        raise ConfigError("edge.toml: is not TOML")

    one.agent.questions = ("a ?",)
    one.reload.again = broken
    one.reload.read()
    assert one.lines[-1]["event"] == "settings not taken over"
    assert one.agent.questions == ("a ?",) and one.reload.now == one.before


def test_what_would_end_the_run_at_the_next_picture_or_start_is_not_taken_over(
    tmp_path: Path,
) -> None:
    camera = Camera(Address.parse("rtsp://127.0.0.1:1/x"), "gate")
    one = Reloaded(tmp_path, (camera,), questions=["a ?"])
    one.agent.uplink.connection.latest = None
    before = one.reload.now
    for values in ({"questions": []}, {"questions": ["a ?"], "trigger": ["yard: every=1s"]}):
        assert one.take(**values)["event"] == "settings not taken over"
    session = SimpleNamespace(points={"x4": MagicMock()}, advised="x4", rungs=())
    one.agent.uplink.connection.latest = session
    said = one.take(questions=["a ?"], highest_point="x99")
    assert said["event"] == "settings not taken over" and "x4" in said["cause"]
    assert one.take(questions=["a ?"], highest_point="x4")["changed"] == ["highest_point"]
    without = Reloaded(tmp_path, questions=["a ?"])
    said = without.take(questions=["a ?"], trigger=["every=1s"])
    assert said["event"] == "settings not taken over" and "for cameras" in said["cause"]
    assert without.reload.now.trigger == () and before.questions == ("a ?",)


def test_a_mask_may_be_added_and_one_that_is_taken_away_stays(tmp_path: Path) -> None:
    camera = Camera(Address.parse("rtsp://127.0.0.1:1/x"), "gate", ["0,0 0.5,0 0.5,1 0,1"])
    first, second = "gate=0,0 0.5,0 0.5,1 0,1", "gate=0.5,0 1,0 1,1 0.5,1"
    one = Reloaded(tmp_path, (camera,), mask=[first])
    said = one.take(mask=[second], trigger=["every=10s"])
    assert said["changed"] == ["mask", "trigger"] and said["need_restart"] == ["mask"]
    assert camera.masks == ("0,0 0.5,0 0.5,1 0,1", "0.5,0 1,0 1,1 0.5,1")
    assert [rule.kind for rule in camera.rules] == ["every"]
    assert one.take(mask=[])["need_restart"] == ["mask"] and len(camera.masks) == 2
    assert one.take(mask=["gate=nonsense"])["event"] == "settings not taken over"
    assert len(camera.masks) == 2


def test_no_picture_of_before_a_new_mask_is_taken_after_it(tmp_path: Path) -> None:
    came = threading.Event()
    camera = Camera(Address.parse(f"file://{clip(tmp_path / 'a.mp4')}?realtime=1&loop=1"), "gate")
    camera.start(came.set)
    try:
        assert came.wait(60)
        camera.change(["0,0 1,0 1,1 0,1"], [])
        came.clear()
        while (capture := camera.take()) is None:
            assert came.wait(60)
            came.clear()
        assert capture.picture is not None and not np.asarray(capture.picture).any()
    finally:
        camera.close()
