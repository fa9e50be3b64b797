"""Graphs become engines for named GPUs with none here; what a target cannot do is said first."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from projector.bundle.describe import BundleInfo
from projector.bundle.keys import TrustedKeys
from projector.bundle.load import Bundle
from projector.commands import build, sign
from projector.serving import backends, tensorrt_build
from projector.serving.backends import CloudFiles
from projector.serving.export import export_fp8
from protos.errors import (
    BundleCorruptError,
    BundleFormatError,
    BundleMissingError,
    ConfigError,
    DiskFullError,
)
from protos.layout import KVLayout
from protos.process import settings as configuration
from tests.projector.conftest import RANK, cloud_files, make_map

REFERENCE = Path(__file__).parents[3] / "reference/bundles/edge-a-cloud"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
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


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(**_: Any) -> Any:
        raise AssertionError("the library was asked for what was to be refused before")

    monkeypatch.setattr(tensorrt_build, "load_library", load)


# ---------------------------------------------------------------------- compiling


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


@needs_rtx
@pytest.mark.parametrize("name", ["sm89", "sm120"])
def test_fp8_weights_compile_where_there_is_fp8(
    graph: bytes, fp8: bytes, shapes: tensorrt_build.Shapes, name: str
) -> None:
    plan, report = tensorrt_build.build(fp8, name, shapes)
    assert report.precision == "float32, weights FP8 E4M3"
    assert plan and report.graph_sha256 != hashlib.sha256(graph).hexdigest()


@needs_rtx
@pytest.mark.skipif(not REFERENCE.exists(), reason="there is no reference bundle")
def test_the_reference_bundle_compiles_and_is_smaller_in_fp8() -> None:
    info = Bundle.peek(REFERENCE)
    graph = Bundle.load(REFERENCE, info.source, info.target).cloud.graph
    shapes = tensorrt_build.cloud_shapes(info.target, info.rank)
    sizes = [len(tensorrt_build.build(g, "sm89", shapes)[0]) for g in (graph, export_fp8(graph))]
    assert sizes[1] < 0.7 * sizes[0]


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


class FakeTensorRT(SimpleNamespace):
    """Stands for a library on a machine with a GPU; keeps what it was asked for."""

    def __init__(self, name: str, plan: bytes | None = b"plan") -> None:
        class Logger:
            ERROR, INTERNAL_ERROR = "error", "internal"

        self.config = SimpleNamespace(add_optimization_profile=lambda profile: None)
        self.shapes: dict[str, Any] = {}
        profile = SimpleNamespace(
            set_shape=lambda name, *three: self.shapes.__setitem__(name, three)
        )

        def refuse(network: Any, config: Any) -> bytes | None:
            if plan is None:
                self.log.log("error", "no kernel image")
                self.log.log("warning", "not shown")
            return plan

        def builder(log: Any) -> Any:
            self.log = log
            return SimpleNamespace(
                create_network=lambda flags: "network",
                create_builder_config=lambda: self.config,
                create_optimization_profile=lambda: profile,
                build_serialized_network=refuse,
            )

        super().__init__(
            __name__=name,
            __version__="10.3.0",
            ILogger=Logger,
            Builder=builder,
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
            OnnxParser=lambda network, log: SimpleNamespace(parse=lambda graph: True),
        )

    def __hash__(self) -> int:
        return id(self)


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTensorRT]:
    def set_up(library: str, capability: int, **options: Any) -> FakeTensorRT:
        fake = FakeTensorRT(library, **options)
        monkeypatch.setattr(tensorrt_build, "load_library", lambda **_: fake)
        monkeypatch.setattr(tensorrt_build, "gpu_capability", lambda: capability)
        return fake

    return set_up


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


# ---------------------------------------------------------------------- the commands


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """What a command prints; its errors pass on, as `projector.commands.cli.main` expects."""
    monkeypatch.delenv("NEURAL_BRIDGE_PROJECTOR_BUNDLES", raising=False)

    def call(*arguments: object) -> str:
        parser = configuration.Parser(prog="projector")
        parser.set_defaults(config=None, check_config=False)
        commands = parser.add_subparsers()
        for command in (build, sign):
            command.register(commands)
        args: argparse.Namespace = parser.parse_args([str(argument) for argument in arguments])
        assert args.command(args) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def bundle(bundle_info: tuple[Path, BundleInfo], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_info[0], tmp_path / "bundles" / "tiny"))


@needs_rtx
def test_build_writes_the_engine_and_a_report(run: Run, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "engine"
    said = run("build", bundle, "--target", "sm86", "--out", out)
    assert said.startswith(f"{out / 'engine.plan'}: ") and "not executed" in said
    assert sorted(file.name for file in out.iterdir()) == ["build-report.json", "engine.plan"]
    report = json.loads((out / "build-report.json").read_text())
    info = Bundle.peek(bundle)
    assert report["digest"] == info.digest and report["build"]["target"] == "sm86"
    assert report["build"]["graph_sha256"] == info.files["cloud.onnx"][1]
    plan = (out / "engine.plan").read_bytes()
    assert report["build"]["engine_sha256"] == hashlib.sha256(plan).hexdigest()
    assert report["build"]["executed"] is False and "fp8_parity" not in report


@needs_rtx
def test_build_with_fp8_reports_how_far_the_graph_is_from_float32(
    run: Run, bundle: Path, tmp_path: Path
) -> None:
    given = ("build", "tiny", "--bundles", bundle.parent, "--target", "sm89", "--fp8")
    shown = json.loads(run(*given, "--out", tmp_path / "engine", "--json"))
    assert shown == json.loads((tmp_path / "engine" / "build-report.json").read_text())
    assert 0 < shown["fp8_parity"]["relative_l2"] < 0.04
    assert "relative L2 error 0.0" in run(*given, "--out", tmp_path / "engine")


def test_build_refuses_before_it_writes(
    run: Run, bundle: Path, tmp_path: Path, no_library: None
) -> None:
    out = tmp_path / "engine"
    with pytest.raises(BundleFormatError, match="FP8"):
        run("build", bundle, "--target", "sm86", "--fp8", "--out", out)
    with pytest.raises(ConfigError, match="Hopper"):
        run("build", bundle, "--target", "sm90", "--out", out)
    with pytest.raises(BundleMissingError):
        run("build", tmp_path / "none", "--target", "sm89", "--out", out)
    with pytest.raises(ConfigError, match="--target"):
        run("build", bundle, "--out", out)
    (bundle / "cloud.onnx").write_bytes(b"")
    with pytest.raises(BundleCorruptError):
        run("build", bundle, "--target", "sm89", "--out", out)
    assert not out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_build_with_no_room_leaves_no_engine(
    run: Run, bundle: Path, tmp_path: Path, at_hand: Callable[..., FakeTensorRT]
) -> None:
    at_hand("tensorrt", 89)
    (tmp_path / "engine.plan.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        run("build", bundle, "--target", "native", "--out", tmp_path)
    assert not list(tmp_path.glob("engine*")) and not list(tmp_path.glob("build*"))
    run("build", bundle, "--target", "native", "--out", tmp_path)
    assert (tmp_path / "engine.plan").read_bytes() == b"plan"


def test_sign_makes_a_key_once_and_signs(
    run: Run, bundle: Path, tmp_path: Path, source: KVLayout, target: KVLayout
) -> None:
    key = tmp_path / "key.pem"
    with pytest.raises(ConfigError, match="cannot read"):
        run("sign", bundle, "--key", key)
    said = run("sign", bundle, "--key", key, "--create")
    assert said.startswith("tiny version 3 is signed; ") and '"NAME" = "' in said
    shown = json.loads(run("sign", bundle, "--key", key, "--json"))
    trusted = tmp_path / "trusted.toml"
    trusted.write_text(f'[keys]\n"build" = "{shown["key"]}"\n')
    loaded = Bundle.load(bundle, source, target, trusted=TrustedKeys.load(trusted))
    assert loaded.signer == "build" and loaded.digest == shown["digest"]
    with pytest.raises(ConfigError, match="File exists"):
        run("sign", bundle, "--key", key, "--create")


def test_sign_refuses_a_damaged_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    (bundle / "certificate.json").write_text("{}")
    with pytest.raises(BundleCorruptError):
        run("sign", bundle, "--key", tmp_path / "key.pem", "--create")
    assert not (bundle / "signature.json").exists()
    with pytest.raises(BundleMissingError):
        run("sign", tmp_path, "--key", tmp_path / "other.pem", "--create")
    assert not (tmp_path / "other.pem").exists()


@pytest.mark.parametrize("given", [["build", "--target", "sm86", "--out", "x"], ["sign", "--key"]])
def test_check_config_changes_nothing(
    run: Run, bundle: Path, tmp_path: Path, given: list[str], no_library: None
) -> None:
    name, *rest = [*given, "k"] if given[0] == "sign" else given
    shown = json.loads(run(name, bundle, *rest, "--check-config"))
    assert shown["bundles"] is None
    assert not (bundle / "signature.json").exists() and not Path("x").exists()
    with pytest.raises(BundleMissingError):
        run(name, tmp_path / "none", *rest, "--check-config")
