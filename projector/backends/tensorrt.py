"""The TensorRT backend, for a machine with an NVIDIA GPU (TensorRT or TensorRT-RTX).

The engine is compiled when it is opened (under a second for graphs of this size) and serves
batches from 1 to 64. Buffers are torch's. Vendor packages are imported when a backend is opened.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from projector.backends.base import Backend, CloudFiles, Floats
from protos.errors import BundleFormatError, ConfigError

MAX_BATCH = 64
BEST_BATCH = 16


class TensorRTBackend(Backend):
    """`cloud.onnx`, compiled for the GPU at hand."""

    name: ClassVar[str] = "tensorrt"

    def _open(self, files: CloudFiles) -> None:
        self._trt = load_library()
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise ConfigError("the backend 'tensorrt' keeps its buffers in torch") from error
        if not self._torch.cuda.is_available():
            raise ConfigError("the backend 'tensorrt' needs an NVIDIA GPU; torch sees none")
        self._gpu = self._torch.device(self.device if self.device != "cpu" else "cuda")
        plan = compile_engine(self._trt, files.graph, self._shapes())
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleFormatError("TensorRT cannot load the engine it compiled on this GPU")
        self._context = self._engine.create_execution_context()
        self._stream = self._torch.cuda.Stream(device=self._gpu)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        tokens, rotary = self.target.tokens, self.target.rope.rotary_dim
        table = ((tokens, rotary),) * 3
        batches = (1, BEST_BATCH, MAX_BATCH)
        return {
            "latents": tuple((batch, tokens, self.rank) for batch in batches),
            "kept": tuple((batch, tokens) for batch in batches),
            "cos": table,
            "sin": table,
        }

    def _run(
        self, latents: Floats, kept: Floats, cos: Floats, sin: Floats
    ) -> tuple[Floats, Floats]:
        if len(latents) > MAX_BATCH:
            raise ConfigError(f"the engine serves batches up to {MAX_BATCH}, not {len(latents)}")
        torch, target = self._torch, self.target
        shape = (target.layers, len(latents), target.kv_heads, target.tokens, target.head_dim)
        with torch.cuda.stream(self._stream):
            held = {
                name: torch.from_numpy(array).to(self._gpu)
                for name, array in zip(
                    ("latents", "kept", "cos", "sin"), (latents, kept, cos, sin), strict=True
                )
            }
            for name, tensor in held.items():
                self._context.set_input_shape(name, tuple(tensor.shape))
            for name in ("keys", "values"):
                held[name] = torch.empty(shape, dtype=torch.float32, device=self._gpu)
            for name, tensor in held.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise ConfigError("TensorRT could not run the engine; see its log")
            keys, values = held["keys"].cpu().numpy(), held["values"].cpu().numpy()
        return keys, values


def load_library() -> Any:
    """The `tensorrt` module, or `tensorrt_rtx` where only that is installed.

    Raises:
        ConfigError: neither is.
    """
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "OnnxParser"):
            return module
    raise ConfigError(
        "the backend 'tensorrt' needs the package tensorrt (or tensorrt-rtx): install the extra "
        "'tensorrt', or serve with 'onnxruntime'"
    )


def compile_engine(
    trt: Any,
    graph: bytes,
    shapes: dict[str, tuple[tuple[int, ...], ...]],
    capability: str | None = None,
) -> bytes:
    """Compile an ONNX graph.

    Args:
        trt: from `load_library`.
        graph: a serialized ONNX model.
        shapes: per input its smallest, best and largest shape.
        capability: with TensorRT-RTX, compile for this compute capability (such as `SM89`) with no
            GPU present.

    Raises:
        BundleFormatError: the parser or the builder refuses the graph.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BundleFormatError(f"TensorRT cannot parse cloud.onnx: {reasons}")
    config = builder.create_builder_config()
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleFormatError("TensorRT could not build an engine from cloud.onnx")
    return bytes(plan)
