"""The family of serving backends: what runs a bundle's cloud half.

A member is imported only when it is asked for, so that a process needs the packages of one alone.
"""

from __future__ import annotations

import difflib
import importlib

from projector.serving.backends.base import Backend, CloudFiles
from protos.errors import ConfigError

BACKENDS: dict[str, str] = {
    "onnxruntime": "projector.serving.backends.onnxruntime:OnnxRuntimeBackend",
    "torch": "projector.serving.backends.torch:TorchBackend",
    "bfloat16": "projector.serving.backends.bfloat16:BFloat16Backend",
    "tensorrt": "projector.serving.backends.tensorrt:TensorRTBackend",
}
"""Name to `module:class`."""

__all__ = ["BACKENDS", "Backend", "CloudFiles", "get"]


def get(name: str) -> type[Backend]:
    """The backend class of that name.

    Raises:
        ConfigError: there is none (the message names the nearest), or what it needs is missing.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, BACKENDS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"there is no backend '{name}' (there are {', '.join(BACKENDS)}){hint}")
    module, _, cls = BACKENDS[name].partition(":")
    try:
        found: type[Backend] = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        raise ConfigError(f"the backend '{name}' needs a package: {error}") from error
    return found
