"""The graph is the map, in float32 and with FP8 weights, and what is no such graph is refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from projector.maps import Map, ServedMap, load
from projector.maps.factors import Factors
from projector.maps.mix import Mix, MixMap
from projector.serving import export
from protos.errors import BundleFormatError
from protos.layout import KVLayout
from tests.projector.conftest import RANK, make_map
from tests.projector.maps.test_moments import layout

REFERENCE = Path(__file__).parents[3] / "reference/bundles/edge-a-cloud/cloud.onnx"
FP8_BOUND = 0.04
"""Relative L2. Rounding to E4M3 is off by 2.6 % on average and 6.25 % at worst per weight."""


def turned(target: KVLayout, rotary_dim: int, interleaved: bool) -> KVLayout:
    """The layout with a RoPE that turns so many channels, in that order."""
    freq = tuple(0.5**i for i in range(rotary_dim // 2))
    rope = replace(target.rope, rotary_dim=rotary_dim, interleaved=interleaved, inv_freq=freq)
    return replace(target, rope=rope)


def random_map(
    source: KVLayout, target: KVLayout, rank: int, mix_width: int, inner: int = 0, depth: int = 1
) -> Map:
    """A map of random weights."""
    torch.manual_seed(0)
    plain = Factors(r=inner or rank, travels=rank)
    if not mix_width:
        made = plain.make(source, target)
        torch.nn.init.normal_(made.get_parameter("onward"))
        return made.eval()
    mix = Mix(
        *("factors", asdict(plain), mix_width, depth, 2),
        order="target",
    )
    made = mix.make(source, target)
    assert isinstance(made, MixMap)
    torch.nn.init.normal_(made.outward.weight, std=0.2)
    torch.nn.init.normal_(made.get_parameter("inner.onward"))
    return made.eval()


@pytest.fixture(scope="module", params=[0, 32], ids=["no mixing", "mixing"])
def half(request: pytest.FixtureRequest, source: KVLayout, target: KVLayout) -> ServedMap:
    return ServedMap(make_map(source, target, mix_width=request.param)).eval()


@pytest.fixture(scope="module")
def graph(half: ServedMap) -> bytes:
    return export.export(half).graph


@pytest.fixture(scope="module")
def fp8(graph: bytes) -> bytes:
    return export.export_fp8(graph)


# ---------------------------------------------------------------------- float32


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_graph_is_the_map_at_every_batch(half: ServedMap, graph: bytes, batch: int) -> None:
    assert export.compare(half, graph, export.probe(half, batch, seed=100 + batch)) <= 1e-4


@pytest.mark.quick(3)
@pytest.mark.parametrize("mix_width", [0, 32])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [0, 8])
def test_exported_graphs_match_torch_and_pass_the_full_check(
    mix_width: int, interleaved: bool, rotary_dim: int
) -> None:
    target = turned(layout(2, 2, 16, (3, 3)), rotary_dim or 16, interleaved)
    half = random_map(layout(2, 2, 4, (3, 3)), target, 5, mix_width=mix_width)
    made = export.export(ServedMap(half))
    assert made.parity <= 1e-4 and made.dynamic_tokens == (mix_width == 0)
    model = onnx.load_from_string(made.graph)
    onnx.checker.check_model(model, full_check=True)
    assert all(9 <= entry.version <= 25 for entry in model.opset_import)


def test_an_inner_width_above_the_rank_exports_too(source: KVLayout, target: KVLayout) -> None:
    made = make_map(source, target, mix_width=16, inner=RANK + 4)
    assert made.up_rank == RANK + 4
    assert export.export(ServedMap(made)).parity <= 1e-4


@pytest.mark.parametrize("mix_width", [0, 16])
def test_a_half_between_two_grids_exports_and_reads_back(mix_width: int) -> None:
    source, target = layout(1, 1, 4, (4, 4)), layout(1, 1, 4, (3, 3))
    half = random_map(source, target, 4, mix_width=mix_width)
    made = export.export(ServedMap(half))
    assert made.parity <= 1e-4 and not made.dynamic_tokens
    feeds = {
        "latents": np.random.default_rng(0).normal(size=(2, 16, 4)).astype(np.float32),
        "kept": np.ones((2, 16), np.float32),
        "cos": np.ones((9, 4), np.float32),
        "sin": np.zeros((9, 4), np.float32),
    }
    keys, _ = export.session(made.graph).run(None, feeds)
    assert keys.shape == (1, 2, 1, 9, 4)
    again = ServedMap(load(half.to_bytes(), source, target))
    with torch.no_grad():
        got, _ = again(*(torch.from_numpy(array) for array in feeds.values()))
    np.testing.assert_allclose(got.numpy(), keys, atol=1e-4)


def test_tokens_of_the_other_grid_reach_a_mixing_half() -> None:
    """At the target's places stand interpolated latents; what lies between them still counts."""
    half = random_map(layout(1, 1, 4, (3, 3)), layout(1, 1, 4, (1, 1)), 2, mix_width=8)
    latents = torch.zeros(1, 9, 2, requires_grad=True)
    half.states(half.cloud(latents)).sum().backward()
    assert latents.grad is not None and bool((latents.grad.abs().sum(-1) > 0).all())


def test_without_mixing_the_number_of_tokens_is_free() -> None:
    half = random_map(layout(1, 1, 4, (3, 3)), layout(1, 1, 4, (3, 3)), 4, mix_width=0)
    session = export.session(export.export(ServedMap(half)).graph)
    feeds = {
        "latents": np.ones((2, 5, 4), np.float32),
        "kept": np.ones((2, 5), np.float32),
        "cos": np.ones((5, 4), np.float32),
        "sin": np.zeros((5, 4), np.float32),
    }
    keys, values = session.run(None, feeds)
    assert keys.shape == values.shape == (1, 2, 1, 5, 4)


def test_a_graph_with_an_opset_out_of_range_is_refused() -> None:
    half = random_map(layout(1, 1, 4, (3, 3)), layout(1, 1, 4, (3, 3)), 4, mix_width=0)
    model = onnx.load_from_string(export.export(ServedMap(half)).graph)
    for version in (8, 26):
        model.opset_import[0].version = version
        with pytest.raises(BundleFormatError):
            export.check(model.SerializeToString())
    with pytest.raises(BundleFormatError):
        export.check(b"junk")


# ---------------------------------------------------------------------- FP8 weights


def test_the_weights_are_in_fp8_and_nothing_else_is(graph: bytes, fp8: bytes) -> None:
    model = onnx.load_from_string(fp8)
    onnx.checker.check_model(model, full_check=True)
    assert all(19 <= entry.version <= 25 for entry in model.opset_import)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    made = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    weights = [made[n.input[1]] for n in products if n.input[1] in made]
    assert len(weights) == len(made) == (9 if len(products) > 2 else 2)
    for node in weights:
        assert held[node.input[0]].data_type == TensorProto.FLOAT8E4M3FN
        assert held[node.input[1]].data_type == TensorProto.FLOAT
    large = [t for t in held.values() if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 600]
    assert not large, "a float32 weight was left behind"
    assert len(fp8) < len(graph)
    before = onnx.load_from_string(graph).graph
    assert list(model.graph.input) == list(before.input)
    assert list(model.graph.output) == list(before.output)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_fp8_weights_stay_close_to_float32(graph: bytes, fp8: bytes, batch: int) -> None:
    found = export.parity(fp8, graph, batch)
    assert 0.001 < found.relative_l2 < FP8_BOUND
    assert found.largest < 2 * FP8_BOUND


def test_the_fp8_graph_computes_with_weights_that_torch_rounds(
    source: KVLayout, target: KVLayout
) -> None:
    """Reference: the formula in float64, `up` cast by torch, one scale per output channel."""
    half = make_map(source, target, mix_width=0)
    served, onto, rounding = ServedMap(half), half.onto(), half.rounding
    assert onto is not None and rounding is not None
    inputs = export.probe(served, batch=3, seed=0)
    up = (onto * half.y_scale).detach()
    scale = up.abs().amax(dim=0) / 448
    rounded = (up / scale).to(torch.float8_e4m3fn).double() * scale.double()
    z = np.where(
        inputs["kept"][..., None] > 0.5, inputs["latents"], rounding.empty.detach().numpy()
    )
    y = z.astype(np.float64) @ rounded.numpy() + half.y_mean.double().numpy()
    shape = (*y.shape[:2], 2, target.layers, target.kv_heads, target.head_dim)
    truth = y.reshape(shape).transpose(2, 3, 0, 4, 1, 5)[1]
    session = export.session(export.export_fp8(export.export(served).graph))
    (values,) = session.run(["values"], inputs)
    np.testing.assert_allclose(values, truth, atol=1e-4 * np.abs(truth).max())


def test_channels_of_very_different_size_are_all_kept(source: KVLayout, target: KVLayout) -> None:
    """One scale per tensor would round the small ones to nothing."""
    half = make_map(source, target, mix_width=0)
    with torch.no_grad():
        half.y_scale.copy_(torch.logspace(-6, 6, target.state_dim))
        half.y_scale[5] = 0
        half.y_mean.zero_()
    graph = export.export(ServedMap(half)).graph
    inputs = export.probe(ServedMap(half), batch=4, seed=0)
    (exact,) = export.session(graph).run(["values"], inputs)
    (close,) = export.session(export.export_fp8(graph)).run(["values"], inputs)
    error = np.linalg.norm(close - exact, axis=(1, 3)) / np.linalg.norm(exact, axis=(1, 3))
    assert np.isfinite(close).all() and error.max() < 0.07


@pytest.mark.quick(1)
@pytest.mark.parametrize("interleaved", [False, True])
def test_every_graph_of_ours_has_an_fp8_variant(interleaved: bool) -> None:
    target = turned(layout(2, 2, 16, (3, 3)), 8, interleaved)
    half = random_map(layout(2, 2, 8, (3, 3)), target, 16, mix_width=32, inner=20, depth=2)
    graph = export.export(ServedMap(half)).graph
    assert export.parity(export.export_fp8(graph), graph).relative_l2 < FP8_BOUND


@pytest.mark.skipif(not REFERENCE.exists(), reason="there is no reference bundle")
def test_the_reference_graph_in_fp8_is_a_quarter_of_the_size() -> None:
    graph = REFERENCE.read_bytes()
    fp8 = export.export_fp8(graph)
    assert len(fp8) < 0.3 * len(graph)
    assert export.parity(fp8, graph).relative_l2 < FP8_BOUND


def gemm_graph(transposed: bool) -> bytes:
    """Keys and values from one Gemm with a bias, as other exporters write a linear layer."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 32)).astype(np.float32)
    constants = {
        "weight": weight.T.copy() if transposed else weight,
        "bias": rng.standard_normal(32).astype(np.float32),
        "flat": np.array([-1, 24]),
        "shape": np.array([2, -1, 2, 9, 8]),
    }
    nodes = [
        helper.make_node("Reshape", ["latents", "flat"], ["rows"]),
        helper.make_node(
            "Gemm", ["rows", "weight", "bias"], ["y"], transB=int(transposed), alpha=0.5
        ),
        helper.make_node("Reshape", ["y", "shape"], ["keys"]),
        helper.make_node("Identity", ["keys"], ["values"]),
    ]
    kind = TensorProto.FLOAT
    sizes: dict[str, list[Any]] = {
        "latents": ["batch", 9, 24],
        "kept": ["batch", 9],
        "cos": [9, 8],
        "sin": [9, 8],
        "keys": [2, "batch", 2, 9, 8],
        "values": [2, "batch", 2, 9, 8],
    }
    values = {name: helper.make_tensor_value_info(name, kind, size) for name, size in sizes.items()}
    graph = helper.make_graph(
        nodes,
        "gemm",
        [values[name] for name in export.INPUTS],
        [values[name] for name in export.OUTPUTS],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    blob: bytes = model.SerializeToString()
    return blob


@pytest.mark.parametrize("transposed", [False, True])
def test_a_linear_layer_written_as_gemm_is_stored_in_fp8_too(transposed: bool) -> None:
    graph = gemm_graph(transposed)
    fp8 = export.export_fp8(graph)
    assert b"DequantizeLinear" in fp8
    assert 0.001 < export.parity(fp8, graph, batch=2).relative_l2 < FP8_BOUND


def test_a_graph_with_nothing_to_store_in_fp8_is_refused() -> None:
    half = random_map(layout(1, 1, 4, (3, 3)), layout(1, 1, 4, (3, 3)), 4, mix_width=0)
    with pytest.raises(BundleFormatError, match="no weights"):
        export.export_fp8(export.export(ServedMap(half)).graph)
    with pytest.raises(BundleFormatError):
        export.export_fp8(b"junk")


def test_a_graph_in_fp8_already_has_nothing_left_to_store(fp8: bytes) -> None:
    with pytest.raises(BundleFormatError, match="no weights"):
        export.export_fp8(fp8)
