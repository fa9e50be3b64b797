"""Makes the latent space of a hub from a trained bundle and paired caches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from projector.bundle.load import Bundle
from projector.codec.arrays import Floats
from projector.hub.space import LatentSpace, Reading, fit_reading
from projector.maps.base import grid_weights
from protos.errors import ConfigError
from protos.layout import KVLayout

_CHUNK = 64


def onto_grid(
    states: npt.NDArray[np.floating], source: tuple[int, int], target: tuple[int, int]
) -> npt.NDArray[np.floating]:
    """States `[n, N, d]` of one grid, interpolated to another `[n, M, d]`; themselves if equal."""
    weights = grid_weights(source, target)
    if weights is None:
        return states
    between = weights.numpy()
    parts = [
        between @ states[at : at + _CHUNK].astype(np.float32)
        for at in range(0, len(states), _CHUNK)
    ]
    moved: Floats = np.concatenate(parts)
    return moved


def latents_of(bundle: Bundle, x: npt.NDArray[np.floating]) -> Floats:
    """Latents `[n, N, r]` of a bundle's own edge model, from its flat states `[n, N, d_s]`."""
    parts = [
        bundle.encoder.project(x[at : at + _CHUNK].astype(np.float32))
        for at in range(0, len(x), _CHUNK)
    ]
    latents: Floats = np.concatenate(parts)
    return latents


def make_space(
    bundle: Bundle, target: KVLayout, x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]
) -> tuple[LatentSpace, Reading]:
    """The latent space of a bundle, which becomes a hub of one.

    Args:
        bundle: a bundle of pictures.
        target: the large model's layout.
        x: the edge model's states of some pictures, `[n, N, d_s]`.
        y: the large model's states of the same, `[n, M, d_r]`.

    Raises:
        ConfigError: a bundle of texts, or one whose map goes both ways.
    """
    encoder = bundle.encoder
    if encoder.text:
        raise ConfigError("a hub is of pictures: tokens of texts have no grid to share")
    if bundle.feedback is not None:
        raise ConfigError(
            f"bundle '{bundle.info.id}' goes both ways: its way back belongs to one edge model, "
            "so it cannot be a hub"
        )
    z = latents_of(bundle, x)
    grid = encoder.grid or bundle.info.source.grid
    reading = fit_reading(onto_grid(y, target.grid, grid), z)
    flat = z.reshape(-1, encoder.rank)
    space = LatentSpace(
        target_fingerprint=target.fingerprint,
        grid=grid,
        points=tuple(replace(p, measured=None) for p in encoder.points if p.kind != "picture"),
        reading=reading.matrix,
        y_mean=reading.y_stats.mean,
        y_scale=reading.y_stats.scale,
        centre=encoder.centre,
        latent_mean=flat.mean(axis=0),
        latent_scale=np.maximum(flat.std(axis=0), 1e-6).astype(np.float32),
        latent_inv_cov=encoder.latent_inv_cov,
        steps=encoder.steps,
        entropy=encoder.entropy,
    )
    return space, reading
