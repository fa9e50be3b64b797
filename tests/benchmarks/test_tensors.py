"""Coders of raw caches: the error that is compared, our transform, TurboQuant's arithmetic."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.rate.tensors import QUERIES, Caches, Transform, compare, ours
from benchmarks.rate.turboquant import TurboQuant, codebook
from projector.models.vlm import VLM
from protos.errors import UnsupportedModelError
from protos.state import KVState
from tests.fakes.fake_edge import LAYOUT
from tests.fakes.tiny_models import picture as drawn
from tests.fakes.tiny_models import tiny_idefics3


def caches(pictures: int, flat: np.ndarray) -> Caches:
    states = [KVState.from_flat(x, LAYOUT, np.arange(LAYOUT.tokens)) for x in flat]
    shape = (LAYOUT.layers, LAYOUT.kv_heads, LAYOUT.head_dim)
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((LAYOUT.layers, pictures, 2 * LAYOUT.kv_heads, 3, shape[2]))
    return Caches(states, torch.from_numpy(queries).float(), LAYOUT.rope, shape)


def correlated(count: int, seed: int) -> np.ndarray:
    """States whose numbers are mixtures of four."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((count, LAYOUT.tokens, 4))
    mixed = few @ np.random.default_rng(9).standard_normal((4, LAYOUT.state_dim))
    return (mixed + 0.01 * rng.standard_normal(mixed.shape)).astype(np.float32)


def test_tensors_keep_every_number_in_its_place() -> None:
    flat = correlated(2, 0)
    made = caches(2, flat)
    np.testing.assert_array_equal(made.flat(), flat)
    dense = made.dense(flat)
    for picture, state in enumerate(made.states):
        np.testing.assert_array_equal(dense[picture, :, 0].transpose(0, 2, 1, 3), state.keys)
        np.testing.assert_array_equal(dense[picture, :, 1].transpose(0, 2, 1, 3), state.values)


def test_the_error_is_that_of_the_attention_output() -> None:
    """Values twice as long put the output at twice its length; a key's shift changes nothing."""
    made = caches(2, correlated(2, 0))
    dense = made.dense(made.flat())
    assert made.error(dense) == 0
    double = dense.copy()
    double[:, :, 1] *= 2
    assert made.error(double) == pytest.approx(1, abs=1e-5)
    query = made.queries[0, 0, 1, 2].double().numpy()
    scores = np.array([query @ key for key in _rotated(dense[0, 0, 0, :, 0], made)])
    weight = np.exp(scores / LAYOUT.head_dim**0.5)
    output = weight / weight.sum() @ dense[0, 0, 1, :, 0]
    np.testing.assert_allclose(made.attended(dense)[0, 0, 1, 2].numpy(), output, atol=1e-4)


def _rotated(keys: np.ndarray, made: Caches) -> np.ndarray:
    cos, sin = LAYOUT.rope.cos_sin(made.states[0].positions)
    half, width = LAYOUT.rope.rotary_dim // 2, LAYOUT.rope.rotary_dim
    a, b = keys[:, :half], keys[:, half:width]
    turned = keys[:, :width] * cos + np.concatenate([-b, a], axis=1) * sin
    return np.concatenate([turned, keys[:, width:]], axis=1)


def test_the_transform_decorrelates_and_goes_back() -> None:
    flat = correlated(40, 0).reshape(-1, LAYOUT.state_dim)
    made = Transform.fit(flat, 2 * LAYOUT.layers)
    latents = (flat - made.mean) @ made.forward
    np.testing.assert_allclose(latents @ made.back + made.mean, flat, atol=1e-3)
    covariance = np.cov(latents.T)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 1e-3 * covariance.max()
    assert np.diag(covariance)[4:].max() < 1e-2 * covariance[0, 0]


def test_a_coarser_step_is_smaller_and_errs_more_and_correlated_states_cost_little() -> None:
    rows = ours(caches(3, correlated(3, 5)), correlated(60, 0), 1)
    ladder = [r for r in rows if r["name"].startswith("transform")]
    assert all(a["bytes"] >= b["bytes"] for a, b in zip(ladder, ladder[1:], strict=False))
    assert ladder[0]["error"] < ladder[-1]["error"]
    int8 = next(r for r in rows if r["name"] == "int8")
    assert int8["bytes"] == LAYOUT.tokens * LAYOUT.state_dim
    assert ladder[0]["bytes"] < int8["bytes"] / 2


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3634), (3, 0.03454), (4, 0.009497)])
def test_levels_lose_what_max_found_for_normal_numbers(bits: int, distortion: float) -> None:
    """Max, "Quantizing for minimum distortion", 1960, table I."""
    x = np.random.default_rng(0).standard_normal(400_000)
    levels = codebook(bits)
    nearest = levels[np.abs(x[:, None] - levels).argmin(axis=1)]
    assert np.mean((x - nearest) ** 2) == pytest.approx(distortion, rel=0.02)


def test_a_rotation_makes_an_outlier_harmless() -> None:
    x = np.zeros((50, 64), dtype=np.float32)
    x[np.arange(50), np.arange(50)] = 100
    made = TurboQuant(4, 64)
    error = np.linalg.norm(made.apply(x) - x) / np.linalg.norm(x)
    assert error < 0.13
    assert made.bytes_of(50) == 50 * (32 + 2)
    assert not made.apply(np.zeros((2, 64), np.float32)).any()


def row(kind: str, name: str, size: float, error: float) -> dict[str, Any]:
    return {"kind": kind, "name": name, "bytes": size, "error": error, "encode_s": 1, "decode_s": 1}


def test_ours_is_the_smallest_that_errs_no_more() -> None:
    theirs = {**row("rival", "cachegen", 900, 0.05), "bytes_as_sent": 3000, "encode_s": 4}
    rows = [
        row("ours", "a", 600, 0.02),
        row("ours", "b", 300, 0.05),
        row("ours", "c", 100, 0.06),
        row("rival", "turboquant", 10, 0.01),
        theirs,
    ]
    found = compare(rows)
    assert found is not None
    assert (found["ours"], found["bytes_ratio"], found["bytes_ratio_as_sent"]) == ("b", 3, 10)
    assert (found["encode_speed_ratio"], found["decode_speed_ratio"]) == (4, 1)
    assert compare(rows[:4]) is None and compare([rows[2], theirs]) is None


def test_a_decoder_of_another_kind_is_refused() -> None:
    layout = SimpleNamespace(layers=2, model_id="x")
    decoder = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="no q_proj"):
        Caches.of(SimpleNamespace(decoder=decoder, layout=layout), [], [])  # type: ignore[arg-type]


def test_questions_of_different_length_give_as_many_queries_each(tmp_path: Path) -> None:
    """The last tokens of each, as many as the shortest question has."""
    vlm = VLM.load(tiny_idefics3(tmp_path))
    asked = ["is there a fire ?", "fire ?"]
    made = Caches.of(vlm, [drawn(0), drawn(1)], asked)
    least = min(len(vlm.question_ids(text)) for text in asked)
    assert len({len(vlm.question_ids(text)) for text in asked}) == 2
    assert made.queries.shape[1] == 2 and made.queries.shape[3] == min(QUERIES, least)
    alone = Caches.of(vlm, [drawn(0)], asked[:1])
    whole = alone.queries[:, 0, :, -made.queries.shape[3] :]
    torch.testing.assert_close(made.queries[:, 0], whole)
