"""Where a model runs, and whether that is what this machine could do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

AUTO = "auto"
"""The best device that there is."""
_GPU_FILES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/nvmap")


@dataclass(frozen=True)
class Running:
    """Where a model runs.

    Attributes:
        device: as found after loading.
        wanted: as asked for; auto for the best one.
        fallback: why something slower runs than this machine has; empty if nothing does.
        nodes: nodes of an export's graphs by ONNX Runtime's provider, if it tells.
    """

    device: str
    wanted: str
    fallback: str = ""
    nodes: Mapping[str, int] = field(default_factory=dict)


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU (a Jetson's included)."""
    return any(os.path.exists(file) for file in _GPU_FILES)
