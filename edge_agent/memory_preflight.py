"""Says before a model is loaded whether it fits into the memory that is free, and what would.

On a Jetson the GPU has no memory of its own: its copy of the weights counts beside the host's.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projector.models.exported.manifest import is_export, read_manifest
from projector.models.running import AUTO, has_gpu
from protos.errors import NoMemoryError
from protos.process.memory import Available, available

_MIB = 1 << 20
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TORCH_BYTES = 340 * _MIB
"""Torch and transformers, imported (measured: 328 MiB)."""
RUNTIME_BYTES = 60 * _MIB
"""ONNX Runtime with a tiny model (measured: 57 MiB)."""
CUDA_BYTES = 600 * _MIB
"""Context and kernels of CUDA; not measured here."""
_ACTIVATIONS = 0.1  # of the weights, at least `_LEAST_ACTIVATIONS`
_LEAST_ACTIVATIONS = 16 * _MIB
_QUESTION_TOKENS = 256
_DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)  # what a file that holds something else can raise while it is read


@dataclass(frozen=True)
class Need:
    """Memory that a model needs beside the agent, bytes.

    Attributes:
        weights: in the number format that it runs in.
        working: libraries, and activations of one picture.
        cache: the longest cache, twice while it grows.
        gpu: the copy on the GPU, with CUDA's own; 0 on the CPU.
    """

    weights: int
    working: int
    cache: int
    gpu: int = 0

    @property
    def host(self) -> int:
        """Without the GPU's part."""
        return self.weights + self.working + self.cache


def need_of(path: Path, device: str, dtype: str, max_new_tokens: int) -> Need:
    """Estimate what a model needs; its weights are not read.

    Args:
        path: an edge export (its own figure is measured) or a checkpoint.
        device: as in the settings.
        dtype: of a checkpoint.
        max_new_tokens: longest answer.

    Raises:
        ModelError: the export's description cannot be read.
    """
    gpu = device.startswith(("cuda", "tensorrt"))
    if is_export(path):
        manifest = read_manifest(path)
        layout = manifest.kv_layout
        weights = sum(f.bytes for name, f in manifest.files.items() if name.endswith(".weights"))
        tokens = layout.tokens + len(manifest.prompt.before) + _QUESTION_TOKENS + max_new_tokens
        cache = 2 * 4 * layout.state_dim * tokens
        working = max(0, manifest.resident_bytes - weights)
    else:
        weights = _numbers(path) * _BYTES.get(dtype, 4)
        working = TORCH_BYTES + max(_LEAST_ACTIVATIONS, int(_ACTIVATIONS * weights))
        cache = 2 * _BYTES.get(dtype, 4) * _state_dim(path) * (2048 + max_new_tokens)
    return Need(weights, working, cache, weights + cache + CUDA_BYTES if gpu else 0)


def require_memory(
    path: Path,
    device: str,
    dtype: str,
    max_new_tokens: int,
    free: Available | None = None,
    gpu_free: int | None = None,
) -> tuple[Need, Available | None]:
    """Refuse a model that does not fit.

    Args:
        path: as in `need_of`.
        device: as in `need_of`; auto counts a GPU that is there.
        dtype: as in `need_of`.
        max_new_tokens: as in `need_of`.
        free: memory of the host; looked up by default.
        gpu_free: bytes of a GPU with memory of its own; looked up by default.

    Returns:
        What it needs and what is free; None where the system does not say.

    Raises:
        NoMemoryError: it does not fit; the message says what would.
        ModelError: as `need_of`.
    """
    if device == AUTO and has_gpu():
        device = "cuda"
    need = need_of(path, device, dtype, max_new_tokens)
    free = free or available()
    if free is None:
        return need, None
    if need.gpu and gpu_free is None:
        gpu_free = gpu_free_bytes()
    unified = need.gpu if gpu_free is None else 0
    if need.host + unified > free.bytes:
        raise NoMemoryError(
            f"{path} needs about {_mib(need.host + unified)} ({_mib(need.weights)} of weights"
            + (f", {_mib(unified)} for the GPU, which shares the memory" if unified else "")
            + f"), {_mib(free.bytes)} are free ({free.because}): "
            + _would_fit(path, device, dtype, max_new_tokens, free.bytes)
        )
    if gpu_free is not None and need.gpu > gpu_free:
        raise NoMemoryError(
            f"{path} needs about {_mib(need.gpu)} on the GPU, {_mib(gpu_free)} are free there: "
            "end what else uses it, or use --device cpu"
        )
    return need, free


def _would_fit(path: Path, device: str, dtype: str, max_new_tokens: int, free: int) -> str:
    """What fits instead, with its need."""
    found = []
    gpu = device != "cpu" and device != AUTO
    if gpu and need_of(path, "cpu", dtype, max_new_tokens).host <= free:
        found.append("--device cpu")
    if not is_export(path):
        half = need_of(path, device, "bfloat16", max_new_tokens)
        if _BYTES.get(dtype) == 4 and half.host + half.gpu <= free:
            found.append(f"--dtype bfloat16 (about {_mib(half.host + half.gpu)})")
        whole = need_of(path, device, "float32", max_new_tokens)
        exported = whole.host - TORCH_BYTES + RUNTIME_BYTES
        if exported <= free:
            found.append(f"an export by projector export-edge (about {_mib(exported)})")
    if found:
        return "use " + " or ".join(found)
    fixed = RUNTIME_BYTES + _LEAST_ACTIVATIONS
    room = max(0, free - fixed) / (1 + _ACTIVATIONS)
    if room < _MIB:
        return "nothing fits: end what else runs, or raise the memory limit"
    return f"no format of it fits: take a model of at most {_mib(int(room))} of weights"


def _mib(size: int) -> str:
    return f"{math.ceil(size / _MIB):,} MiB"


def gpu_free_bytes() -> int | None:
    """Free memory of the first GPU with memory of its own (NVML); None if there is none."""

    class Memory(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    with suppress(OSError, AttributeError):
        nvml, handle, held = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p(), Memory()
        if nvml.nvmlInit_v2():
            return None
        try:
            if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
                return None
            if not nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(held)):
                return int(held.free)
        finally:
            nvml.nvmlShutdown()
    return None


# ------------------------------------------------------------------ a checkpoint's headers


def _numbers(folder: Path) -> int:
    """Numbers in a checkpoint's weights, from the headers; 0 if they cannot be read."""
    return sum(_numbers_of(file) for file in folder.glob("*.safetensors"))


def _numbers_of(file: Path) -> int:
    if not file.is_file():  # opening a named pipe would wait for whoever writes it
        return 0
    with suppress(OSError, *_DAMAGED), file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length <= 1 << 27:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            return int(sum(math.prod(entry["shape"]) for entry in header.values()))
    return 0  # loading it says what is wrong


def _state_dim(folder: Path) -> int:
    """Numbers of one token's cache, from the configuration; 0 if it does not say."""
    file = folder / "config.json"
    with suppress(OSError, *_DAMAGED):
        plain = json.loads(file.read_bytes()) if file.is_file() else {}
        for text in _inner(plain):
            layers, heads = text["num_hidden_layers"], text["num_attention_heads"]
            kv_heads = text.get("num_key_value_heads") or heads
            size = text.get("head_dim") or text["hidden_size"] // heads
            return int(2 * layers * kv_heads * size)
    return 0


def _inner(plain: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The text model's part of a configuration."""
    for part in (plain.get("text_config"), plain.get("llm_config"), plain):
        if isinstance(part, dict) and part.get("num_hidden_layers"):
            yield part
