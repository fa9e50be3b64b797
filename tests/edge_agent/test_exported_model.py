"""An edge export through the agent: the same cache and answers as the checkpoint, without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent import cli
from edge_agent.prefill import load
from edge_agent.sight import EdgeModel
from edge_agent.sources import open_source
from projector.models.exported.manifest import DESCRIPTION, read_manifest
from protos.errors import (
    BridgeError,
    ModelError,
    PictureError,
    QuestionError,
    QuestionTooLongError,
    SelfCheckError,
)
from protos.layout import KVLayout
from protos.state import KVState
from tests.fakes.tiny_models import tiny_idefics3, tiny_llava

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "reference/models/edge-a"


class _Decoder:
    """A decoder whose latents are the flat state itself."""

    def state(self, latents: np.ndarray, layout: KVLayout, positions: np.ndarray) -> KVState:
        return KVState.from_flat(latents, layout, positions)


@pytest.fixture(scope="module")
def model(export: Path) -> EdgeModel:
    return load(export)


@pytest.fixture(scope="module")
def original() -> EdgeModel:
    return load(REFERENCE)


def test_an_export_sees_and_answers_as_its_checkpoint(
    model: EdgeModel, original: EdgeModel
) -> None:
    assert model.layout == original.layout
    questions = 0
    for capture in open_source("yard://test?count=6"):
        assert capture.picture is not None
        mine, its = model.see(capture.picture), original.see(capture.picture)
        assert (mine.state.grid, mine.state.positions.tolist()) == (
            its.state.grid,
            its.state.positions.tolist(),
        )
        np.testing.assert_allclose(mine.state.flat(), its.state.flat(), atol=5e-5)
        np.testing.assert_allclose(mine.state.attention, its.state.attention, atol=1e-6)
        assert mine.first_token is not None and its.first_token is not None
        for question in capture.questions:
            questions += 1
            assert mine.answer(question, 16) == its.answer(question, 16)
            np.testing.assert_allclose(
                mine.first_token(question), its.first_token(question), atol=1e-4
            )
    assert questions >= 24


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (641, 17), (1000, 999)])
def test_odd_sizes_become_the_same_cache(
    model: EdgeModel, original: EdgeModel, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    seen = Image.fromarray(pixels)
    np.testing.assert_allclose(
        model.see(seen).state.flat(), original.see(seen).state.flat(), atol=5e-5
    )


def test_a_state_sent_back_is_answered_as_the_checkpoint_answers_it(
    model: EdgeModel, original: EdgeModel
) -> None:
    for capture in open_source("yard://test?count=4"):
        assert capture.picture is not None
        flat = original.see(capture.picture).state.flat() * np.float32(1.01)
        mine, its = model.inject(_Decoder(), flat), original.inject(_Decoder(), flat)
        np.testing.assert_allclose(mine.state.flat(), its.state.flat(), atol=1e-6)
        for question in ("is there a fire ?", "how many people are there ?"):
            assert mine.answer(question, 16) == its.answer(question, 16)


@pytest.mark.parametrize(
    ("question", "error"),
    [(" ", QuestionError), ("a <image> b", QuestionError), ("is " * 9000, QuestionTooLongError)],
)
def test_a_question_that_it_cannot_take_is_refused_as_the_checkpoint_refuses_it(
    model: EdgeModel, original: EdgeModel, question: str, error: type[BridgeError]
) -> None:
    said = []
    for one in (model, original):
        with pytest.raises(error) as met:
            one.see(Image.new("RGB", (9, 9))).answer(question, 4)
        said.append(str(met.value))
    assert said[0] == said[1]
    with pytest.raises(PictureError, match="sees pictures, this is a text"):
        model.see("a text")


def test_the_agent_answers_without_torch_and_transformers(export: Path, tmp_path: Path) -> None:
    """As on a device: neither can be imported, and none is needed."""
    script = (
        "import sys\n"
        "sys.modules.update(torch=None, transformers=None, jinja2=None)\n"
        "from tests.edge_agent.without_torch import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    picture = next(iter(open_source("yard://test?count=1"))).picture
    assert picture is not None
    picture.save(tmp_path / "yard.png")
    bundle = ROOT / "reference/bundles/edge-a-cloud"
    done = subprocess.run(
        [sys.executable, "-c", script, str(export), str(bundle), str(tmp_path / "yard.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NEURAL_BRIDGE_EDGE_STATE_DIR": str(tmp_path / "state")},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["answer"] == "about is there a fire ?"
    assert record["edge_answer"] == load(REFERENCE).see(picture).answer("is there a fire ?", 16)
    assert record["error"] is None and record["payload_bytes"] > 0


def test_a_checkpoint_without_torch_names_both_ways_out(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules.update(torch=None, transformers=None)\n"
        "from edge_agent.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "inspect", str(REFERENCE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == ModelError.exit_code
    assert "neural-bridge[edge-torch]" in done.stderr and "export-edge" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_inspect_takes_an_export(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(export)]) == 0
    mine = json.loads(capsys.readouterr().out)
    assert cli.main(["inspect", str(REFERENCE)]) == 0
    assert mine == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("decoder.weights", "flip", "does not match its digest"),
        ("vision.onnx", "cut", "bytes, export.json says"),
        ("embeddings.npy", "remove", "no such file"),
        ("export.json", "cut", "export.json"),
        ("export.json", "empty", "it is empty"),
        ("tokenizer.json", "flip", "does not match its digest"),
    ],
)
def test_a_damaged_export_is_refused_by_file(
    export: Path, tmp_path: Path, name: str, harm: str, said: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(export, copy)
    whole = (copy / name).read_bytes()
    if harm == "flip":
        (copy / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif harm == "remove":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"")
    with pytest.raises(ModelError) as met:
        load(copy)
    assert said in str(met.value) and name in str(met.value)


def test_a_runtime_that_computes_something_else_is_found_before_the_first_frame(
    export: Path, tmp_path: Path
) -> None:
    """As a provider with a fault would: the graphs are whole, their result is another one."""
    copy = tmp_path / "copy"
    shutil.copytree(export, copy)
    weights = np.fromfile(copy / "decoder.weights", np.float32)
    (weights * np.float32(1.02)).tofile(copy / "decoder.weights")
    plain = json.loads((copy / DESCRIPTION).read_text())
    from projector.models.exported.manifest import sha256_of

    plain["files"]["decoder.weights"]["sha256"] = sha256_of(copy / "decoder.weights")
    (copy / DESCRIPTION).write_text(json.dumps(plain))
    with pytest.raises(SelfCheckError, match="does not compute what its checkpoint does"):
        load(copy)


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "cuda:1", "npu", "cuda:x"])
def test_a_device_that_does_not_run_is_an_error_and_never_the_cpu(
    export: Path, device: str
) -> None:
    import onnxruntime

    name = device.partition(":")[0]
    there = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}.get(name)
    if there in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {there}")
    with pytest.raises(ModelError, match="device"):
        load(export, device=device)


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_llava, tiny_idefics3], ids=["llava", "idefics3"])
def test_other_families_are_exported_too(build: object, tmp_path: Path) -> None:
    from projector.models.vlm import VLM
    from projector.serving.edge_export import export_edge

    vlm = VLM.load(build(tmp_path))  # type: ignore[operator]
    made = export_edge(vlm, tmp_path / "export")
    assert made == read_manifest(tmp_path / "export")
    assert made.parity.cache < 1e-4 and made.parity.same_tokens == made.parity.tokens
    assert made.kv_layout == vlm.layout


def test_a_gpu_that_cannot_be_used_is_told_by_log_and_metric(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_agent import assemble, settings
    from edge_agent.metrics import Metrics
    from projector.models.exported import sessions
    from protos.process import logs

    monkeypatch.setattr(sessions, "has_gpu", lambda: True)
    metrics = Metrics()
    log = logs.configure("info", "edge_agent")
    chosen = settings.load({"model": export, "memory_check": False})
    model = assemble.load_model(chosen, log, metrics)
    logs.drain()
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (fallback,) = [row for row in told if row["event"] == "device_fallback"]
    assert fallback["device"] == "cpu" and "has a GPU, but this onnxruntime" in fallback["cause"]
    assert model.running.fallback == fallback["cause"]
    value = metrics.registry.get_sample_value
    assert value("neural_bridge_edge_device_fallback") == 1
    assert value("neural_bridge_edge_model_device", {"device": "cpu"}) == 1
    assert set(model.running.nodes) == {"CPUExecutionProvider"}
