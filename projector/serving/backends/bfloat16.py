"""The fast backend on processors that multiply bfloat16: the module in torch, products rounded."""

from __future__ import annotations

from typing import Any, ClassVar

from projector import maps
from projector.serving.backends.torch import TorchBackend


class BFloat16Backend(TorchBackend):
    """`cloud.safetensors` in torch, its matrix products in bfloat16 (`maps.RoundedMap`)."""

    name: ClassVar[str] = "bfloat16"

    def _read(self, weights: bytes) -> Any:
        return maps.RoundedMap(super()._read(weights))
