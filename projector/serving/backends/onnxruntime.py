"""The default backend off a GPU: ONNX Runtime. Imports no torch."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnxruntime

from projector.serving.backends.base import Backend, CloudFiles, Floats
from protos.errors import BundleFormatError, ConfigError

_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Providers for each device. The first is required; the others run what it does not support."""
_INPUTS = {"latents", "kept", "cos", "sin"}


class OnnxRuntimeBackend(Backend):
    """`cloud.onnx` in an ONNX Runtime session."""

    name: ClassVar[str] = "onnxruntime"

    def _open(self, files: CloudFiles) -> None:
        name, _, number = self.device.partition(":")
        wanted, there = _PROVIDERS.get(name, ()), onnxruntime.get_available_providers()
        if not wanted or wanted[0] not in there or (number and not number.isdecimal()):
            raise ConfigError(
                f"onnxruntime has no device '{self.device}' here; it has "
                f"{', '.join(onnxruntime.get_available_providers())}"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        # A thread that waits must not keep the one it waits for from running.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                files.graph,
                options,
                providers=[
                    (one, {"device_id": number or "0"} if one != "CPUExecutionProvider" else {})
                    for one in wanted
                    if one in there
                ],
            )
        except Exception as error:  # its exceptions share no public base
            raise BundleFormatError(f"onnxruntime cannot run cloud.onnx: {error}") from error
        if {value.name for value in self._session.get_inputs()} != _INPUTS:
            raise BundleFormatError("cloud.onnx does not take latents, kept, cos and sin")

    def _run(
        self, latents: Floats, kept: Floats, cos: Floats, sin: Floats
    ) -> tuple[Floats, Floats]:
        keys, values = self._out(len(latents)), self._out(len(latents))
        binding = self._session.io_binding()
        for name, given in (("latents", latents), ("kept", kept), ("cos", cos), ("sin", sin)):
            binding.bind_cpu_input(name, given)
        for name, made in (("keys", keys), ("values", values)):
            binding.bind_output(name, "cpu", 0, np.float32, made.shape, made.ctypes.data)
        self._session.run_with_iobinding(binding)
        return keys, values

    def _out(self, frames: int) -> Floats:
        """Where the session writes keys or values; it would copy them out of its own memory."""
        made = self.target
        return np.empty(
            (made.layers, frames, made.kv_heads, made.tokens, made.head_dim), dtype=np.float32
        )
