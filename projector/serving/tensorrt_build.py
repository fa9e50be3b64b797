"""Compiles a graph with TensorRT, for the GPU in this machine or for another one.

Imports neither torch nor onnx.

| Target | GPUs | TensorRT-RTX 1.7 compiles for it |
|---|---|---|
| `sm75` | Turing (T4, RTX 20) | nothing: it refuses float32 products and has no FP8 |
| `sm80` | A100, A30 | float32 |
| `sm86` | A10, A40, RTX 30 | float32 |
| `sm89` | L4, L40, RTX 40 | float32, FP8 weights |
| `sm120` | RTX 50, RTX PRO | float32, FP8 weights |
| `native` | the GPU in this machine | whatever its compute capability allows |

A named target needs TensorRT-RTX and no GPU. `native` needs the GPU; classic TensorRT is preferred
if both are installed. Nothing is executed here: a plan that compiles may still compute something
else than the graph.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protos.errors import BundleFormatError, ConfigError
from protos.layout import KVLayout

CAPABILITIES = {"sm75": 75, "sm80": 80, "sm86": 86, "sm89": 89, "sm120": 120}
NATIVE = "native"
TARGETS = (*CAPABILITIES, NATIVE)
IMPOSSIBLE = {
    "sm87": "Jetson Orin: TensorRT-RTX does not compile for it; build on the device with JetPack's "
    "TensorRT and the target 'native'",
    "sm90": "Hopper (H100, H200): TensorRT-RTX does not compile for it; build on such a machine "
    "with TensorRT and the target 'native'",
}
FP8_CAPABILITY = 89
"""The first compute capability with FP8 arithmetic."""
MAX_BATCH = 64
BEST_BATCH = 16

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Smallest, best and largest shape of each input."""

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Report:
    """The record of one compilation.

    Attributes:
        library: `tensorrt` or `tensorrt_rtx`.
        version: of the library.
        target: as requested.
        capability: such as `sm89`; for `native`, of the GPU in this machine.
        precision: `float32` (products may run in TF32, the library's default), or
            `float32, weights FP8 E4M3`.
        graph_sha256: of the graph.
        engine_sha256: of the plan.
        engine_bytes: size of the plan.
        seconds: compile time.
        executed: whether the plan was run. Always false: `projector verify` runs it.
    """

    library: str
    version: str
    target: str
    capability: str
    precision: str
    graph_sha256: str
    engine_sha256: str
    engine_bytes: int
    seconds: float
    executed: bool = False


def build(graph: bytes, target: str, shapes: Shapes) -> tuple[bytes, Report]:
    """Compile an ONNX graph to a plan. The graph says whether its weights are FP8.

    Args:
        graph: a serialized ONNX model.
        target: one of `TARGETS`.
        shapes: from `cloud_shapes`.

    Returns:
        The plan and the report.

    Raises:
        ConfigError: the target is unknown, or its library or GPU is missing.
        BundleFormatError: the target cannot run the graph, or the library refuses it.
    """
    fp8 = holds_fp8(graph)
    capability = require_target(target, fp8)
    trt = load_library(rtx_only=target != NATIVE)
    if trt.__name__ == "tensorrt_rtx" and f"sm{capability}" in IMPOSSIBLE:
        _require_known(f"sm{capability}")
    started = time.perf_counter()
    plan = _compile(trt, graph, shapes, None if target == NATIVE else target)
    return plan, Report(
        library=trt.__name__,
        version=trt.__version__,
        target=target,
        capability=f"sm{capability}",
        precision="float32, weights FP8 E4M3" if fp8 else "float32",
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        seconds=round(time.perf_counter() - started, 3),
    )


def cloud_shapes(target: KVLayout, rank: int, tokens: int = 0) -> Shapes:
    """The shapes of a cloud half's inputs, for batches from 1 to `MAX_BATCH`."""
    tokens = tokens or target.tokens  # the source's
    layers = (target.layers, 1) if target.layer_ropes else ()
    table = ((*layers, target.tokens, target.rope.rotary_dim),) * 3
    one, best, most = 1, BEST_BATCH, MAX_BATCH
    return {
        "latents": ((one, tokens, rank), (best, tokens, rank), (most, tokens, rank)),
        "kept": ((one, tokens), (best, tokens), (most, tokens)),
        "cos": table,
        "sin": table,
    }


def holds_fp8(graph: bytes) -> bool:
    """Whether a graph's weights are in FP8 (`projector.serving.export.export_fp8`)."""
    return b"DequantizeLinear" in graph


def load_library(rtx_only: bool = False) -> Any:
    """The `tensorrt` module, or `tensorrt_rtx` if only that is installed.

    Args:
        rtx_only: accept only `tensorrt_rtx`, which compiles for GPUs in other machines.

    Raises:
        ConfigError: it is not installed.
    """
    for name in ("tensorrt_rtx",) if rtx_only else ("tensorrt", "tensorrt_rtx"):
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError):
            continue
        if hasattr(module, "OnnxParser"):
            return module
    if rtx_only:
        raise ConfigError(
            "compiling for a named target needs the package tensorrt-rtx: install the extra "
            "'tensorrt-rtx', or build for 'native' on the machine that will run the plan"
        )
    raise ConfigError(
        "a plan needs the package tensorrt (or tensorrt-rtx): install the extra 'tensorrt', or "
        "serve with 'onnxruntime'"
    )


@functools.cache
def gpu_capability() -> int | None:
    """The first NVIDIA GPU's compute capability, such as 89; None if the driver sees none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    parts = []
    for attribute in (_MAJOR, _MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        parts.append(value.value)
    return 10 * parts[0] + parts[1]


def require_target(target: str, fp8: bool = False) -> int:
    """The compute capability of a target; compiles nothing.

    Args:
        target: one of `TARGETS`.
        fp8: whether the graph's weights are FP8.

    Raises:
        ConfigError: the target is unknown, or `native` finds no GPU.
        BundleFormatError: the target does not support FP8.
    """
    if target == NATIVE:
        found = gpu_capability()
        if found is None:
            raise ConfigError("the target 'native' needs an NVIDIA GPU, and the driver sees none")
    else:
        _require_known(target)
        found = CAPABILITIES[target]
    if fp8 and found < FP8_CAPABILITY:
        raise BundleFormatError(
            f"FP8 weights need compute capability {FP8_CAPABILITY} (sm{FP8_CAPABILITY}) or later, "
            f"the target '{target}' is sm{found}: build it without FP8"
        )
    return found


def _require_known(target: str) -> None:
    if target in IMPOSSIBLE:
        raise ConfigError(f"no plan can be built for '{target}' ({IMPOSSIBLE[target]})")
    if target not in CAPABILITIES:
        raise ConfigError(f"there is no target '{target}' (there are {', '.join(TARGETS)})")


def _compile(trt: Any, graph: bytes, shapes: Shapes, named: str | None) -> bytes:
    log = _log(trt)
    log.messages.clear()
    builder = trt.Builder(log)
    # Strongly typed: number types come from the graph; the builder chooses none.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BundleFormatError(f"TensorRT cannot parse the graph: {reasons}")
    config = builder.create_builder_config()
    if named is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, named.upper()), 0)
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "; ".join(log.messages) or "it gives no reason"
        raise BundleFormatError(f"TensorRT cannot compile the graph for {named or NATIVE}: {said}")
    return bytes(plan)


@functools.cache
def _log(trt: Any) -> Any:
    """Keeps the library's complaints. Only one is made: the library never releases the first."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(message)

    return Log()
