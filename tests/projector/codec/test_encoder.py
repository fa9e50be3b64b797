"""The edge half: what it sends is what the cloud decodes, and nothing else is believed."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from projector.codec import coders
from projector.codec.encoder import Encoder
from projector.models.vlm import VLM
from protos.errors import (
    BridgeError,
    BundleFormatError,
    ConfigError,
    FrameMalformedError,
    FrameTruncatedError,
    IncompatibleLayoutError,
    NonFiniteError,
)
from protos.layout import KVLayout
from protos.points import PICTURE, RAW_KV_FP8, OperatingPoint
from protos.state import KVState
from tests.fakes.tiny_models import picture
from tests.projector.conftest import POINTS, RANK, make_encoder

CODED = [point for point in POINTS if point.kind != "picture"]


@pytest.fixture(scope="module")
def state(vlms: dict[str, VLM]) -> KVState:
    vlm = vlms["idefics3"]
    return vlm.states(vlm.prefill([picture(1)]))[0]


@pytest.mark.parametrize("point", CODED, ids=lambda p: p.name)
def test_what_is_sent_is_decoded_within_the_quantizers_error(
    encoder: Encoder, state: KVState, point: OperatingPoint
) -> None:
    coded = encoder.encode(state, point)
    received = Encoder.from_bytes(encoder.to_bytes()).decode(coded.payload, coded.kept, point)
    assert received.shape == coded.z.shape == (coded.kept.sum(), RANK)
    x = (state.flat().astype(np.float64) - encoder.x_mean) / encoder.x_scale
    truth = (x @ encoder.projection.astype(np.float64))[coded.kept]
    error = np.linalg.norm(truth - received) / np.linalg.norm(truth)
    assert error == pytest.approx(coded.distortion.quantize, abs=2e-5)
    assert error < {"coarse": 0.5, "fine": 0.05, "int8": 0.6, "exact": 1e-5}.get(point.name, 0.3)


def test_budget_selector_and_dropped_attention_agree(encoder: Encoder, state: KVState) -> None:
    coded = encoder.encode(state, encoder.point(0))
    assert coded.kept.sum() == 8
    assert coded.distortion.dropped_attention == pytest.approx(
        float(state.attention[~coded.kept].sum()), abs=1e-6
    )
    assert encoder.encode(state, encoder.point(1)).distortion.dropped_attention == 0


def test_a_mask_of_the_callers_choice_is_used(encoder: Encoder, state: KVState) -> None:
    kept = np.zeros(state.tokens, dtype=np.bool_)
    kept[[2, 11]] = True
    coded = encoder.encode(state, encoder.point(3), kept=kept)
    assert (coded.kept == kept).all() and len(coded.payload) == 2 * RANK * 4
    grid = encoder.scatter(coded.z, kept)
    assert (grid[kept] == coded.z).all() and not grid[~kept].any()


def test_latent_residual_is_what_the_reconstruction_misses(
    encoder: Encoder, state: KVState
) -> None:
    x = encoder.normalise(state.flat()).astype(np.float64)
    again = x @ encoder.projection.astype(np.float64) @ encoder.reconstruction.astype(np.float64)
    outside = np.linalg.norm(x - again) / np.linalg.norm(x)
    got = encoder.encode(state, encoder.point(1)).distortion.latent_residual
    assert got == pytest.approx(outside, abs=1e-6)


def test_a_picture_unlike_the_calibration_is_unfamiliar(encoder: Encoder, state: KVState) -> None:
    strange = KVState(
        state.keys * 20, state.values * 20, state.positions, state.grid, state.attention
    )
    near, far = (
        encoder.encode(s, encoder.point(3)).distortion.unfamiliarity for s in (state, strange)
    )
    assert far > 5 * near


def test_raw_states_travel_without_latents(encoder: Encoder, state: KVState) -> None:
    coded = encoder.encode(state, RAW_KV_FP8)
    assert len(coded.payload) == state.tokens * encoder.state_dim
    assert coded.distortion.latent_residual == 0


def test_equal_encoders_give_equal_bytes_and_digests(encoder: Encoder, source: KVLayout) -> None:
    again = make_encoder(source)
    assert again.to_bytes() == encoder.to_bytes() and again.digest == encoder.digest
    back = Encoder.from_bytes(encoder.to_bytes())
    assert back.to_bytes() == encoder.to_bytes() and back.points == encoder.points
    assert make_encoder(source, selector="kv_norm").digest != encoder.digest


def test_another_models_state_is_refused(encoder: Encoder, vlms: dict[str, VLM]) -> None:
    x = KVState(*[np.zeros((1, 1, 4, 2), np.float32)] * 2, np.arange(4), (2, 2), np.ones(4) / 4)
    with pytest.raises(IncompatibleLayoutError, match="d_s"):
        encoder.encode(x, encoder.point(1))


def test_a_point_of_fewer_latents_sends_the_first_and_reads_the_others_as_the_places_own(
    source: KVLayout, state: KVState
) -> None:
    points = (replace(POINTS[0], rank=3, tokens=0), replace(POINTS[3], rank=5))
    narrow = make_encoder(source, points=points)
    for point in points:
        coded = narrow.encode(state, point)
        again = Encoder.from_bytes(narrow.to_bytes()).decode(coded.payload, coded.kept, point)
        np.testing.assert_array_equal(again[:, point.rank :], narrow.centre[:, point.rank :])
        error = np.abs(again - coded.z)[:, : point.rank].max()
        assert error <= {0: 0.25 + 1e-4, 3: 1e-5}[point.index]
    assert len(coded.payload) == 4 * 5 * state.tokens
    assert coded.distortion.quantize == pytest.approx(
        float(np.linalg.norm(again - coded.z) / np.linalg.norm(coded.z)), abs=1e-5
    )


def test_a_dead_zone_moves_the_thresholds_and_nothing_else(
    source: KVLayout, state: KVState
) -> None:
    points = (replace(POINTS[0], tokens=0), replace(POINTS[0], index=9, name="dead", tokens=0))
    points = (points[0], replace(points[1], dead_zone=0.25))
    both = make_encoder(source, points=points)
    plain, dead = (both.encode(state, point) for point in points)
    moved = (plain.z - both.centre).astype(np.float64) / both.steps["coarse"]
    want = np.sign(moved) * np.floor(np.maximum(np.abs(moved) + 0.25, 0))
    got = (both.decode(dead.payload, dead.kept, points[1]) - both.centre) / both.steps["coarse"]
    np.testing.assert_allclose(got, want, atol=1e-3)
    assert len(dead.payload) < len(plain.payload)
    assert dead.distortion.quantize > plain.distortion.quantize


def test_quiet_tokens_are_read_as_the_usual_ones_at_their_places_and_the_others_as_before(
    source: KVLayout, state: KVState
) -> None:
    plain = replace(POINTS[0], tokens=0)
    moved = (make_encoder(source).project(state.flat()) - make_encoder(source).centre) / 0.5
    energy = (moved.astype(np.float64) ** 2).sum(axis=1)
    limit = float(np.median(energy))
    quiet = replace(plain, index=9, name="quiet", quiet=limit)
    both = make_encoder(source, points=(plain, quiet))
    every, some = both.encode(state, plain), both.encode(state, quiet)
    assert some.kept.all() and len(some.payload) < len(every.payload)
    got = both.decode(some.payload, some.kept, quiet)
    silent = energy < limit
    assert 0 < silent.sum() < state.tokens
    np.testing.assert_array_equal(got[silent], both.centre[silent])
    np.testing.assert_array_equal(
        got[~silent], both.decode(every.payload, every.kept, plain)[~silent]
    )
    error = np.linalg.norm(got - some.z) / np.linalg.norm(some.z)
    assert some.distortion.quantize == pytest.approx(error, abs=2e-5)


def test_task_weights_travel_with_the_encoder_and_make_the_selector(
    source: KVLayout, state: KVState, encoder: Encoder
) -> None:
    weights = np.linspace(0, 1, RANK).astype(np.float32)
    aware = make_encoder(source, task_weights=weights, selector="task_aware")
    back = Encoder.from_bytes(aware.to_bytes())
    lost = (aware.project(state.flat()) - aware.centre) ** 2 @ weights
    kept = back.encode(state, back.point(0)).kept
    assert set(np.flatnonzero(kept)) == set(np.argsort(-lost)[:8])
    assert encoder.selecting("random").name == "random"
    with pytest.raises(ConfigError, match="calibrate"):
        encoder.selecting("task_aware")


def test_a_state_with_nan_never_leaves_the_edge(encoder: Encoder, state: KVState) -> None:
    keys = state.keys.copy()
    keys[0, 0, 3, 1] = np.nan
    broken = KVState(keys, state.values, state.positions, state.grid, state.attention)
    for point in CODED:
        with pytest.raises(NonFiniteError):
            encoder.encode(broken, point)


def test_points_without_latents_are_refused(encoder: Encoder, state: KVState) -> None:
    with pytest.raises(ConfigError):
        encoder.encode(state, PICTURE)
    with pytest.raises(FrameMalformedError):
        encoder.decode(b"x", np.ones(16, dtype=np.bool_), PICTURE)
    with pytest.raises(FrameMalformedError, match="unknown"):
        encoder.point(77)
    with pytest.raises(ConfigError):
        encoder.encode(state, encoder.point(1), kept=np.zeros(state.tokens, dtype=np.bool_))


def test_a_short_payload_is_refused(encoder: Encoder, state: KVState) -> None:
    coded = encoder.encode(state, encoder.point(1))
    with pytest.raises(FrameTruncatedError):
        encoder.decode(coded.payload[:-1], coded.kept, encoder.point(1))


@pytest.mark.parametrize(
    "over",
    [
        {"x_mean": np.zeros(3, np.float32)},
        {"x_scale": np.zeros(192, np.float32)},
        {"centre": np.zeros((16, RANK + 1), np.float32)},
        {"centre": np.zeros((0, RANK), np.float32)},
        {"centre": np.zeros(RANK, np.float32)},
        {"latent_mean": np.full(RANK, np.nan, np.float32)},
        {"projection": np.zeros((192, RANK), np.float64)},
        {"projection": np.zeros(192, np.float32)},
        {"steps": {}},
        {"steps": {"fine": np.zeros(RANK, np.float32), "coarse": np.ones(RANK, np.float32)}},
        {"entropy": {}},
        {"selector": "nosuch"},
        {"selector": "task_aware"},
        {"task_weights": np.full(RANK, -1, np.float32)},
        {"task_weights": np.ones(RANK + 1, np.float32)},
        {"points": (replace(POINTS[1], dead_zone=0.2),)},
        {"points": (replace(POINTS[3], quiet=2.0),)},
        {"points": (OperatingPoint(0, "p", quantizer="fp9", rank=RANK, steps="fine"),)},
        {"points": (OperatingPoint(0, "p", quantizer="int8", rank=RANK + 1, steps="fine"),)},
    ],
    ids=lambda over: next(iter(over)),
)
def test_parts_that_contradict_each_other_are_refused(
    source: KVLayout, over: dict[str, Any]
) -> None:
    assert source.state_dim == 192
    with pytest.raises(BundleFormatError):
        make_encoder(source, **over)


def test_a_blob_that_is_not_exactly_an_encoder_is_refused(encoder: Encoder) -> None:
    blob = encoder.to_bytes()
    length = int.from_bytes(blob[:8], "little")
    header, body = json.loads(blob[8 : 8 + length]), blob[8 + length :]

    def rebuilt(change: Any) -> bytes:
        changed = json.loads(json.dumps(header))
        change(changed)
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + body

    def metadata(**over: Any) -> Any:
        def change(changed: dict[str, Any]) -> None:
            (key,) = changed["__metadata__"]
            plain = json.loads(changed["__metadata__"][key])
            changed["__metadata__"][key] = json.dumps({**plain, **over})

        return change

    wrong = [
        b"",
        b"short",
        blob[:-1],
        blob + b"\0",
        struct.pack("<Q", 1 << 60) + blob[8:],
        rebuilt(lambda h: h.pop("x_mean")),
        rebuilt(lambda h: h.pop("__metadata__")),
        rebuilt(lambda h: h.update(surprise=h.pop("raw_scale"))),
        rebuilt(metadata(format=1)),
        rebuilt(metadata(extra=1)),
        rebuilt(metadata(operating_points=[{}])),
        rebuilt(metadata(operating_points="no")),
    ]
    for bad in wrong:
        with pytest.raises(BundleFormatError):
            Encoder.from_bytes(bad)
    assert Encoder.from_bytes(rebuilt(lambda h: None)).digest == encoder.digest


def test_no_flipped_bit_of_a_payload_crashes_the_decoder(encoder: Encoder, state: KVState) -> None:
    rng = np.random.default_rng(5)
    for point in CODED:
        coded = encoder.encode(state, point)
        for _ in range(60):
            broken = bytearray(coded.payload)
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
            try:
                z = encoder.decode(bytes(broken), coded.kept, point)
            except BridgeError:
                continue
            assert z.shape == coded.z.shape and np.isfinite(z).all()


def test_the_edge_half_runs_without_torch() -> None:
    code = (
        "import sys, projector.codec.encoder, projector.codec.select, projector.bundle.load; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'onnxruntime')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_points_of_one_table_share_its_coder_and_all_coders_have_a_limit(
    source: KVLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_encoder(source)
    coded = next(point for point in one.points if point.quantizer == "uniform")
    many = tuple(replace(coded, index=index, name=f"p{index}") for index in range(60))
    shared = replace(one, points=many)
    assert len({id(shared.quantizer(point)) for point in many}) == 1
    size = one.entropy[coded.steps].frequency.size
    monkeypatch.setattr(coders, "_MOST_CODED", size)
    replace(one, points=many)
    narrow = tuple(replace(p, rank=1 + p.index % 2) for p in many)
    monkeypatch.setattr(coders, "_MOST_CODED", size // one.rank * 2)
    with pytest.raises(BundleFormatError, match="frequencies in all"):
        replace(one, points=narrow)
