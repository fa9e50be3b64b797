"""The torch backend: the trained module itself, for development and for engines that hold torch."""

from __future__ import annotations

from typing import ClassVar

import torch

from projector.backends.base import Backend, CloudFiles, Floats
from projector.maps.low_rank import CloudHalf
from protos.errors import BundleFormatError, ConfigError


class TorchBackend(Backend):
    """`cloud.safetensors` in eager torch; threads are the process's (`torch.set_num_threads`)."""

    name: ClassVar[str] = "torch"

    def _open(self, files: CloudFiles) -> None:
        half = CloudHalf.from_bytes(files.weights)
        made, target = half.config, self.target
        theirs = (made.rank, made.layers, made.kv_heads, made.head_dim, made.tokens)
        ours = (self.rank, target.layers, target.kv_heads, target.head_dim, target.tokens)
        if theirs != ours:
            raise BundleFormatError(
                f"the cloud half is for (rank, layers, heads, head_dim, tokens) {theirs}, "
                f"the bundle says {ours}"
            )
        try:
            self._half = half.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"torch has no device '{self.device}' here: {error}") from error

    def _run(
        self, latents: Floats, kept: Floats, cos: Floats, sin: Floats
    ) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            inputs = (torch.from_numpy(a).to(self.device) for a in (latents, kept, cos, sin))
            keys, values = self._half(*inputs)
        return keys.cpu().numpy(), values.cpu().numpy()
