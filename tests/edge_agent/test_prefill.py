"""A real (tiny, random) checkpoint through the whole agent, to a server that checks every byte."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent import cli
from edge_agent.agent import Agent
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.prefill import EdgeModel, load
from edge_agent.sources.folder import Folder
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.encoder_store import EncoderStore
from projector.codec.encoder import Encoder
from projector.models.vlm import VLM
from protos.errors import ModelError
from protos.header import unpack_header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import RAW_KV_FP8, OperatingPoint
from protos.process import logs
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.tiny_models import tiny_idefics3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_idefics3(tmp_path_factory.mktemp("model"), grid=3)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> EdgeModel:
    return load(checkpoint)


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoder_for(model: EdgeModel) -> Encoder:
    rng = np.random.default_rng(0)
    x = np.concatenate([model.see(picture(seed)).state.flat() for seed in range(4)])
    d, r = x.shape[1], 8
    projection = np.linalg.qr(rng.standard_normal((d, r)))[0].astype(np.float32)
    return Encoder(
        source_fingerprint=model.layout.fingerprint,
        points=(OperatingPoint(0, "fp8", "latent", "fp8_e4m3", 0, r, "fp8"),),
        x_mean=x.mean(0),
        x_scale=x.std(0) + 1e-3,
        projection=projection,
        reconstruction=projection.T.copy(),
        centre=np.zeros((model.layout.tokens, r), np.float32),
        latent_mean=np.zeros(r, np.float32),
        latent_inv_cov=np.eye(r, dtype=np.float32),
        raw_scale=np.full(d, 0.05, np.float32),
        steps={"fp8": np.full(r, 0.05, np.float32)},
    )


@pytest.mark.parametrize("point", ["fp8", "raw_kv_fp8"])
def test_what_the_server_decodes_is_what_the_model_saw(
    tmp_path: Path, model: EdgeModel, point: str
) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(2):
        picture(seed).save(tmp_path / "in" / f"{seed}.png")
    encoder = encoder_for(model)

    async def run() -> tuple[list[Any], FakeBridge]:
        served = FakeBridge(encoder)
        await served.start()
        records: list[Any] = []
        agent = Agent(
            Folder.from_path(tmp_path / "in"),
            model,
            Uplink(
                model.layout,
                served.dial,
                EncoderStore(tmp_path),
                Metrics(),
                logs.configure("error"),
            ),
            Plan(point=point, max_new_tokens=3),
            records.append,
            Metrics(),
            logs.configure("error"),
            questions=("where is the dog",),
            edge_only_too=True,
        )
        await agent.run()
        await served.stop()
        return records, served

    records, served = asyncio.run(run())
    assert [r.error for r in records] == [None, None]
    assert all(isinstance(r.edge_answer, str) for r in records)
    by_id = {r.request_id: r for r in records}
    for (_, request_id), raws in served.messages.items():
        request = pb.InferRequest.FromString(next(iter(raws)))
        header, body = unpack_header(request.frame.header, request.frame.payload)
        record = by_id[request_id.hex()]
        sent = next(p for p in [*encoder.points, RAW_KV_FP8] if p.index == header.operating_point)
        received = encoder.decode(body, header.kept, sent)
        state = model.see(picture(int(record.capture.removesuffix(".png")))).state
        true = encoder.project(state.flat()[header.kept])
        error = float(np.linalg.norm(received - true) / np.linalg.norm(true))
        assert error == pytest.approx(record.distortion["quantize"], rel=0.05)
        assert error < 0.1


def test_the_edge_only_answer_is_the_one_of_the_model_that_sees_the_picture(
    checkpoint: Path, model: EdgeModel
) -> None:
    vlm = VLM.load(checkpoint)
    for seed in range(3):
        ids = vlm.answer_pictures([picture(seed)], [vlm.question_ids("how many dog")], 5)[0]
        assert model.see(picture(seed)).answer("how many dog", 5) == vlm.text(ids)


def test_inspect_reads_a_real_checkpoint(
    checkpoint: Path, model: EdgeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(checkpoint)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["fingerprint"] == model.layout.fingerprint
    assert shown["tokens"] == 9


def test_a_device_or_checkpoint_that_does_not_work_is_a_model_error(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="device"):
        load(checkpoint, device="no-such-device")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        load(tmp_path)
