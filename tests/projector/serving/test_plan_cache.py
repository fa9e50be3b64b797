"""Plans are code: one is used for exactly what it was compiled for, from a folder of our own."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from projector.bundle.load import Bundle
from projector.serving import tensorrt_build
from projector.serving.plan_cache import PlanCache, PlanKey
from protos.errors import ConfigError
from tests.checkout import ROOT

KEY = PlanKey("b" * 64, "g" * 64, "L4 sm89", "13020", "tensorrt 10.3.0", "latents")
PLAN = b"a plan" * 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "plans"


def test_a_plan_is_compiled_once_for_a_key(folder: Path) -> None:
    compiled: list[int] = []

    def compile() -> bytes:
        compiled.append(1)
        return PLAN

    assert PlanCache(folder).plan(KEY, compile) == (PLAN, False)
    assert PlanCache(folder).plan(KEY, compile) == (PLAN, True)
    assert len(compiled) == 1
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o077 == 0 and folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", [entry.name for entry in fields(PlanKey)])
def test_another_value_of_any_field_is_another_plan(folder: Path, name: str) -> None:
    cache, other = PlanCache(folder), replace(KEY, **{name: "another"})
    cache.put(KEY, PLAN)
    assert cache.get(other) is None
    os.rename(folder / KEY.name, folder / other.name)
    assert cache.get(other) is None, "the key inside the file is another's"


@pytest.mark.parametrize("at", [0, 9, 40, -1])
def test_a_damaged_or_cut_file_is_no_plan(folder: Path, at: int) -> None:
    cache = PlanCache(folder)
    cache.put(KEY, PLAN)
    file = folder / KEY.name
    blob = bytearray(file.read_bytes())
    blob[at] ^= 1
    file.write_bytes(blob)
    assert cache.get(KEY) is None
    file.write_bytes(bytes(blob[:at]) if at > 0 else b"")
    assert cache.get(KEY) is None
    assert cache.plan(KEY, lambda: PLAN) == (PLAN, False)
    assert cache.get(KEY) == PLAN


def test_a_folder_or_file_that_others_may_reach_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(mode=0o755)
    os.chmod(folder, 0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        PlanCache(folder)
    os.chmod(folder, 0o700)
    cache = PlanCache(folder)
    cache.put(KEY, PLAN)
    os.rename(folder / KEY.name, tmp_path / "elsewhere")
    (folder / KEY.name).symlink_to(tmp_path / "elsewhere")
    assert cache.get(KEY) is None


@pytest.mark.skipif(tensorrt_build.gpu_capability() is None, reason="no NVIDIA GPU in this machine")
def test_on_a_gpu_a_plan_from_the_cache_projects_as_onnxruntime_does(folder: Path) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    path = ROOT / "reference" / "bundles" / "edge-a-cloud"
    info = Bundle.peek(path)
    bundle = Bundle.load(path, info.source, info.target)
    first, second = (bundle.backend("tensorrt", device="cuda", plans=folder) for _ in range(2))
    assert [getattr(one, "from_cache") for one in (first, second)] == [False, True]  # noqa: B009
    drawn = np.random.default_rng(0).standard_normal((4, info.source.tokens, info.rank))
    seen = (
        drawn.astype(np.float32),
        np.ones((4, info.source.tokens), dtype=np.bool_),
        np.arange(info.target.tokens, dtype=np.int64),
    )
    for ours, theirs in zip(
        second.project(*seen), bundle.backend("onnxruntime").project(*seen), strict=True
    ):
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-3
