"""Which number format the engine's matrix products have, and which backend follows from it."""

from __future__ import annotations

import torch

from cloud_server.settings import Settings
from projector.models.autocast import product_type


def rounds(settings: Settings) -> bool:
    """Whether the large model's linear layers, in float32, multiply bfloat16 numbers."""
    if settings.precision == "auto":
        on_cpu = torch.device(settings.device).type == "cpu"
        return on_cpu and product_type() is torch.bfloat16
    return settings.precision == "bfloat16"


def backend_of(settings: Settings) -> str:
    """The name of the maps' backend."""
    if settings.backend != "auto":
        return settings.backend
    return "bfloat16" if settings.backend_device == "cpu" and rounds(settings) else "onnxruntime"
