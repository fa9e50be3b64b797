"""The way back with real processes: the small model answers from the state that the cloud holds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_agent.frame_maker import FrameMaker
from edge_agent.metrics import Metrics
from edge_agent.picture import PictureCodec
from edge_agent.plan import Plan
from edge_agent.prefill import load as load_edge
from edge_agent.sources import Capture
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.dial import dial_insecure
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.request import Request
from edge_agent.uplink.retry import RetryPolicy
from edge_agent.uplink.scenes import Scene, Scenes
from projector.bundle.load import Bundle
from projector.codec.arrays import Floats
from projector.codec.encoder import Encoder
from projector.models import cache as kv
from projector.models.vlm import VLM
from protos.errors import NoFeedbackError, UnknownQuantizerError
from protos.process import logs
from protos.state import KVState
from tests.cloud_server.stage import Server, running_server
from tests.fakes import two_way
from tests.fakes.tiny_models import picture, tiny_idefics3, tiny_llava

pytestmark = pytest.mark.slow

QUESTION = "what is left of the red car ?"
SCENES = 4


@dataclass
class Pair:
    edge_path: Path
    cloud_path: Path
    edge: VLM
    cloud: VLM
    bundle: Bundle
    one_way: Path

    def held(self, scene: int, point: str) -> KVState:
        """What the cloud holds of a picture, by the public pieces in this process."""
        vlm, encoder = self.cloud, self.bundle.encoder
        if point == "picture":
            return vlm.states(vlm.prefill([seen(scene)]))[0]
        own = self.edge.states(self.edge.prefill([seen(scene)]))[0]
        at = next(p for p in encoder.points if p.name == point)
        every = np.ones(encoder.tokens, dtype=np.bool_)
        z = encoder.decode(encoder.encode(own, at, every).payload, every, at)
        keys, values = self.bundle.backend().project(z[None], every[None], vlm.positions)
        even = torch.full((1, vlm.image_tokens), 1 / vlm.image_tokens)
        return kv.to_states(
            torch.from_numpy(keys), torch.from_numpy(values), vlm.layout, vlm.positions, even
        )[0]

    def latents(self, scene: int, point: str, back: str) -> Floats:
        """What should arrive of it at the edge."""
        feedback = self.bundle.feedback
        assert feedback is not None
        encoder: Encoder = feedback.encoder
        at = feedback.decoder.point(back)
        every = np.ones(encoder.tokens, dtype=np.bool_)
        body = encoder.encode(self.held(scene, point), at, every).payload
        return feedback.decoder.decode(body, every, at.index)

    def answer(self, scene: int, point: str, back: str) -> str:
        """The small model's answer from that."""
        feedback, vlm = self.bundle.feedback, self.edge
        assert feedback is not None
        state = feedback.decoder.state(self.latents(scene, point, back), vlm.layout, vlm.positions)
        layers = vlm.scene_cache(*kv.from_states([state], vlm.layout, vlm.positions))
        return vlm.generate_text(layers, [QUESTION], 6)[0]


def seen(scene: int):
    return picture(2000 + scene)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """An edge of 3x3 tokens and a cloud of 4x4: the way back crosses grids too."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pair")
    edge_path, cloud_path = tiny_idefics3(folder, grid=3), tiny_llava(folder, text="llama")
    edge, cloud = VLM.load(edge_path), VLM.load(cloud_path)
    path = two_way.write(folder / "bundle", edge, cloud, rank=24)
    one_way = two_way.write(folder / "one-way", edge, cloud, two_way=False)
    bundle = Bundle.load(path, edge.layout, cloud.layout)
    return Pair(edge_path, cloud_path, edge, cloud, bundle, one_way)


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[Server]:
    with running_server(pair.cloud_path, [pair.bundle.path]) as running:
        yield running


def uplink_to(server: Server, pair: Pair, folder: Path) -> Uplink:
    return Uplink(
        pair.edge.layout,
        dial_insecure(f"127.0.0.1:{server.port}"),
        EncoderStore(folder),
        Metrics(),
        logs.configure("error"),
        RetryPolicy(retries=2),
    )


def send(pair: Pair, server: Server, folder: Path, point: str, back: str) -> list[Outcome]:
    """Hold every scene, then ask for each one's state."""

    async def run() -> list[Outcome]:
        uplink, model = uplink_to(server, pair, folder), load_edge(pair.edge_path)
        scenes, kept = Scenes(uplink), []
        for number in range(SCENES):
            capture = Capture(str(number), seen(number), float(number))
            maker = FrameMaker(
                capture, model, Plan(point=point, picture=PictureCodec("png")), Metrics()
            )
            held = await scenes.hold(Request("", maker))
            assert isinstance(held, Scene), held.error
            kept.append(held)
        outcomes = [await scenes.feedback(scene, os.urandom(8), back) for scene in kept]
        await uplink.close()
        return outcomes

    return asyncio.run(run())


@pytest.mark.parametrize(("point", "back"), [("fp8", ""), ("picture", "fine"), ("float", "float")])
def test_what_comes_back_is_what_the_cloud_holds_bit_for_bit(
    pair: Pair, server: Server, tmp_path: Path, point: str, back: str
) -> None:
    outcomes = send(pair, server, tmp_path, point, back)
    assert [o.error for o in outcomes] == [None] * SCENES
    for scene, outcome in enumerate(outcomes):
        assert outcome.returned is not None
        expected = pair.latents(scene, point, back)
        np.testing.assert_array_equal(outcome.returned.latents, expected)
        other = pair.latents((scene + 1) % SCENES, point, back)
        assert np.abs(other - expected).max() > 0.1
    kept = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    feedback = pair.bundle.feedback
    assert feedback is not None
    names = (pair.bundle.encoder.digest, feedback.decoder.digest)
    assert kept == sorted(f"{name}.safetensors" for name in names), "each half is fetched once"


def feedback(pair: Pair, server: Server, folder: Path, scene: int, *flags: str):
    file = folder / f"{scene}.png"
    seen(scene).save(file)
    command = [
        *(sys.executable, "-m", "edge_agent", "feedback", str(file), QUESTION),
        *("--model", str(pair.edge_path), "--server", f"127.0.0.1:{server.port}"),
        *("--state-dir", str(folder / "state"), "--max-new-tokens", "6", *flags),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def test_the_small_model_answers_from_the_state_sent_back(
    pair: Pair, server: Server, tmp_path: Path
) -> None:
    expected = [pair.answer(scene, "float", "float") for scene in range(SCENES)]
    assert len(set(expected)) > 1, "no answer depends on the scene: the test would show nothing"
    one = 0
    other = next(scene for scene in range(SCENES) if expected[scene] != expected[one])
    for scene in (one, other):
        run = feedback(
            pair, server, tmp_path, scene,
            "--json", "--point", "float", "--feedback-point", "float",
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        record = json.loads(run.stdout)
        assert record["answer"] == expected[scene]
        both = pair.bundle.feedback
        assert both is not None
        back = record["feedback"]
        assert back["point"] == "float"
        assert back["payload_bytes"] == 4 * both.decoder.tokens * both.decoder.rank
        own = pair.edge.states(pair.edge.prefill([seen(scene)]))[0]
        latents = pair.latents(scene, "float", "float")
        away = both.decoder.round_trip(latents, own)
        assert back["round_trip"] == pytest.approx(away, rel=1e-3)


def test_a_bundle_without_a_way_back_is_a_typed_error_and_its_exit_code(
    pair: Pair, tmp_path: Path
) -> None:
    with running_server(pair.cloud_path, [pair.one_way]) as running:
        run = feedback(pair, running, tmp_path, 0)
    assert run.returncode == NoFeedbackError.exit_code
    assert "no_feedback" in run.stderr and "has no feedback" in run.stderr
    assert "Traceback" not in run.stderr and run.stdout == ""


def test_an_unknown_point_is_refused_by_name(pair: Pair, server: Server, tmp_path: Path) -> None:
    (outcome, *_) = send(pair, server, tmp_path, "fp8", "finest")
    assert isinstance(outcome.error, UnknownQuantizerError)
    assert "'finest'" in str(outcome.error) and "fine" in str(outcome.error)


def test_a_scene_that_was_lost_is_held_again(pair: Pair, tmp_path: Path) -> None:
    with running_server(pair.cloud_path, [pair.bundle.path], "--scene-memory-bytes", "1024") as one:
        outcomes = send(pair, one, tmp_path, "fp8", "")
    assert [o.error for o in outcomes] == [None] * SCENES
    for scene, outcome in enumerate(outcomes):
        assert outcome.returned is not None
        np.testing.assert_array_equal(outcome.returned.latents, pair.latents(scene, "fp8", ""))
    assert [o.attempts for o in outcomes] == [1] * SCENES, "the service makes lost scenes again"
