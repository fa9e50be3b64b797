"""Graphs become engines for named GPUs with none here; what a target cannot do is said first."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from projector.bundle.load import Bundle
from projector.serving import backends, tensorrt_build
from projector.serving.backends import CloudFiles
from projector.serving.export import export_fp8
from protos.errors import (
    BundleFormatError,
    ConfigError,
)
from protos.layout import KVLayout
from tests.fakes.tensorrt import FakeTensorRT, needs_rtx
from tests.projector.conftest import RANK, cloud_files, make_map

REFERENCE = Path(__file__).parents[3] / "reference/bundles/edge-a-cloud"
needs_gpu = pytest.mark.skipif(tensorrt_build.gpu_capability() is None, reason="no NVIDIA GPU")
needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None
    and (
        importlib.util.find_spec("tensorrt_rtx") is None
        or f"sm{tensorrt_build.gpu_capability()}" in tensorrt_build.IMPOSSIBLE
    ),
    reason="no TensorRT that compiles for this machine's GPU",
)
needs_no_gpu = pytest.mark.skipif(
    tensorrt_build.gpu_capability() is not None, reason="there is an NVIDIA GPU"
)


@pytest.fixture(scope="module", params=[0, 32], ids=["no mixing", "mixing"])
def files(request: pytest.FixtureRequest, source: KVLayout, target: KVLayout) -> CloudFiles:
    return cloud_files(make_map(source, target, mix_width=request.param))


@pytest.fixture(scope="module")
def graph(files: CloudFiles) -> bytes:
    return files.graph


@pytest.fixture(scope="module")
def fp8(graph: bytes) -> bytes:
    return export_fp8(graph)


@pytest.fixture
def shapes(target: KVLayout) -> tensorrt_build.Shapes:
    return tensorrt_build.cloud_shapes(target, RANK)


# ---------------------------------------------------------------------- compiling


@pytest.mark.quick(2)
@needs_rtx
@pytest.mark.parametrize("name", ["sm80", "sm86", "sm89", "sm120"])
def test_a_graph_compiles_for_a_gpu_that_is_not_here(
    graph: bytes, shapes: tensorrt_build.Shapes, name: str
) -> None:
    plan, report = tensorrt_build.build(graph, name, shapes)
    assert plan and report.engine_bytes == len(plan)
    assert report.engine_sha256 == hashlib.sha256(plan).hexdigest()
    assert report.graph_sha256 == hashlib.sha256(graph).hexdigest()
    assert (report.library, report.target, report.capability) == ("tensorrt_rtx", name, name)
    assert report.version.count(".") >= 2 and report.seconds > 0
    assert report.precision == "float32" and report.executed is False


@pytest.mark.quick(1)
@needs_rtx
@pytest.mark.parametrize("name", ["sm89", "sm120"])
def test_fp8_weights_compile_where_there_is_fp8(
    graph: bytes, fp8: bytes, shapes: tensorrt_build.Shapes, name: str
) -> None:
    plan, report = tensorrt_build.build(fp8, name, shapes)
    assert report.precision == "float32, weights FP8 E4M3"
    assert plan and report.graph_sha256 != hashlib.sha256(graph).hexdigest()


@pytest.mark.slow
@needs_rtx
@pytest.mark.skipif(not REFERENCE.exists(), reason="there is no reference bundle")
def test_the_reference_bundle_compiles_and_is_smaller_in_fp8() -> None:
    info = Bundle.peek(REFERENCE)
    graph = Bundle.load(REFERENCE, info.source, info.target).cloud.graph
    shapes = tensorrt_build.cloud_shapes(info.target, info.rank)
    sizes = [len(tensorrt_build.build(g, "sm89", shapes)[0]) for g in (graph, export_fp8(graph))]
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.quick(1)
@needs_rtx
def test_what_the_library_refuses_is_refused_with_its_reason(
    graph: bytes, shapes: tensorrt_build.Shapes
) -> None:
    with pytest.raises(BundleFormatError, match="cannot parse"):
        tensorrt_build.build(b"junk", "sm89", shapes)
    with pytest.raises(BundleFormatError, match="cannot compile the graph for sm89.*Error Code 4"):
        tensorrt_build.build(graph, "sm89", {**shapes, "kept": ((1, 5), (2, 5), (3, 5))})
    with pytest.raises(BundleFormatError, match="sm75.*FP32 GEMM is not supported"):
        tensorrt_build.build(graph, "sm75", shapes)
    assert tensorrt_build.build(graph, "sm86", shapes), "a refusal leaves nothing behind"


# ---------------------------------------------------------------------- refused beforehand


@pytest.mark.parametrize("name", ["sm75", "sm80", "sm86"])
def test_fp8_is_refused_before_compiling_where_there_is_none(
    fp8: bytes, shapes: tensorrt_build.Shapes, no_library: None, name: str
) -> None:
    with pytest.raises(BundleFormatError, match=f"FP8 .* '{name}' is {name}: build it without"):
        tensorrt_build.build(fp8, name, shapes)


@pytest.mark.parametrize(
    ("name", "reason"), [("sm87", "Jetson Orin.*JetPack"), ("sm90", "Hopper.*'native'")]
)
def test_a_gpu_that_the_library_does_not_know_is_refused_with_the_way_out(
    graph: bytes, shapes: tensorrt_build.Shapes, no_library: None, name: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        tensorrt_build.build(graph, name, shapes)


@pytest.mark.parametrize("name", ["", "SM89", "sm99", "cuda", "sm8"])
def test_an_unknown_target_is_refused_with_those_that_there_are(
    graph: bytes, shapes: tensorrt_build.Shapes, no_library: None, name: str
) -> None:
    with pytest.raises(ConfigError, match="sm75, sm80, sm86, sm89, sm120, native"):
        tensorrt_build.build(graph, name, shapes)


@needs_no_gpu
def test_native_without_a_gpu_is_refused(
    graph: bytes, shapes: tensorrt_build.Shapes, no_library: None
) -> None:
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        tensorrt_build.build(graph, "native", shapes)


def test_without_the_library_the_extra_is_named(
    graph: bytes, shapes: tensorrt_build.Shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="'tensorrt-rtx'"):
        tensorrt_build.build(graph, "sm89", shapes)
    with pytest.raises(ConfigError, match="'onnxruntime'"):
        tensorrt_build.load_library()


# ---------------------------------------------------------------------- native


def test_native_compiles_for_the_gpu_at_hand_even_one_that_cannot_be_named(
    graph: bytes, shapes: tensorrt_build.Shapes, at_hand: Callable[..., FakeTensorRT]
) -> None:
    fake = at_hand("tensorrt", 87)
    plan, report = tensorrt_build.build(graph, "native", shapes)
    assert plan == b"plan" and report.library == "tensorrt"
    assert (report.target, report.capability) == ("native", "sm87")
    assert not hasattr(fake.config, "num_compute_capabilities")
    assert fake.shapes == shapes


def test_native_refuses_fp8_on_a_gpu_without_it(
    fp8: bytes, shapes: tensorrt_build.Shapes, at_hand: Callable[..., FakeTensorRT]
) -> None:
    at_hand("tensorrt", 87)
    with pytest.raises(BundleFormatError, match="'native' is sm87"):
        tensorrt_build.build(fp8, "native", shapes)
    at_hand("tensorrt", 90)
    assert tensorrt_build.build(fp8, "native", shapes)[0] == b"plan"


def test_native_with_the_rtx_library_refuses_what_it_does_not_know(
    graph: bytes, shapes: tensorrt_build.Shapes, at_hand: Callable[..., FakeTensorRT]
) -> None:
    at_hand("tensorrt_rtx", 90)
    with pytest.raises(ConfigError, match="Hopper"):
        tensorrt_build.build(graph, "native", shapes)
    at_hand("tensorrt_rtx", 121)
    assert tensorrt_build.build(graph, "native", shapes)[1].capability == "sm121"


def test_native_gives_the_librarys_errors_and_only_those(
    graph: bytes, shapes: tensorrt_build.Shapes, at_hand: Callable[..., FakeTensorRT]
) -> None:
    at_hand("tensorrt", 89, plan=None)
    with pytest.raises(BundleFormatError, match="for native: no kernel image$"):
        tensorrt_build.build(graph, "native", shapes)


@needs_gpu
@needs_tensorrt
@pytest.mark.parametrize("weights", ["float32", "fp8"])
@pytest.mark.parametrize("batch", [1, 3, 16, 64])
def test_an_engine_runs_and_computes_what_torch_does(
    files: CloudFiles, fp8: bytes, target: KVLayout, weights: str, batch: int
) -> None:
    if weights == "fp8":
        if (tensorrt_build.gpu_capability() or 0) < tensorrt_build.FP8_CAPABILITY:
            pytest.skip("this GPU has no FP8")
        files = CloudFiles(weights=files.weights, graph=fp8)
    rng = np.random.default_rng(batch)
    latents = rng.standard_normal((batch, target.tokens, RANK)).astype(np.float32)
    kept = rng.random((batch, target.tokens)) > 0.3
    positions = np.arange(target.tokens)
    ours = backends.get("tensorrt")(files, target, RANK).project(latents, kept, positions)
    theirs = backends.get("torch")(files, target, RANK).project(latents, kept, positions)
    # Products run in TF32 (10 bits of mantissa); weights in FP8 have 3 bits.
    bound = 0.04 if weights == "fp8" else 5e-3
    for one, other in zip(ours, theirs, strict=True):
        assert np.linalg.norm(one - other) <= bound * np.linalg.norm(other)


def test_it_imports_no_tensor_library() -> None:
    names = ["torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx"]
    script = (
        "import projector.serving.tensorrt_build, projector.commands.build, sys; "
        f"print([m for m in {names} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
