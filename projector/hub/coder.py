"""The coder of a new edge half: its steps, entropy tables and ladder.

Latents mean the same in every edge half of a hub, so with few pictures the hub's own tables and
mean latents serve. With many, tables are fitted to the edge model's own latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from projector.calibration.calibrate import FINEST, make_encoder
from projector.calibration.ladder import FIRST_INDEX, Judge, hull, tabled
from projector.codec.arrays import Floats
from projector.codec.encoder import Encoder
from projector.codec.regrid import Regrid
from projector.hub.half import FittedHalf
from projector.hub.space import LatentSpace
from projector.maps.base import grid_weights
from protos.layout import KVLayout
from protos.points import Measured, OperatingPoint
from protos.process.progress import Progress
from protos.quantize import UniformQuantizer
from protos.state import KVState

OWN_TABLES = 256
"""Fewest pictures that entropy tables are fitted to; with fewer, the hub's serve."""
_PRIOR_PICTURES = 32
"""The hub's mean latents weigh as much as this many pictures of the edge model."""


def encoder_for(
    space: LatentSpace,
    source: KVLayout,
    half: FittedHalf,
    x: npt.NDArray[np.floating],
    weights: Floats | None = None,
) -> Encoder:
    """An edge half with the hub's points, and its own statistics.

    Args:
        space: the hub's latent space.
        source: the small model's layout.
        half: what was fitted.
        x: states on the hub's grid, `[n, N, d_s]`.
        weights: from the small model's grid to the hub's, `[N, N_source]`; bilinear by default.
    """
    own, n = half.project(x).mean(axis=0), len(x)
    centre = (n * own + _PRIOR_PICTURES * space.centre) / (n + _PRIOR_PICTURES)
    finest = space.steps.get(FINEST)
    coded = [p for p in space.points if p.quantizer == UniformQuantizer.name]
    if finest is None:
        finest = min((space.steps[p.steps] for p in coded), key=lambda s: float(np.log(s).sum()))
    made = make_encoder(
        source,
        x,
        x_mean=half.x_mean,
        x_scale=half.x_scale,
        projection=half.projection,
        centre=centre.astype(np.float32),
        steps=finest,
        coarseness={},
    )
    bilinear = grid_weights(source.grid, space.grid)
    if weights is None and bilinear is not None:
        weights = bilinear.numpy()
    fp8 = {"fp8": made.steps["fp8"]} if "fp8" in space.steps else {}
    few = n < OWN_TABLES
    return replace(
        made,
        points=space.points,
        steps={**space.steps, **fp8, FINEST: finest},
        entropy=space.entropy,
        regrid=None if weights is None else Regrid(weights, space.grid),
        latent_mean=space.latent_mean if few else made.latent_mean,
        latent_inv_cov=space.latent_inv_cov if few else made.latent_inv_cov,
    )


def with_own_tables(encoder: Encoder, sample: Sequence[KVState]) -> Encoder:
    """The encoder with its entropy tables fitted to its own latents; points and steps stay."""
    coded = [p for p in encoder.points if p.quantizer == UniformQuantizer.name]
    plans = [(replace(p, name=p.steps), _coarseness(encoder, p)) for p in coded]
    made = tabled(encoder, plans, sample)
    return replace(encoder, entropy={**encoder.entropy, **made.entropy})


def _coarseness(encoder: Encoder, point: OperatingPoint) -> float:
    """A point's steps in multiples of the finest; they are the same multiple in every latent."""
    return float(np.median(encoder.steps[point.steps] / encoder.steps[FINEST]))


def rungs(
    encoder: Encoder, judge: Judge, native: float, within: float
) -> tuple[Encoder, int, tuple[int, ...]]:
    """Measure every point on pictures kept apart; keep those on the convex hull.

    Args:
        encoder: with the hub's points.
        judge: asks about pictures kept apart.
        native: accuracy of the large model from its own caches of them.
        within: the default is the cheapest point that loses at most this much against it.

    Returns:
        The encoder with measured points, the default point's index, the ladder.
    """
    found: list[OperatingPoint] = []
    with Progress("ladder", len(encoder.points), "point") as bar:
        for point in encoder.points:
            found.append(replace(point, measured=judge.measure(encoder, point).measured))
            bar.advance()
    coded = [p for p in found if p.quantizer == UniformQuantizer.name]
    best = hull([_of(p).payload_bytes for p in coded], [_of(p).accuracy for p in coded])
    chosen = [replace(coded[at], index=FIRST_INDEX + rung) for rung, at in enumerate(best)]
    fixed = [p for p in found if p.quantizer != UniformQuantizer.name]
    points = sorted((*chosen, *fixed), key=lambda p: _of(p).payload_bytes)
    used = {point.steps for point in points} | {FINEST}
    kept = replace(
        encoder,
        points=tuple(points),
        steps={name: steps for name, steps in encoder.steps.items() if name in used},
        entropy={name: tables for name, tables in encoder.entropy.items() if name in used},
    )
    near = [p for p in chosen if _of(p).accuracy >= native - within] or [chosen[-1]]
    return kept, near[0].index, tuple(point.index for point in points)


def _of(point: OperatingPoint) -> Measured:
    assert point.measured is not None, "every point was measured"
    return point.measured


def usual(space: LatentSpace, pictures: int) -> Floats:
    """The mean latents at each place, for a number of pictures, `[n, N, r]`: a control."""
    tiled: Floats = np.tile(space.centre, (pictures, 1, 1))
    return tiled
