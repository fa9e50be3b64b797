"""The HTTP port with a real model: its answers equal those of gRPC."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import openai
import pytest

from projector.codec.risk import RiskModel, feature_count
from protos.distortion import Distortion
from protos.header import Header
from protos.points import RAW_KV_FP8
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def over_http(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Server]:
    from projector.models.vlm import VLM

    rng, count = np.random.default_rng(1), feature_count(stage.RANK)
    weights = rng.normal(scale=0.3, size=count).astype(np.float32)
    guarded = stage.write_random_bundle(
        tmp_path_factory.mktemp("guarded") / "bundle",
        VLM.load(files.model).layout,
        stage.SOURCE,
        files.cloud,
        service_risk=RiskModel(np.zeros(count, np.float32), weights, -1.0, 0.3),
    )
    with stage.running_server(files.model, [guarded], "--api-port", "0") as server:
        yield server


@pytest.fixture
def ai(over_http: stage.Server) -> Iterator[openai.OpenAI]:
    """The client that most applications use, unchanged but for its address."""
    url = f"http://127.0.0.1:{over_http.ports['api_port']}/v1"
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def edge(over_http: stage.Server) -> Iterator[stage.Client]:
    with over_http.channel() as channel:
        made = stage.Client(channel)
        made.negotiate()
        yield made


def scenes(server: stage.Server) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{server.ports['api_port']}/v1/scenes"
    with urllib.request.urlopen(url, timeout=30) as reply:
        found: list[dict[str, Any]] = json.load(reply)["data"]
        return found


def about(part: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [part, {"type": "text", "text": stage.QUESTION}]}]


def test_a_held_scene_is_answered_as_over_grpc_with_its_tokens_counted(
    over_http: stage.Server, ai: openai.OpenAI, edge: stage.Client
) -> None:
    (event,) = edge.infer(edge.frame(seed=11, question=""))
    assert event.HasField("accepted")
    by_grpc = edge.ask(11, stage.QUESTION, limit=6)[-1].answer
    scene = scenes(over_http)[0]
    messages = about({"type": "scene", "device": scene["device"], "at": scene["id"]})
    model = ai.models.list().data[0].id
    whole = ai.chat.completions.create(model=model, messages=messages, max_tokens=6)
    assert whole.choices[0].message.content == by_grpc.text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == by_grpc.tokens
    assert whole.usage.prompt_tokens > len(scene["token_map"]) * len(scene["token_map"][0])
    stream = ai.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == by_grpc.text
    assert chunks[-1].usage == whole.usage
    bridge: Any = chunks[-2].to_dict()["bridge"]
    assert bridge["distortion"]["quantize"] == pytest.approx(by_grpc.distortion.quantize)


def test_a_picture_in_the_request_is_answered_as_the_picture_point_is(
    over_http: stage.Server, ai: openai.OpenAI, edge: stage.Client
) -> None:
    file = stage.picture_file(5)
    by_grpc = edge.answer(edge.picture(file))
    held = len(scenes(over_http))
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    model = ai.models.list().data[0].id
    made = ai.chat.completions.create(
        model=model,
        messages=about({"type": "image_url", "image_url": {"url": url}}),
        max_tokens=6,
    )
    assert made.choices[0].message.content == by_grpc.text
    assert len(scenes(over_http)) == held, "it is not held"
    damaged = f"data:image/png;base64,{base64.b64encode(file[:40]).decode()}"
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(
            model=model, messages=about({"type": "image_url", "image_url": {"url": damaged}})
        )
    assert refused.value.code == "picture"


def test_the_highest_risk_that_a_caller_accepts_is_kept_by_scenes_and_pictures(
    over_http: stage.Server, ai: openai.OpenAI, edge: stage.Client
) -> None:
    model = ai.models.list().data[0].id

    def newest(question: str, **fields: Any) -> dict[str, Any]:
        scene = scenes(over_http)[0]
        part = {"type": "scene", "device": scene["device"], "at": scene["id"]}
        messages: list[Any] = [
            {"role": "user", "content": [part, {"type": "text", "text": question}]}
        ]
        made = ai.chat.completions.create(
            model=model, messages=messages, max_tokens=2, extra_body=fields
        )
        bridge: Any = made.to_dict()["bridge"]
        assert bridge["scene"] == scene["id"]
        return dict(bridge)

    (event,) = edge.infer(edge.frame(seed=21, question=""))
    assert event.HasField("accepted")
    risk = newest("is there a fire ?")["risk"]
    assert 0 < risk < 1
    assert newest("how many trucks ?")["risk"] != risk, "the question's words count"
    assert newest("is there a fire ?", max_risk=risk + 1e-6)["risk"] == risk
    with pytest.raises(openai.UnprocessableEntityError, match="at most") as refused:
        newest("is there a fire ?", max_risk=risk - 1e-6)
    assert refused.value.code == "risk"

    picture = edge.picture(stage.picture_file(6), number=22, question="", cause="distortion")
    assert edge.infer(picture)[-1].HasField("accepted")
    bridge = newest("is there a fire ?", max_risk=0)
    assert (bridge["point"], bridge["risk"], bridge["fallback"]) == ("picture", 0.0, "distortion")
    assert bridge["bundle"] is None


def test_delta_frames_and_raw_caches_have_their_own_fidelity(
    over_http: stage.Server, ai: openai.OpenAI, edge: stage.Client
) -> None:
    point, model = edge.encoder.point(stage.INT8), ai.models.list().data[0].id
    key = edge.encoder.encode(stage.state(1), point, kept=np.arange(16) < 9)
    delta = edge.encoder.encode(stage.state(2), point, base=key.held)
    raw = edge.encoder.encode(stage.state(1), RAW_KV_FP8)
    sent = {
        900: (key, Header(stage.INT8, 900, key.kept, 0, key.distortion)),
        901: (
            delta,
            Header(stage.INT8, 901, delta.kept, 0, delta.distortion, 900, delta.differences),
        ),
        902: (raw, Header(RAW_KV_FP8.index, 902, raw.kept, 0, raw.distortion)),
    }
    for number, (coded, header) in sent.items():
        request = edge.sealed(header, coded.payload, question="")
        assert edge.infer(request)[-1].HasField("accepted")
        scene = scenes(over_http)[0]
        made = ai.chat.completions.create(
            model=model,
            messages=about({"type": "scene", "device": scene["device"], "at": scene["id"]}),
            max_tokens=2,
        )
        bridge: Any = made.to_dict()["bridge"]
        rounded = Distortion.from_bytes(coded.distortion.to_bytes())
        for told in (scene, bridge):
            assert told["point"] == ("raw_kv_fp8" if number == 902 else point.name)
            assert told["payload_bytes"] == len(coded.payload)
            assert told["distortion"] == pytest.approx(asdict(rounded))
            assert 0 <= told["age_s"] < 600
            known = number != 902
            assert (told["risk"] is not None, told["risk_unknown"] is None) == (known, known)
        assert scene["delta"] == (number == 901)
        assert "".join(scene["token_map"]) == "".join(
            "1" if kept else "0" for kept in coded.held.kept
        )
        if number == 902:
            assert "not calibrated for operating point 'raw_kv_fp8'" in scene["risk_unknown"]
            with pytest.raises(openai.UnprocessableEntityError, match="not calibrated"):
                ai.chat.completions.create(
                    model=model,
                    messages=about({"type": "scene", "device": scene["device"]}),
                    extra_body={"max_risk": 0.9},
                )
        else:
            answer = edge.ask(number, stage.QUESTION, limit=2)[-1].answer
            assert bridge["risk"] == pytest.approx(answer.risk)
