"""`projector build`: an engine and its report, or a refusal that leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from projector.bundle.load import Bundle
from protos.errors import (
    BundleCorruptError,
    BundleFormatError,
    BundleMissingError,
    ConfigError,
    DiskFullError,
)
from tests.fakes.tensorrt import FakeTensorRT, needs_rtx
from tests.projector.commands.conftest import Printed


@needs_rtx
def test_build_writes_the_engine_and_a_report(printed: Printed, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "engine"
    said = printed("build", tiny, "--target", "sm86", "--out", out)
    assert said.startswith(f"{out / 'engine.plan'}: ") and "not executed" in said
    assert sorted(file.name for file in out.iterdir()) == ["build-report.json", "engine.plan"]
    report = json.loads((out / "build-report.json").read_text())
    info = Bundle.peek(tiny)
    assert report["digest"] == info.digest and report["build"]["target"] == "sm86"
    assert report["build"]["graph_sha256"] == info.files["cloud.onnx"][1]
    plan = (out / "engine.plan").read_bytes()
    assert report["build"]["engine_sha256"] == hashlib.sha256(plan).hexdigest()
    assert report["build"]["executed"] is False and "fp8_parity" not in report


@pytest.mark.slow
@needs_rtx
def test_build_with_fp8_reports_how_far_the_graph_is_from_float32(
    printed: Printed, tiny: Path, tmp_path: Path
) -> None:
    given = ("build", "tiny", "--bundles", tiny.parent, "--target", "sm89", "--fp8")
    shown = json.loads(printed(*given, "--out", tmp_path / "engine", "--json"))
    assert shown == json.loads((tmp_path / "engine" / "build-report.json").read_text())
    assert 0 < shown["fp8_parity"]["relative_l2"] < 0.04
    assert "relative L2 error 0.0" in printed(*given, "--out", tmp_path / "engine")


def test_build_refuses_before_it_writes(
    printed: Printed, tiny: Path, tmp_path: Path, no_library: None
) -> None:
    out = tmp_path / "engine"
    with pytest.raises(BundleFormatError, match="FP8"):
        printed("build", tiny, "--target", "sm86", "--fp8", "--out", out)
    with pytest.raises(ConfigError, match="Hopper"):
        printed("build", tiny, "--target", "sm90", "--out", out)
    with pytest.raises(BundleMissingError):
        printed("build", tmp_path / "none", "--target", "sm89", "--out", out)
    with pytest.raises(ConfigError, match="--target"):
        printed("build", tiny, "--out", out)
    (tiny / "cloud.onnx").write_bytes(b"")
    with pytest.raises(BundleCorruptError):
        printed("build", tiny, "--target", "sm89", "--out", out)
    assert not out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_build_with_no_room_leaves_no_engine(
    printed: Printed, tiny: Path, tmp_path: Path, at_hand: Callable[..., FakeTensorRT]
) -> None:
    at_hand("tensorrt", 89)
    (tmp_path / "engine.plan.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        printed("build", tiny, "--target", "native", "--out", tmp_path)
    assert not list(tmp_path.glob("engine*")) and not list(tmp_path.glob("build*"))
    printed("build", tiny, "--target", "native", "--out", tmp_path)
    assert (tmp_path / "engine.plan").read_bytes() == b"plan"


@pytest.mark.parametrize("given", [["build", "--target", "sm86", "--out", "x"], ["sign", "--key"]])
def test_check_config_changes_nothing(
    printed: Printed, tiny: Path, tmp_path: Path, given: list[str], no_library: None
) -> None:
    name, *rest = [*given, "k"] if given[0] == "sign" else given
    shown = json.loads(printed(name, tiny, *rest, "--check-config"))
    assert shown["bundles"] is None
    assert not (tiny / "signature.json").exists() and not Path("x").exists()
    with pytest.raises(BundleMissingError):
        printed(name, tmp_path / "none", *rest, "--check-config")
