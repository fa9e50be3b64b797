"""Views: the four states of a picture that a head can look at, map and models frozen (torch)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector import maps
from projector.bundle.files import DESCRIPTION
from projector.bundle.load import Bundle
from projector.codec.encoder import Encoder
from projector.training.corpus import Corpus
from projector.training.map_folder import map_bytes
from protos.errors import ConfigError, FitError
from protos.layout import KVLayout
from protos.points import OperatingPoint
from protos.state import KVState

VIEWS = ("projected", "native", "edge", "latents")
"""The map's output, the cloud model's own state, the edge model's state, and the latents."""

_BATCH = 32

Floats = npt.NDArray[np.float32]
Sent = tuple[Tensor, Tensor]  # latents [B, N, r] and kept tokens [B, N]


@dataclass(frozen=True)
class FrozenMap:
    """A map or a bundle, as a head sees it.

    Attributes:
        digest: SHA-256 of the map's bytes, or the bundle's digest.
        source: layout of the edge model.
        target: layout of the cloud model.
        rank: numbers per token that travel.
        down: turns source states `[B, N, d_s]` and received attention `[B, N]` into what is sent.
        up: turns what was sent into target states `[B, M, d_r]`, keys un-rotated.
    """

    digest: str
    source: KVLayout
    target: KVLayout
    rank: int
    down: Callable[[Floats, Floats], Sent]
    up: Callable[[Tensor, Tensor], Tensor]

    @classmethod
    def open(
        cls, path: Path, source: KVLayout, target: KVLayout, point: str | None = None
    ) -> FrozenMap:
        """Open a map (`projector train`) or a bundle, for the layouts of the running models.

        Args:
            path: the map's file or folder, or the bundle's folder.
            source: the edge model's layout.
            target: the cloud model's layout.
            point: operating point of a bundle: latents pass through its coding. By default they are
                not quantized.

        Raises:
            BridgeError: as `Bundle.load` and `maps.load`.
            FitError: the path holds neither.
            ConfigError: no such point, or one that carries no latents.
        """
        if (path / DESCRIPTION).is_file():
            return cls._of_bundle(Bundle.load(path, source, target), source, target, point)
        if point is not None:
            raise ConfigError(f"{path} is a map, not a bundle: it has no operating points")
        blob = map_bytes(path)
        made = maps.load(blob, source, target)

        def down(x: Floats, _attention: Floats) -> Sent:
            latents = made.down(made.normal(torch.from_numpy(x)))
            return latents, torch.ones(latents.shape[:2])

        digest = hashlib.sha256(blob).hexdigest()
        return cls(digest, source, target, made.rank, down, _up_of(made))

    @classmethod
    def _of_bundle(
        cls, bundle: Bundle, source: KVLayout, target: KVLayout, point: str | None
    ) -> FrozenMap:
        encoder = bundle.encoder
        chosen = None if point is None else _point(encoder, point)

        def down(x: Floats, attention: Floats) -> Sent:
            if chosen is None:
                placed = x if encoder.regrid is None else encoder.regrid.weights @ x
                latents = torch.from_numpy(encoder.project(placed))
                return latents, torch.ones(latents.shape[:2])
            rows = zip(x, attention, strict=True)
            sent = [_through(encoder, chosen, source, *row) for row in rows]
            received = torch.from_numpy(np.stack([latents for latents, _ in sent]))
            return received, torch.from_numpy(np.stack([kept for _, kept in sent])).float()

        up = _up_of(maps.load(bundle.cloud.weights, source, target))
        return cls(bundle.info.digest, source, target, encoder.rank, down, up)

    def owner(self, view: str) -> str:
        """What a head on that view belongs to: the map, or one of the models alone."""
        return self.owners(view)[0]

    def owners(self, view: str) -> tuple[str, ...]:
        """`owner`, then the name that older versions gave it."""
        own = {"native": self.target.fingerprints, "edge": self.source.fingerprints}
        return own.get(view, (self.digest,))

    def grid(self, view: str) -> tuple[int, int]:
        """Rows and columns of the view's tokens."""
        return (self.target if view in ("projected", "native") else self.source).grid

    def look(
        self, view: str, corpus: Corpus, pictures: npt.NDArray[np.int64] | None = None
    ) -> Iterator[Floats]:
        """Yield a corpus's states in one view, `[b, tokens, d]` at a time.

        Args:
            view: one of `VIEWS`.
            corpus: pairs of this map's models.
            pictures: indices of pictures, in order; by default all.

        Raises:
            ConfigError: no such view.
            FitError: states that are not finite.
        """
        if view not in VIEWS:
            raise ConfigError(f"there is no view '{view}': expected one of {', '.join(VIEWS)}")
        wanted = np.arange(len(corpus)) if pictures is None else pictures
        for begin in range(0, len(wanted), _BATCH):
            states = self._states(view, corpus, wanted[begin : begin + _BATCH])
            if not np.isfinite(states).all():
                raise FitError(f"the {view} states hold NaN or infinity")
            yield states

    def _states(self, view: str, corpus: Corpus, rows: npt.NDArray[np.int64]) -> Floats:
        if view == "native":
            native: Floats = corpus.y[rows].astype(np.float32)
            return native
        x: Floats = corpus.x[rows].astype(np.float32)
        if view == "edge":
            return x
        with torch.inference_mode():
            latents, kept = self.down(x, corpus.attention[rows].astype(np.float32))
            seen = latents if view == "latents" else self.up(latents, kept)
            found: Floats = seen.numpy()
        return found


def _up_of(made: maps.Map) -> Callable[[Tensor, Tensor], Tensor]:
    """A map's cloud half."""
    return lambda latents, kept: made.states(made.cloud(made.fill(latents, kept)))


def _point(encoder: Encoder, name: str) -> OperatingPoint:
    points = {point.name: point for point in encoder.points if point.kind == "latent"}
    if name not in points:
        raise ConfigError(f"no point '{name}' that carries latents: it has {', '.join(points)}")
    return points[name]


def _through(
    encoder: Encoder, point: OperatingPoint, layout: KVLayout, x: Floats, attention: Floats
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """One picture's latents as the cloud reads them, and which tokens were sent."""
    positions = np.arange(layout.tokens, dtype=np.int64)
    encoded = encoder.encode(KVState.from_flat(x, layout, positions, attention), point)
    received = encoder.decode(encoded.payload, encoded.kept, point)
    return encoder.scatter(received, encoded.kept), encoded.kept
