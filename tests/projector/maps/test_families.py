"""Every family keeps one contract; each member computes what it is named after."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save

from projector.maps import FAMILIES, Family, Map, ServedMap, family, load
from projector.maps.base import METADATA
from projector.maps.baselines import Autoencoder, Interpolate, Truncate, ZeroPad
from projector.maps.bidirectional import Bidirectional, BidirectionalMap
from projector.maps.factors import Factors
from projector.maps.linear import Linear
from projector.maps.low_rank import LowRank, LowRankMatrix
from projector.maps.mix import Mix
from projector.maps.mlp import MLP
from projector.maps.moments import Moments
from projector.maps.procrustes import Procrustes, orthogonality, polar
from projector.maps.ridge import Ridge
from projector.maps.rounding import Way
from projector.maps.shared import Shared
from projector.serving.export import compare, export, probe
from protos.errors import BundleFormatError, BundleLayoutError, FitError
from protos.layout import KVLayout
from tests.projector.maps.test_moments import layout, pairs

MEMBERS: list[Family] = [
    Linear(),
    MLP(hidden=24),
    LowRank(r=6),
    LowRank(r=6, start="covariance"),
    Ridge(),
    Ridge(layers="best", best_layers=1),
    Ridge(layers="last", best_layers=1),
    Procrustes(),
    Procrustes(softness=0.5),
    Shared(),
    Bidirectional(),
    Mix(inner="low_rank", config={"r": 6}, width=16, heads=2),
    Mix(inner="ridge", width=16, heads=2),
    Factors(r=6),
    Factors(r=6, travels=4),
    Mix("factors", {"r": 6, "travels": 4}, width=16, depth=2, heads=2, order="target"),
    Truncate(),
    ZeroPad(),
    Interpolate(),
    Autoencoder(),
]
LAYOUTS = [
    (layout(layers=2, kv_heads=1, head_dim=8, grid=(3, 3)), layout(3, 2, 8, (3, 3), theta=5e5)),
    (layout(layers=3, kv_heads=2, head_dim=4, grid=(2, 2)), layout(2, 2, 16, (3, 4), theta=5e5)),
]
LINEAR = (
    *(LowRank, Factors, Ridge, Procrustes, Shared, Bidirectional),
    *(Truncate, ZeroPad, Interpolate, Autoencoder),
)


def named(value: object) -> str:
    return value.name if isinstance(value, Family) else ""


@pytest.fixture(params=itertools.product(MEMBERS, LAYOUTS), ids=lambda p: named(p[0]))
def made(request: pytest.FixtureRequest) -> tuple[Family, Map]:
    member, (source, target) = request.param
    x, y = pairs(source, target)
    moments = Moments.of([(x, y)], target_gram=True)
    return member, member.build(source, target, moments)


def states(made: Map, count: int = 5, seed: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    shape = (count, made.source.tokens, made.source.state_dim)
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def test_the_list_above_has_every_family() -> None:
    assert {type(member) for member in MEMBERS} == set(FAMILIES.values())


def test_a_map_gives_the_targets_states_on_the_targets_grid(made: tuple[Family, Map]) -> None:
    _, one = made
    out = one(states(one))
    assert out.shape == (5, one.target.tokens, one.target.state_dim)
    assert torch.isfinite(out).all()


def test_what_is_saved_computes_the_same_after_loading(made: tuple[Family, Map]) -> None:
    member, one = made
    again = load(one.to_bytes(), one.source, one.target)
    assert again.family == member
    torch.testing.assert_close(again(states(one)), one(states(one)), rtol=0, atol=0)


@pytest.mark.parametrize("member", [Ridge(), LowRank(r=5)])
def test_a_map_written_before_a_setting_existed_is_read_as_what_it_was(member: Family) -> None:
    one, _, _ = fitted(member)
    config = asdict(member)
    before = {k: v for k, v in config.items() if k not in ("spread", "choose", "metric")}
    blob = one.to_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    plain = json.loads(header["__metadata__"][METADATA])
    header["__metadata__"][METADATA] = json.dumps({**plain, "config": before})
    old = json.dumps(header).encode()
    again = load(len(old).to_bytes(8, "little") + old + blob[8 + length :], one.source, one.target)
    assert again.family == replace(member, spread=False)  # type: ignore[call-arg]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), one.parameters(), strict=True))


def test_loading_beside_another_model_or_from_other_bytes_is_refused(
    made: tuple[Family, Map],
) -> None:
    _, one = made
    other = replace(one.source, weights_digest="0" * 64)
    with pytest.raises(BundleLayoutError, match="was made for the source"):
        load(one.to_bytes(), other, one.target)
    with pytest.raises(BundleFormatError):
        load(one.to_bytes()[:-3], one.source, one.target)


def test_a_gradient_step_lowers_the_error(made: tuple[Family, Map]) -> None:
    member, one = made
    x = states(one)
    want = torch.from_numpy(
        np.random.default_rng(9)
        .standard_normal((5, one.target.tokens, one.target.state_dim))
        .astype(np.float32)
    )
    optimiser = torch.optim.SGD(one.parameters(), lr=0.05)
    errors = []
    for _ in range(8):
        loss = torch.nn.functional.mse_loss(one.predict(x), want)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0], f"{member} does not learn: {errors}"


def test_no_pair_of_states_is_stretched_beyond_the_operator_norm(
    made: tuple[Family, Map],
) -> None:
    member, one = made
    norm = one.operator_norm()
    assert (norm is not None) == isinstance(member, LINEAR), "the norm exists where it is linear"
    if norm is None:
        return
    a, b = states(one, 40, 1), states(one, 40, 2)
    with torch.no_grad():
        moved = (one.predict(a) - one.predict(b)).flatten(1).norm(dim=1)
        apart = (one.normal(a) - one.normal(b)).flatten(1).norm(dim=1)
    assert float((moved / apart).max()) <= norm * (1 + 1e-5)
    # The whole frame's map as one matrix, a column per number of a frame.
    numbers = one.source.tokens * one.source.state_dim
    frames = torch.eye(numbers).unflatten(1, (one.source.tokens, one.source.state_dim))
    with torch.no_grad():
        still = one.cloud(one.down(torch.zeros_like(frames[:1])))
        matrix = (one.cloud(one.down(frames)) - still).flatten(1).double().numpy()
    assert norm == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-3)


@pytest.mark.quick(10)
def test_the_exported_graph_computes_what_the_map_computes(made: tuple[Family, Map]) -> None:
    _, one = made
    served = ServedMap(one).eval()
    rng = np.random.default_rng(0)
    tokens, rotary = one.source.tokens, one.target.rope.rotary_dim
    angle = rng.uniform(0, 6, (one.target.tokens, rotary)).astype(np.float32)

    def feeds(batch: int) -> dict[str, np.ndarray]:
        kept = (rng.random((batch, tokens)) > 0.3).astype(np.float32)
        latents = rng.standard_normal((batch, tokens, one.rank)).astype(np.float32)
        return {"latents": latents, "kept": kept, "cos": np.cos(angle), "sin": np.sin(angle)}

    stream = io.BytesIO()
    torch.onnx.export(
        served,
        tuple(torch.from_numpy(a) for a in feeds(2).values()),
        stream,  # type: ignore[arg-type]
        dynamo=False,
        input_names=["latents", "kept", "cos", "sin"],
        output_names=["keys", "values"],
        dynamic_axes={"latents": {0: "b"}, "kept": {0: "b"}, "keys": {1: "b"}, "values": {1: "b"}},
        opset_version=18,
    )
    session = onnxruntime.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = feeds(batch)
        with torch.inference_mode():
            ours = served(*(torch.from_numpy(a) for a in inputs.values()))
        for theirs, mine in zip(session.run(None, inputs), ours, strict=True):
            scale = float(mine.abs().max())
            np.testing.assert_allclose(theirs / scale, mine.numpy() / scale, atol=1e-4)


# ---------------------------------------------------------------------- each by its definition


def fitted(member: Family, which: int = 0) -> tuple[Map, np.ndarray, np.ndarray]:
    source, target = LAYOUTS[which]
    x, y = pairs(source, target)
    one = member.build(source, target, Moments.of([(x, y)], target_gram=True))
    xn = ((x - one.x_mean.numpy()) / one.x_scale.numpy()).reshape(-1, source.state_dim)
    yn = ((y - one.y_mean.numpy()) / one.y_scale.numpy()).reshape(-1, target.state_dim)
    return one, xn.astype(np.float64), yn.astype(np.float64)


@pytest.mark.quick(5)
def test_a_map_token_by_token_is_exported_for_any_number_of_tokens(
    made: tuple[Family, Map],
) -> None:
    family, one = made
    served = ServedMap(one).eval()
    exported = export(served)
    assert exported.dynamic_tokens == (family.per_token and one.to_grid is None)
    if not exported.dynamic_tokens:
        return
    fewer = replace(served.boundaries, tokens_in=3, tokens_out=3)

    class Shorter:
        boundaries = fewer

        def __call__(self, *inputs: torch.Tensor) -> Any:
            return served(*inputs)

    half: Any = Shorter()
    assert compare(half, exported.graph, probe(half, batch=2, seed=3)) < 1e-4


def test_linear_has_the_literatures_number_of_parameters() -> None:
    source, target = layout(4, 2, 32, (1, 1)), layout(8, 4, 64, (1, 1))
    assert (source.state_dim, target.state_dim) == (512, 4096)
    made = Linear().make(source, target)
    assert made.parameters_count() == 2_101_248 + 2 * 4096


def test_ridge_solves_the_regularised_least_squares_problem() -> None:
    one, x, y = fitted(Ridge(weight=0.1, spread=False))
    augmented = np.vstack([x / len(x) ** 0.5, 0.1**0.5 * np.eye(x.shape[1])])
    wanted = np.vstack([y / len(y) ** 0.5, np.zeros((x.shape[1], y.shape[1]))])
    expected, *_ = np.linalg.lstsq(augmented, wanted, rcond=None)
    np.testing.assert_allclose(one.weights().detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("member", [Ridge(weight=0.1), LowRank(r=5, weight=0.1)])
def test_a_spread_map_varies_as_much_as_the_target_head_by_head_and_turns_nothing(
    member: Ridge | LowRank,
) -> None:
    one, x, y = fitted(member)
    plain, _, _ = fitted(replace(member, spread=False))
    size = one.target.head_dim
    wide, narrow, true = (
        np.square(states).mean(axis=0).reshape(-1, size).mean(axis=1)
        for states in (
            x @ one.weights().detach().double().numpy(),
            x @ plain.weights().detach().double().numpy(),
            y,
        )
    )
    assert (narrow < 0.97 * true).all()
    limited = np.minimum(true, 16.0 * narrow)
    np.testing.assert_allclose(wide, limited, rtol=0.02)
    ratio = (one.weights() / plain.weights()).detach().numpy().reshape(len(x[0]), -1, size)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1, :, :1], ratio.shape), rtol=1e-2)


def test_low_rank_from_regression_beats_every_other_map_of_its_rank() -> None:
    one, x, y = fitted(LowRank(r=3, weight=1e-9, spread=False))
    full, *_ = np.linalg.lstsq(x, y, rcond=None)
    # The optimum is the full fit's predictions cut to rank r (Eckart and Young, 1936).
    left, values, right = np.linalg.svd(x @ full, full_matrices=False)
    best = np.square(y - (left[:, :3] * values[:3]) @ right[:3]).sum()
    got = np.square(y - x @ one.weights().detach().double().numpy()).sum()
    assert got == pytest.approx(best, rel=1e-5)
    other, _, _ = fitted(LowRank(r=3, start="covariance"))
    assert np.square(y - x @ other.weights().detach().double().numpy()).sum() >= got


def test_low_rank_starts_orthonormal_and_the_penalty_sees_when_it_is_not() -> None:
    one, _, _ = fitted(LowRank(r=5))
    assert isinstance(one, LowRankMatrix)
    assert one.penalty().item() < 1e-3
    with torch.no_grad():
        one.u.mul_(1.5)
    assert one.penalty().item() == pytest.approx(1.25 * 5**0.5, rel=1e-2)


def test_procrustes_is_the_best_scaled_rotation() -> None:
    one, x, y = fitted(Procrustes())
    w = one.weights().detach().double().numpy()
    assert orthogonality(w) < 1e-5
    error = np.square(y - x @ w).sum()
    rng = np.random.default_rng(0)
    for _ in range(20):
        turn = np.linalg.qr(rng.standard_normal((x.shape[1], x.shape[1])))[0]
        for size in (0.9, 1.0, 1.1):
            assert np.square(y - x @ (turn @ w * size)).sum() >= error * (1 - 1e-9)
    soft, _, _ = fitted(Procrustes(softness=1.0))
    full, _, _ = fitted(Ridge(spread=False))
    torch.testing.assert_close(soft.weights(), full.weights())
    assert orthogonality(polar(full.weights().detach().double().numpy())) < 1e-6


def test_choosing_all_layers_one_by_one_is_ridge_itself() -> None:
    every, _, _ = fitted(Ridge(layers="best", best_layers=2))
    full, _, _ = fitted(Ridge())
    torch.testing.assert_close(every.weights(), full.weights(), atol=1e-4, rtol=1e-4)


def test_a_layer_that_alone_tells_the_target_is_the_one_chosen() -> None:
    source, target = LAYOUTS[0]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, source.state_dim)).astype(np.float32)
    of_layer = np.tile(np.repeat(np.arange(2), 8), 2)
    y = x[:, of_layer == 1] @ rng.standard_normal((16, target.state_dim)).astype(np.float32)
    one = Ridge(layers="best", best_layers=1).build(source, target, Moments.of([(x, y)]))
    w = one.weights().detach().numpy()
    assert np.abs(w[of_layer == 0]).max() == 0
    assert np.abs(w[of_layer == 1]).max() > 0.1


def test_layers_are_chosen_by_the_pictures_held_out() -> None:
    source, target = LAYOUTS[0]
    rng = np.random.default_rng(1)
    of_layer = np.tile(np.repeat(np.arange(2), 8), 2)
    told = rng.standard_normal((16, target.state_dim))

    def moments(layer: int) -> Moments:
        x = rng.standard_normal((400, source.state_dim)).astype(np.float32)
        y = x[:, of_layer == layer] @ told + 0.5 * x[:, of_layer != layer] @ told
        return Moments.of([(x, y.astype(np.float32))])

    # Layer 0 tells more of these pictures, layer 1 of those held out.
    for held, chosen in ((None, 0), (moments(1), 1)):
        member = Ridge(layers="best", best_layers=1)
        one = member.build(source, target, replace(moments(0), held=held))
        w = one.weights().detach().numpy()
        assert np.abs(w[of_layer != chosen]).max() == 0
        assert np.abs(w[of_layer == chosen]).max() > 0.1


def test_shared_uses_one_matrix_for_keys_and_values() -> None:
    one, _, _ = fitted(Shared())
    w = one.weights().detach().numpy()
    half_s, half_r = w.shape[0] // 2, w.shape[1] // 2
    np.testing.assert_array_equal(w[:half_s, :half_r], w[half_s:, half_r:])
    assert np.abs(w[:half_s, half_r:]).max() == 0


def test_the_way_back_returns_to_where_it_came_from_where_the_target_holds_it() -> None:
    source, target = LAYOUTS[0]
    rng = np.random.default_rng(2)
    x = rng.standard_normal((60, source.tokens, source.state_dim)).astype(np.float32)
    y = x @ rng.standard_normal((source.state_dim, target.state_dim)).astype(np.float32)
    moments = Moments.of([(x, y)], target_gram=True)
    one = Bidirectional(weight=1e-6).build(source, target, moments)
    assert isinstance(one, BidirectionalMap)
    assert one.round_trip(torch.from_numpy(x)) < 0.01
    with torch.no_grad():
        one.compress.zero_()
    assert one.round_trip(torch.from_numpy(x)) > 0.5


def test_a_mixing_block_changes_nothing_until_it_has_learnt() -> None:
    inside, _, _ = fitted(LowRank(r=6))
    mixed, _, _ = fitted(Mix(inner="low_rank", config={"r": 6}, width=16, heads=2))
    torch.testing.assert_close(mixed(states(mixed)), inside(states(inside)), atol=1e-5, rtol=1e-5)


def test_factors_are_low_rank_and_travel_with_unit_variance() -> None:
    one, x, _ = fitted(Factors(r=6))
    same, _, _ = fitted(LowRank(r=6, spread=False))
    torch.testing.assert_close(one(states(one)), same(states(same)), atol=1e-4, rtol=1e-4)
    latents = one.down(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(latents.T @ latents / len(x), np.eye(6), atol=0.02)
    norms = one.get_parameter("onward").norm(dim=1)
    torch.testing.assert_close(one.steps(), norms.detach().reciprocal())


def test_a_mix_fills_in_what_did_not_travel() -> None:
    """Untrained it leaves zeros there; trained, they depend on what did travel."""
    one, _, _ = fitted(Mix("factors", {"r": 6, "travels": 4}, 16, 2, 2, "target"))
    alone, _, _ = fitted(Factors(r=6, travels=4))
    assert (one.rank, one.up_rank) == (4, 6)
    torch.testing.assert_close(one(states(one)), alone(states(one)), atol=1e-5, rtol=1e-5)
    torch.nn.init.normal_(one.get_parameter("outward.weight"))
    z = torch.randn(2, one.source.tokens, 4)
    assert (one.latent(z)[..., 4:].std(dim=(0, 1)) > 1e-3).all()


@pytest.mark.parametrize("which", [0, 1])
def test_every_member_may_learn_to_round(which: int) -> None:
    """With a step of nothing what comes through is what was sent; steps and all are kept."""
    source, target = LAYOUTS[which]
    for member in MEMBERS:
        one, _, _ = fitted(member, which)
        x = states(one)
        whole = one(x)
        one.start_rounding(x.mean(dim=0))
        steps = one.steps()
        torch.testing.assert_close(one.travel(x)[0], whole)
        fine, _ = one.travel(x, Way(1e-5))
        torch.testing.assert_close(fine, whole, atol=1e-2, rtol=1e-3)
        coarse, cost = one.travel(x, Way(2.0))
        assert float(cost) > 0
        dropped, _ = one.travel(x, Way(2.0, kept=torch.zeros(x.shape[:2], dtype=torch.bool)))
        torch.testing.assert_close(dropped[0], dropped[1])
        assert not torch.allclose(coarse, whole), member
        fast = [g for g in one.groups() if g["scale"] == 4.0]
        assert [
            p is one.get_parameter("rounding.log_steps") for g in fast for p in g["params"]
        ] == [True]
        again = load(one.to_bytes(), source, target)
        assert torch.equal(again.steps(), steps) and torch.equal(again.centre(), one.centre())


def test_narrower_weights_cost_little_and_say_so() -> None:
    one, x, _ = fitted(LowRank(r=6))
    full = one(states(one))
    for dtype, most in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        other = one.in_precision(dtype)(states(one))
        apart = float((other - full).norm() / full.norm())
        assert 0 < apart < most
        stored = one.to_bytes(dtype)
        assert len(stored) < len(one.to_bytes())
        torch.testing.assert_close(load(stored, one.source, one.target)(states(one)), other)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (LowRank(r=0), "rank 0: expected 1 to 32"),
        (LowRank(r=33), "rank 33: expected 1 to 32"),
        (LowRank(r=6, start="magic"), "start 'magic'"),
        (Ridge(layers="some"), "layers 'some'"),
        (Ridge(layers="best", best_layers=3), "3 source layers to choose, the model has 2"),
        (Procrustes(softness=2.0), "softness of 2.0"),
        (MLP(hidden=0), "hidden width 0"),
        (Mix(width=300), "mixing width of 300"),
        (Mix(depth=0), "0 layers"),
        (Mix(depth=10**9), "1000000000 layers"),
        (MLP(hidden=10**12), "expected 1 to 65536"),
        (Mix(inner="mix"), "a mix around a mix"),
        (Mix(inner="low_rnk"), "did you mean 'low_rank'"),
        (Mix(order="both"), "order 'both': expected one of source, target"),
        (Factors(r=33), "rank 33: expected 1 to 32"),
        (Factors(r=6, travels=7), "7 of 6 numbers travel"),
    ],
)
def test_an_impossible_configuration_says_what_is_wrong(member: Family, said: str) -> None:
    source, target = LAYOUTS[0]
    with pytest.raises(FitError, match=said):
        member.make(source, target)


@pytest.mark.parametrize(
    ("family_name", "config"),
    [
        ("mlp", {"hidden": 10**12}),
        ("mlp", {"hidden": {}}),
        ("mlp", {"hidden": True}),
        ("mlp", {}),
        ("low_rank", {"r": "6", "start": "regression", "weight": 1e-3}),
        ("low_rank", {"r": 10**9, "start": "regression", "weight": 1e-3}),
        ("nothing", {}),
    ],
)
def test_a_map_that_lies_about_itself_is_refused_before_anything_is_made(
    family_name: str, config: dict[str, object]
) -> None:
    source, target = LAYOUTS[0]
    plain = {
        "family": family_name,
        "config": config,
        "source": json.loads(source.to_json()),
        "target": json.loads(target.to_json()),
    }
    blob = save({}, metadata={METADATA: json.dumps(plain)})
    with pytest.raises(BundleFormatError):
        load(blob, source, target)
    plain["source"] = {}
    with pytest.raises(BundleFormatError):
        load(save({}, metadata={METADATA: json.dumps(plain)}), None, target)


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(FitError, match="did you mean 'procrustes'"):
        family("procrustis")


def test_pairs_of_other_models_are_refused() -> None:
    x, y = pairs(*LAYOUTS[0])
    with pytest.raises(FitError, match="from other models"):
        Ridge().build(LAYOUTS[1][0], LAYOUTS[1][1], Moments.of([(x, y)]))


def test_a_singular_gram_matrix_asks_for_a_ridge() -> None:
    source, target = LAYOUTS[0]
    x, y = pairs(source, target)
    x[..., 1] = x[..., 0]
    with pytest.raises(FitError, match="ridge weight above 0"):
        Ridge(weight=0.0).build(source, target, Moments.of([(x, y)]))


def test_layouts_can_be_anything_that_describes_a_cache() -> None:
    assert all(isinstance(side, KVLayout) for pair in LAYOUTS for side in pair)
