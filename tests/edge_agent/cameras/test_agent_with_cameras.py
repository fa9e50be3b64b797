"""An agent whose source is a camera: what leaves it, what starts a question, how it stops."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.agent import Agent
from edge_agent.plan import Plan
from edge_agent.record import AnswerRecord
from edge_agent.settings import Settings
from edge_agent.sources import open_source
from edge_agent.sources.opened import open_sources
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.edge_agent.cameras.clips import clip
from tests.edge_agent.cameras.watched_camera import children
from tests.fakes.fake_run import Run


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clips") / "moving.mp4")


def over(tmp_path: Path, source: list[str], mask: tuple[str, ...] = (), **kwargs: object) -> Run:
    rules = kwargs.pop("trigger", ())
    run = Run([], tmp_path, **{"questions": ("x",), **kwargs})
    chosen = Settings(source=source, mask=mask, trigger=rules)  # type: ignore[arg-type]
    run.source = open_sources(chosen, open_source)  # type: ignore[assignment]
    return run


def pictures_sent(run: Run) -> list[np.ndarray]:
    raw = [message for messages in run.served.messages.values() for message in messages]
    files = [pb.InferRequest.FromString(message).frame.payload for message in raw]
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


def test_records_name_the_camera_its_picture_and_the_trigger(tmp_path: Path, moving: Path) -> None:
    sources = [f"file://{moving}?name=gate", f"file://{moving}?name=yard&fps=2"]
    run = over(tmp_path, sources, trigger=["every=1s"])
    summary = run()
    assert summary.captures == summary.answered == 6
    assert {(r.camera, r.camera_frame, r.trigger) for r in run.records} == {
        *(("gate", number, "every") for number in (1, 11, 21)),
        *(("yard", number, "every") for number in (1, 3, 5)),
    }
    assert not children()


@pytest.mark.quick(1)
@pytest.mark.parametrize("mask", ["0,0 1,0 1,1 0,1", "0,0 0.5,0 0.5,1 0,1"])
def test_no_picture_that_leaves_shows_what_is_masked(
    tmp_path: Path, moving: Path, mask: str
) -> None:
    plan = Plan(point="picture")
    run = over(tmp_path, [f"file://{moving}?name=gate&fps=2"], (f"gate={mask}",), plan=plan)
    assert run().answered == 6
    for sent in pictures_sent(run):
        assert sent[:, :30].max() < 40  # the codec rings a little; the clip is 60 and brighter
    run = over(tmp_path, [f"file://{moving}?name=gate&fps=2"], plan=plan)
    run()
    assert pictures_sent(run)[0][:, :30].max() > 200


@pytest.mark.slow
def test_the_small_model_decides_what_goes_up(tmp_path: Path, moving: Path) -> None:
    source = [f"file://{moving}?name=gate&fps=2"]
    run = over(tmp_path, source, trigger=["local=fire=edge FIRE"])
    assert (run().captures, len(run.records)) == (6, 6)
    assert {record.trigger for record in run.records} == {"local"}
    run = over(tmp_path, source, trigger=["local=fire=smoke", "every=2s"])
    assert run().captures == 6
    assert [record.camera_frame for record in run.records] == [1, 5]
    dropped = run.value("camera_frames_dropped_total", camera="gate", cause="local")
    assert dropped == 4 and run.ended == 6


@pytest.mark.slow
def test_a_request_has_the_next_picture_taken_and_stop_ends_the_wait(
    tmp_path: Path, moving: Path
) -> None:
    run = over(tmp_path, [f"file://{moving}?name=gate&realtime=1&loop=1"], trigger=["request"])

    agents: list[Agent] = []

    def watch(agent: Agent) -> None:
        agents.append(agent)
        threading.Timer(0.5, agent.request_capture).start()

    def keep(record: AnswerRecord) -> None:
        run.records.append(record)
        agents[0].stop()

    run.watch, run.on_record = watch, keep
    assert run().captures == 1
    assert [record.trigger for record in run.records] == ["request"]
    assert not children()
