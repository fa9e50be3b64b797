"""What a serving backend is: latents in, the target's rotated cache out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protos.errors import FrameMalformedError
from protos.layout import KVLayout
from protos.process.threads import choose

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CloudFiles:
    """A bundle's cloud half in both of its forms.

    Attributes:
        weights: a safetensors blob (`Map.to_bytes`).
        graph: an ONNX model with inputs latents, kept, cos, sin and outputs keys, values.
        bundle: digest of their bundle; empty before the bundle is written.
    """

    weights: bytes
    graph: bytes
    bundle: str = field(default="", compare=False)


class Backend(ABC):
    """Runs a cloud half. One instance serves one thread at a time.

    Args:
        files: the cloud half.
        target: the layout that it writes.
        rank: numbers per latent.
        threads: intra-operator threads; 0 for as many as fit (`protos.process.threads`).
        device: where it runs, as the library names devices.
        source: the layout that latents are of; None where its grid is the target's.
        plans: folder for compiled plans; None to keep none.

    Raises:
        BundleFormatError: the files are not what the backend can run.
        ConfigError: the device, or a package, is missing.
    """

    name: ClassVar[str]

    def __init__(
        self,
        files: CloudFiles,
        target: KVLayout,
        rank: int,
        threads: int = 1,
        device: str = "cpu",
        source: KVLayout | None = None,
        plans: Path | None = None,
    ) -> None:
        self.target, self.rank, self.device = target, rank, device
        self.threads = choose(threads).count
        self.source, self.plans = source, plans
        self.tokens = target.tokens if source is None else source.tokens
        self._tables: tuple[bytes, Floats, Floats] | None = None
        self._open(files)

    def project(
        self,
        latents: Floats,
        kept: npt.NDArray[np.bool_],
        positions: npt.NDArray[np.int64],
    ) -> tuple[Floats, Floats]:
        """The target's cache of the image tokens.

        Args:
            latents: `[B, N, r]`; rows of dropped tokens are ignored.
            kept: `[B, N]`.
            positions: of the image tokens in the target's prompt, `[M]`.

        Returns:
            Keys (rotated) and values, float32 `[layers, B, kv_heads, M, head_dim]`.

        Raises:
            FrameMalformedError: shapes that do not fit the target.
        """
        tokens, made = self.tokens, self.target.tokens
        if (
            latents.ndim != 3
            or latents.shape[1:] != (tokens, self.rank)
            or kept.shape != latents.shape[:2]
            or len(positions) != made
        ):
            raise FrameMalformedError(
                f"the map takes latents [B, {tokens}, {self.rank}], kept [B, {tokens}] and "
                f"{made} positions, not {latents.shape}, {kept.shape} and {len(positions)}"
            )
        cos, sin = self._cos_sin(positions)
        return self._run(
            np.ascontiguousarray(latents, dtype=np.float32), kept.astype(np.float32), cos, sin
        )

    def _cos_sin(self, positions: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """The target's tables, kept between calls: positions hardly change."""
        key = positions.tobytes()
        if self._tables is None or self._tables[0] != key:
            self._tables = (key, *self.target.rotation.cos_sin(positions))
        return self._tables[1], self._tables[2]

    @abstractmethod
    def _open(self, files: CloudFiles) -> None:
        """Load the cloud half."""

    @abstractmethod
    def _run(
        self, latents: Floats, kept: Floats, cos: Floats, sin: Floats
    ) -> tuple[Floats, Floats]:
        """Run it; shapes have been checked."""
