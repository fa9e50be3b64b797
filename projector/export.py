"""A cloud half as an ONNX graph, checked before anyone serves it (torch, onnx, onnxruntime).

Knows: the graph's names and shapes. Does not know: bundles, files.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError

from projector.maps.low_rank import CloudHalf
from protos.errors import BundleFormatError

Floats = npt.NDArray[np.float32]

INPUTS = ("latents", "kept", "cos", "sin")
OUTPUTS = ("keys", "values")
OPSET = 18
OPSET_RANGE = (9, 25)
"""TensorRT's parser takes any opset and fails later; these are the ones it documents."""


@dataclass(frozen=True)
class Exported:
    """An ONNX graph and how close it is to the torch module it came from.

    Attributes:
        graph: the serialized model.
        parity: largest `max|onnx - torch| / max|torch|` over outputs and probes.
        dynamic_tokens: whether the number of tokens may vary (not with a mixing block).
    """

    graph: bytes
    parity: float
    dynamic_tokens: bool


def export(half: CloudHalf, tolerance: float = 1e-4) -> Exported:
    """Export, check and compare.

    Args:
        half: the trained cloud half.
        tolerance: largest parity error accepted.

    Raises:
        BundleFormatError: the graph fails the checker, has an opset outside 9..25, or does not
            compute what the module computes.
    """
    half = half.eval()
    dynamic_tokens = half.mix is None
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
        axes["cos"], axes["sin"] = {0: "tokens"}, {0: "tokens"}
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is deprecated
        torch.onnx.export(
            half,
            tuple(torch.from_numpy(array) for array in sample.values()),
            stream,  # type: ignore[arg-type]  # it takes streams; its stub says paths
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
    """Full ONNX check, and the opset's range.

    Raises:
        BundleFormatError: either fails.
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


def probe(half: CloudHalf, batch: int, seed: int) -> dict[str, Floats]:
    """Random graph inputs, with some tokens dropped and NaN in their place."""
    rng = np.random.default_rng(seed)
    tokens, rank = half.config.tokens, half.config.rank
    rotary_dim = half.config.rotary_dim or half.config.head_dim
    latents = rng.standard_normal((batch, tokens, rank), dtype=np.float32)
    kept = (rng.random((batch, tokens)) > 0.3).astype(np.float32)
    latents[kept == 0] = np.nan
    angle = rng.uniform(0, 6.28, (tokens, rotary_dim)).astype(np.float32)
    return dict(zip(INPUTS, (latents, kept, np.cos(angle), np.sin(angle)), strict=True))


def compare(half: CloudHalf, graph: bytes, inputs: dict[str, Floats]) -> float:
    """Largest `max|onnx - torch| / max|torch|` over both outputs."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        ours = half(*(torch.from_numpy(array) for array in inputs.values()))
    return max(
        float(np.abs(theirs - mine.numpy()).max() / np.abs(mine.numpy()).max())
        for theirs, mine in zip(session.run(None, inputs), ours, strict=True)
    )
