"""The TensorRT backend, for a machine with an NVIDIA GPU (TensorRT or TensorRT-RTX).

Opening it compiles the plan (`projector/serving/tensorrt_build.py`), or loads it from the cache of
plans. It serves batches of 1 to 64. Buffers are torch's; vendor packages are imported on opening.

Attributes of an open one: `report` of the compilation, None if `from_cache`.
"""

from __future__ import annotations

import hashlib
import importlib
from typing import Any, ClassVar

from projector.serving import tensorrt_build
from projector.serving.backends.base import Backend, CloudFiles, Floats
from projector.serving.plan_cache import PlanCache, PlanKey, driver_version
from protos.errors import BundleFormatError, ConfigError


class TensorRTBackend(Backend):
    """`cloud.onnx`, compiled for the GPU at hand."""

    name: ClassVar[str] = "tensorrt"

    def _open(self, files: CloudFiles) -> None:
        self._trt = tensorrt_build.load_library()
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise ConfigError("the backend 'tensorrt' keeps its buffers in torch") from error
        if not self._torch.cuda.is_available():
            raise ConfigError("the backend 'tensorrt' needs an NVIDIA GPU; torch sees none")
        self._gpu = self._torch.device(self.device if self.device != "cpu" else "cuda")
        shapes = tensorrt_build.cloud_shapes(self.target, self.rank, self.tokens)
        with self._torch.cuda.device(self._gpu):
            plan = self._plan(files, shapes)
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleFormatError("TensorRT cannot load the engine it compiled on this GPU")
        self._context = self._engine.create_execution_context()
        self._stream = self._torch.cuda.Stream(device=self._gpu)

    def _plan(self, files: CloudFiles, shapes: tensorrt_build.Shapes) -> bytes:
        """The plan for this GPU, driver and library, from the cache or compiled now."""
        self.report: tensorrt_build.Report | None = None

        def compile() -> bytes:
            plan, self.report = tensorrt_build.build(files.graph, tensorrt_build.NATIVE, shapes)
            return plan

        self.from_cache = False
        if self.plans is None:
            return compile()
        torch = self._torch
        major, minor = torch.cuda.get_device_capability(self._gpu)
        key = PlanKey(
            bundle=files.bundle,
            graph=hashlib.sha256(files.graph).hexdigest(),
            gpu=f"{torch.cuda.get_device_name(self._gpu)} sm{major}{minor}",
            driver=driver_version(),
            library=f"{self._trt.__name__} {self._trt.__version__}",
            shapes=repr(sorted(shapes.items())),
        )
        plan, self.from_cache = PlanCache(self.plans).plan(key, compile)
        return plan

    def _run(
        self, latents: Floats, kept: Floats, cos: Floats, sin: Floats
    ) -> tuple[Floats, Floats]:
        if len(latents) > tensorrt_build.MAX_BATCH:
            raise ConfigError(
                f"the engine serves batches up to {tensorrt_build.MAX_BATCH}, not {len(latents)}"
            )
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
