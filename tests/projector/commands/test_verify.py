"""`projector verify`: a bundle fits two live models and its graph is its weights, or says why."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from projector.bundle.describe import BundleInfo
from projector.bundle.write import write_bundle
from projector.models.vlm import VLM
from protos.errors import (
    BundleFormatError,
    BundleLayoutError,
    ConfigError,
)
from tests.projector.commands.conftest import Program


@pytest.mark.quick(1)
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_verify_passes_for_the_two_models_of_the_bundle(
    program: Program, bundle: Path, pair: list[object], backend: str
) -> None:
    code, out, err = program("verify", bundle, *pair, "--backend", backend, "--threads", "1")
    assert code == 0
    assert all(line.startswith("checked: ") for line in err.splitlines())
    assert out.startswith("tiny version 3 fits: ") and backend in out


def test_verify_json_names_what_was_verified(
    program: Program, written: tuple[Path, BundleInfo], pair: list[object]
) -> None:
    path, info = written
    code, out, _ = program("verify", path, *pair, "--json", "--threads", "1")
    assert code == 0
    shown = json.loads(out)
    assert shown["digest"] == info.digest
    assert shown["source"]["fingerprint"] == info.source.fingerprint
    assert shown["target"]["fingerprint"] == info.target.fingerprint


@pytest.mark.quick(1)
@pytest.mark.parametrize("side", ["source", "target"])
def test_verify_refuses_another_model_on_either_side(
    program: Program, bundle: Path, pair: list[object], vlms: dict[str, VLM], side: str
) -> None:
    code, out, err = program("verify", bundle, *pair, f"--{side}", vlms["llava-qwen2"].path)
    assert (code, out) == (BundleLayoutError.exit_code, "")
    assert f"expects the {side}" in err and "weights_digest" in err


def test_verify_refuses_another_number_format(
    program: Program, bundle: Path, pair: list[object]
) -> None:
    code, _, err = program("verify", bundle, *pair, "--target-dtype", "bfloat16")
    assert code == BundleLayoutError.exit_code
    assert "cache_dtype" in err


def test_verify_runs_the_graph_and_refuses_one_that_is_none(
    program: Program, bundle_parts: dict[str, Any], tmp_path: Path, pair: list[object]
) -> None:
    cloud = dataclasses.replace(bundle_parts["cloud"], graph=b"not a graph")
    write_bundle(tmp_path, **(bundle_parts | {"cloud": cloud}))
    code, _, err = program("verify", tmp_path, *pair)
    assert code == BundleFormatError.exit_code, err


def test_verify_refuses_a_graph_that_is_not_the_weights(
    program: Program, bundle_parts: dict[str, Any], tmp_path: Path, pair: list[object]
) -> None:
    weights = load(bundle_parts["cloud"].weights)
    header = bundle_parts["cloud"].weights
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    onward = next(name for name in weights if name.endswith("onward"))
    weights[onward] = 1.01 * weights[onward]
    cloud = dataclasses.replace(bundle_parts["cloud"], weights=save(weights, metadata=metadata))
    write_bundle(tmp_path, **(bundle_parts | {"cloud": cloud}))
    code, _, err = program("verify", tmp_path, *pair)
    assert code == BundleFormatError.exit_code and "not the same map" in err, err


@pytest.mark.slow
def test_verify_runs_a_bundle_between_two_grids(program: Program) -> None:
    reference = Path(__file__).parents[3] / "reference"
    pair = ("--source", reference / "models/edge-b", "--target", reference / "models/cloud")
    code, out, err = program("verify", reference / "bundles/edge-b-cloud", *pair, "--threads", "1")
    assert code == 0 and "fits" in out, err


def test_verify_says_which_model_is_not_given(
    program: Program, bundle: Path, pair: list[object]
) -> None:
    code, _, err = program("verify", bundle, *pair[:2])
    assert code == ConfigError.exit_code
    assert "no target model: give --target, NEURAL_BRIDGE_PROJECTOR_TARGET or 'target'" in err


def test_verify_names_the_nearest_backend(
    program: Program, bundle: Path, pair: list[object]
) -> None:
    code, _, err = program("verify", bundle, *pair, "--backend", "onnx-runtime")
    assert code == ConfigError.exit_code
    assert "did you mean 'onnxruntime'?" in err
