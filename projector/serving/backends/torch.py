"""The torch backend: the trained module itself, for development and for engines that hold torch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from projector import maps
from projector.serving.backends.base import Backend, CloudFiles, Floats
from protos.errors import BundleFormatError, BundleLayoutError, ConfigError


class TorchBackend(Backend):
    """`cloud.safetensors` in eager torch; threads are the process's (`torch.set_num_threads`)."""

    name: ClassVar[str] = "torch"

    def _open(self, files: CloudFiles) -> None:
        half: Any = self._read(files.weights)
        ends, target = half.boundaries, self.target
        theirs = (ends.rank, ends.tokens_in, ends.tokens_out, ends.rotary_dim)
        ours = (self.rank, self.tokens, target.tokens, target.rope.rotary_dim)
        if theirs != ours:
            raise BundleFormatError(
                f"the cloud half is for (rank, tokens in, tokens out, rotary_dim) {theirs}, "
                f"the bundle says {ours}"
            )
        try:
            self._half = half.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"torch has no device '{self.device}' here: {error}") from error

    def _read(self, weights: bytes) -> Any:
        """Any family's map between the graph's boundaries."""
        source = self.source if maps.is_cloud_half(weights) else None
        try:
            made = maps.load(weights, source, self.target)
        except BundleLayoutError as error:
            raise BundleFormatError(f"cloud.safetensors: {error}") from error
        return maps.ServedMap(made).eval()

    def _run(
        self, latents: Floats, kept: Floats, cos: Floats, sin: Floats
    ) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            inputs = (torch.from_numpy(a).to(self.device) for a in (latents, kept, cos, sin))
            keys, values = self._half(*inputs)
        return keys.cpu().numpy(), values.cpu().numpy()
