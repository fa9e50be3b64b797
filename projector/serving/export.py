"""Exports a cloud half as an ONNX graph, also with FP8 weights, and checks the graph."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from projector.maps.served import Boundaries
from protos.errors import BundleFormatError

Floats = npt.NDArray[np.float32]

INPUTS = ("latents", "kept", "cos", "sin")
OUTPUTS = ("keys", "values")
OPSET = 18
OPSET_RANGE = (9, 25)
"""The opsets that TensorRT documents; its parser takes any and fails later."""
FP8_OPSET, _FP8_IR = 19, 9
"""The first opset and file format that support FP8."""
FP8_MAX = 448.0
"""The largest E4M3 number."""
FP8_LEAST_WEIGHTS = 256
"""A smaller matrix stays float32: scales and nodes would take more than FP8 saves."""
_FREE_TOKENS = 16


@dataclass(frozen=True)
class Parity:
    """Difference between two graphs' outputs, the worse of keys and values.

    Attributes:
        relative_l2: `|a - b| / |b|`.
        largest: `max|a - b| / max|b|`.
    """

    relative_l2: float
    largest: float


@dataclass(frozen=True)
class Exported:
    """An ONNX graph and its difference from the torch module.

    Attributes:
        graph: the serialized model.
        parity: largest `max|onnx - torch| / max|torch|` over outputs and probes.
        dynamic_tokens: whether the number of tokens may vary (not with a mixing block).
    """

    graph: bytes
    parity: float
    dynamic_tokens: bool


class Half(Protocol):
    """A cloud half in torch: `(latents, kept, cos, sin)` to rotated keys and values."""

    @property
    def boundaries(self) -> Boundaries:
        """Shapes of its inputs and outputs."""

    def eval(self) -> Any:
        """Switch to evaluation mode, as in `torch.nn.Module`."""

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Keys and values, both `[layers, B, kv_heads, M, head_dim]`."""


def export(half: Half, tolerance: float = 1e-4) -> Exported:
    """Export a cloud half to ONNX, check the graph and compare it with the module.

    Args:
        half: the trained cloud half, of any family.
        tolerance: largest parity error allowed.

    Raises:
        BundleFormatError: the graph fails the checker, has an opset outside 9..25, or differs from
            the module.
    """
    half = half.eval()
    dynamic_tokens = half.boundaries.free_tokens
    sample = probe(half, batch=2, seed=0)
    axes: dict[str, dict[int, str]] = {
        "latents": {0: "batch"},
        "kept": {0: "batch"},
        "keys": {1: "batch"},
        "values": {1: "batch"},
    }
    if dynamic_tokens:
        axes["latents"][1] = axes["kept"][1] = "tokens"
        axes["keys"][3] = axes["values"][3] = "tokens"
        at = len(half.boundaries.table) - 2
        axes["cos"], axes["sin"] = {at: "tokens"}, {at: "tokens"}
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter without extra packages is deprecated
        torch.onnx.export(
            half,  # type: ignore[arg-type]  # the protocol does not say that it is a module
            tuple(torch.from_numpy(array) for array in sample.values()),
            stream,  # type: ignore[arg-type]  # the stub allows paths only
            dynamo=False,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
            opset_version=OPSET,
        )
    graph = stream.getvalue()
    check(graph)
    parity = max(compare(half, graph, probe(half, batch=batch, seed=batch)) for batch in (1, 3, 16))
    if not parity <= tolerance:
        raise BundleFormatError(
            f"the exported graph differs from the map by {parity:.2e} (at most {tolerance:.0e})"
        )
    return Exported(graph=graph, parity=parity, dynamic_tokens=dynamic_tokens)


def check(graph: bytes) -> None:
    """Run the full ONNX check, and check the opset.

    Raises:
        BundleFormatError: the graph fails one of them.
    """
    try:
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        DecodeError,
        ValueError,
    ) as error:
        raise BundleFormatError(f"not a valid ONNX graph: {error}") from error
    low, high = OPSET_RANGE
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            raise BundleFormatError(f"the graph needs operators of '{entry.domain}'")
        if not low <= entry.version <= high:
            raise BundleFormatError(f"the graph's opset {entry.version} is not in {low}..{high}")
    names = [value.name for value in model.graph.input], [v.name for v in model.graph.output]
    if names != (list(INPUTS), list(OUTPUTS)):
        raise BundleFormatError(f"the graph's inputs and outputs are {names}")


def probe(half: Half, batch: int, seed: int) -> dict[str, Floats]:
    """Random inputs of the graph; some tokens are dropped and hold NaN."""
    rng = np.random.default_rng(seed)
    ends = half.boundaries
    latents = rng.standard_normal((batch, ends.tokens_in, ends.rank), dtype=np.float32)
    kept = (rng.random((batch, ends.tokens_in)) > 0.3).astype(np.float32)
    latents[kept == 0] = np.nan
    angle = rng.uniform(0, 6.28, ends.table).astype(np.float32)
    return dict(zip(INPUTS, (latents, kept, np.cos(angle), np.sin(angle)), strict=True))


def compare(half: Half, graph: bytes, inputs: dict[str, Floats]) -> float:
    """Largest `max|onnx - torch| / max|torch|` over both outputs."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        ours = half(*(torch.from_numpy(array) for array in inputs.values()))
    return max(
        float(np.abs(theirs - mine.numpy()).max() / np.abs(mine.numpy()).max())
        for theirs, mine in zip(session.run(None, inputs), ours, strict=True)
    )


# ---------------------------------------------------------------------- FP8 weights


def export_fp8(graph: bytes) -> bytes:
    """The same graph with the weights of its matrix products in FP8 E4M3.

    Built node by node, since torch's exporter folds FP8 weights back to float32. A weight becomes
    `FLOAT8E4M3FN` with one scale per output channel. For a matrix, `DequantizeLinear` applies the
    scale. For a stack of matrices it cannot (it knows one axis), so it uses scale 1 and the product
    is multiplied by the scales. Arithmetic, biases and all else stay float32.

    Args:
        graph: any float32 graph that passes `check`.

    Raises:
        BundleFormatError: the graph is invalid, or has no weights to store in FP8.
    """
    check(graph)
    model = onnx.load_from_string(graph)
    opset = next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    if opset < FP8_OPSET:
        model = _converted(model)
    model.ir_version = max(model.ir_version, _FP8_IR)
    weights = _weights(model)
    nodes: list[NodeProto] = []
    stored: set[str] = set()
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None:
            nodes.append(node)
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        name = node.input[1] + (".transposed" if transposed else "")
        if name not in stored:
            stored.add(name)
            nodes.append(_stored(model, name, weight, weight.ndim - (1 if transposed else 2)))
        node.input[1] = f"{name}.float"
        nodes.append(node)
        if weight.ndim > 2:
            product, unscaled = node.output[0], f"{node.output[0]}.unscaled"
            node.output[0] = unscaled
            nodes.append(
                helper.make_node("Mul", [unscaled, f"{name}.scale"], [product], f"{product}.scaled")
            )
    if not stored:
        raise BundleFormatError("the graph has no weights in its products that FP8 would shrink")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused(model)
    blob: bytes = model.SerializeToString()
    check(blob)
    return blob


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session that also runs FP8 graphs, on one CPU thread.

    The default would fuse FP8 weights into an operator that ONNX Runtime lacks.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def parity(graph: bytes, reference: bytes, batch: int = 16, seed: int = 0) -> Parity:
    """Compare `graph` with `reference` in ONNX Runtime, on random inputs of its shapes."""
    one, other = session(graph), session(reference)
    shapes = {value.name: value.shape for value in other.get_inputs()}
    (_, tokens, rank), (*layers, _, rotary) = shapes["latents"], shapes["cos"]
    tokens = tokens if isinstance(tokens, int) else _FREE_TOKENS
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 6.28, (*layers, tokens, rotary)).astype(np.float32)
    feeds = {
        "latents": rng.standard_normal((batch, tokens, rank), dtype=np.float32),
        "kept": (rng.random((batch, tokens)) > 0.3).astype(np.float32),
        "cos": np.cos(angle),
        "sin": np.sin(angle),
    }
    pairs = list(zip(one.run(OUTPUTS, feeds), other.run(OUTPUTS, feeds), strict=True))
    return Parity(
        relative_l2=max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs),
        largest=max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs),
    )


def _converted(model: ModelProto) -> ModelProto:
    """The graph in the FP8 opset, with its own dimension names, which the converter changes."""
    newer: ModelProto = version_converter.convert_version(model, FP8_OPSET)
    del newer.graph.output[:], newer.graph.value_info[:]
    newer.graph.output.extend(model.graph.output)
    newer.graph.value_info.extend(model.graph.value_info)
    return newer


def _weights(model: ModelProto) -> dict[str, Floats]:
    """Constants by every name that a product may use for them; the exporter merges equal ones."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            held[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in held:
            held[node.output[0]] = held[node.input[0]]
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in held.items()
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) >= 2
        and np.prod(tensor.dims) >= FP8_LEAST_WEIGHTS
    }


def _stored(model: ModelProto, name: str, weight: Floats, inner: int) -> NodeProto:
    """Add a weight in FP8 with its scales; return the node that dequantizes it.

    Args:
        model: receives the constants.
        name: prefix of their names.
        weight: a matrix or a stack of matrices.
        inner: the axis that the product sums over. The maximum along it scales an output channel.
    """
    scale = np.abs(weight).max(axis=inner, keepdims=True) / np.float32(FP8_MAX)
    scale = np.where(scale > 0, scale, np.float32(1))
    eight = (weight / scale).astype(ml_dtypes.float8_e4m3fn)
    kind = TensorProto.FLOAT8E4M3FN
    model.graph.initializer.append(
        TensorProto(name=f"{name}.fp8", data_type=kind, dims=weight.shape, raw_data=eight.tobytes())
    )
    inside, axis = f"{name}.scale", dict[str, Any](axis=1 - inner)
    if weight.ndim == 2:
        scale = scale.ravel()
    else:
        inside, axis = f"{name}.one", {}
        model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), inside))
    model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}.fp8", inside],
        [f"{name}.float"],
        f"{name}.dequantize",
        **axis,
    )


def _drop_unused(model: ModelProto) -> None:
    """Drop constants that no node reads any more: the float32 weights."""
    outputs = {value.name for value in model.graph.output}
    while True:
        read = {name for node in model.graph.node for name in node.input} | outputs
        nodes = [node for node in model.graph.node if read & set(node.output)]
        if len(nodes) == len(model.graph.node):
            break
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    held = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(held)
