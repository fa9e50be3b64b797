"""Makes a bundle's edge half from a fitted map: steps, entropy tables, calibration statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from projector.bundle.feedback import Feedback
from projector.codec.encoder import Encoder
from projector.codec.feedback import FeedbackDecoder
from projector.maps.base import Map
from projector.maps.bidirectional import BidirectionalMap
from projector.training.ragged import Ragged
from protos.entropy.tables import EntropyTables
from protos.errors import ConfigError, FitError
from protos.layout import KVLayout
from protos.points import RAW_KV_FP8, OperatingPoint
from protos.quantize import UniformQuantizer
from protos.quantize.fp8_token import Fp8TokenQuantizer

COARSENESS = {"fine": 4.0, "medium": 8.0, "coarse": 12.0, "coarser": 16.0, "coarsest": 24.0}
"""Quantization steps of the ladder, in units of a map's own steps."""
TEXT_COARSENESS = {"fine": 1.0, "medium": 2.0, "coarse": 4.0, "coarser": 6.0, "coarsest": 8.0}
"""The same for texts: they have many small latents, which a picture's steps would round to 0."""
FEEDBACK_COARSENESS = {"fine": 1 / 32, "medium": 1 / 16, "coarse": 1 / 8}
"""Quantization steps of the feedback, as shares of a state's mean length."""
FINEST = "finest"
"""Name of the steps that coarseness multiplies, kept from the first calibration on."""
FP8_POINT, FLOAT_POINT = 10, 11
FIXED: dict[str, tuple[int, str]] = {
    "fp8": (FP8_POINT, "fp8_e4m3"),
    "float": (FLOAT_POINT, "none"),
    "fp8-tensor": (12, "fp8_e4m3"),
    "fp8-token": (13, Fp8TokenQuantizer.name),
    "int8": (14, "int8"),
    "int4": (15, "int4"),
}
"""Points whose frames all have one size: index and quantizer. `fp8` has a scale per latent."""
_E4M3_HALF_RANGE = 224.0
_LEVELS = {"int8": 127, "int4": 7}
_INT4_SIGMAS = 3.0  # four bits are spent on the bulk, not on the largest value
_CALIBRATION_PICTURES = 2048
_CALIBRATION_TOKENS = 8192  # of texts
_CHUNK = 64
_LEAST_VARIANCE = 1e-9

Floats = npt.NDArray[np.float32]


GRANULARITIES = ("tensor", "head", "channel")
"""What shares one static FP8 scale; a scale per token is sent (`fp8_e4m3_token`)."""
RAW_SCALES = (*GRANULARITIES, "token")


def fp8_steps(sample: npt.NDArray[np.floating], granularity: str, head_dim: int = 1) -> Floats:
    """Static FP8 scales: the largest value of a sample lands at half of E4M3's range.

    Args:
        sample: `[n, d]` latents, or flat states (key or value, layer, head, channel).
        granularity: one of `GRANULARITIES`.
        head_dim: channels of a head, if they share a scale.

    Returns:
        `[d]`, above 0.

    Raises:
        ConfigError: no such granularity, or heads that do not divide `d`.
    """
    largest = np.abs(sample).max(axis=0).astype(np.float32)
    if granularity == "tensor":
        largest = np.full_like(largest, largest.max())
    elif granularity == "head":
        if len(largest) % head_dim:
            raise ConfigError(f"heads of {head_dim} channels do not divide {len(largest)}")
        heads = largest.reshape(-1, head_dim).max(axis=1)
        largest = np.repeat(heads, head_dim)
    elif granularity != "channel":
        raise ConfigError(f"an FP8 scale is per {', '.join(GRANULARITIES)}, not '{granularity}'")
    steps: Floats = (largest / _E4M3_HALF_RANGE + 1e-12).astype(np.float32)
    return steps


def fixed_steps(name: str, moved: npt.NDArray[np.floating]) -> Floats | None:
    """Steps of a point of `FIXED`; None if it needs none.

    Args:
        name: name of the point.
        moved: `[n, r]` latents of a sample, minus the mean latents.

    Returns:
        `[r]`, above 0; all 1 for `fp8-token`, since its scales are sent.
    """
    quantizer = FIXED[name][1]
    if quantizer == "none":
        return None
    if quantizer == Fp8TokenQuantizer.name:
        return np.ones(moved.shape[1], dtype=np.float32)
    if quantizer == "fp8_e4m3":
        return fp8_steps(moved, "tensor" if name == "fp8-tensor" else "channel")
    largest = np.abs(moved).max(axis=0)
    if name == "int4":
        largest = np.minimum(largest, _INT4_SIGMAS * np.sqrt(np.square(moved).mean(axis=0)))
    steps: Floats = (largest / _LEVELS[quantizer] + 1e-12).astype(np.float32)
    return steps


def with_fixed(
    encoder: Encoder,
    states: Sequence[npt.NDArray[np.floating]],
    names: Sequence[str] | None = None,
    raw_scale: str | None = None,
    head_dim: int = 1,
) -> Encoder:
    """An encoder with other points of fixed size, and other FP8 scales of the raw cache.

    Args:
        encoder: gives everything else.
        states: flat states of training pictures or texts, `[N, d_s]` each.
        names: names in `FIXED`; None leaves the points as they are.
        raw_scale: one of `RAW_SCALES`; None leaves the scales as they are.
        head_dim: channels of the source's heads.

    Raises:
        ConfigError: no such point or granularity.
    """
    if raw_scale is not None:
        travels = raw_scale == "token"
        quantizer = Fp8TokenQuantizer.name if travels else RAW_KV_FP8.quantizer
        scale = (
            np.ones_like(encoder.raw_scale)
            if travels
            else fp8_steps(np.concatenate(states), raw_scale, head_dim)
        )
        points = [
            p if p.kind != "raw_kv" else replace(p, quantizer=quantizer) for p in encoder.points
        ]
        encoder = replace(encoder, raw_scale=scale, points=tuple(points))
    if names is None:
        return encoder
    for name in names:
        if name not in FIXED:
            raise ConfigError(f"no point of fixed size is called {name!r}: {', '.join(FIXED)}")
    moved = np.concatenate([encoder.project(x) - encoder.centre[: len(x)] for x in states])
    found = {name: fixed_steps(name, moved) for name in dict.fromkeys(names)}
    points = [
        OperatingPoint(
            index=FIXED[name][0],
            name=name,
            quantizer=FIXED[name][1],
            rank=encoder.rank,
            steps="" if steps is None else name,
        )
        for name, steps in found.items()
    ]
    kept = [p for p in encoder.points if p.kind != "latent" or p.quantizer == UniformQuantizer.name]
    used = {point.steps for point in kept} | {FINEST}
    steps = {name: one for name, one in encoder.steps.items() if name in used}
    steps |= {name: one for name, one in found.items() if one is not None}
    return replace(encoder, points=(*kept, *points), steps=steps)


def make_encoder(
    source: KVLayout,
    states: npt.NDArray[np.floating],
    *,
    x_mean: Floats,
    x_scale: Floats,
    projection: Floats,
    centre: Floats,
    steps: Floats,
    coarseness: dict[str, float] = COARSENESS,
    text: bool = False,
) -> Encoder:
    """The edge half, calibrated on training pictures or texts.

    Args:
        source: the edge model's layout.
        states: flat states, `[n, N, d_s]` of pictures or `[T, d_s]` of texts' tokens; some 2,048
            pictures of them are used.
        x_mean: `[d_s]`.
        x_scale: `[d_s]`.
        projection: `[d_s, r]` on z-scored states.
        centre: `[N, r]`, the mean latents of each place of the grid.
        steps: `[r]`, errors of one step in any latent hurt equally.
        coarseness: the ladder's uniform points, finest first.
        text: as `Encoder.text`.
    """
    most = _CALIBRATION_TOKENS if text else _CALIBRATION_PICTURES
    sample = states[:: max(1, len(states) // most)].astype(np.float32)
    normal = (sample - x_mean) / x_scale
    latents = normal @ projection
    rank = latents.shape[-1]
    usual = centre[0] if text else centre  # the same at every position of a text
    moved, z = (latents - usual).reshape(-1, rank), latents.reshape(-1, rank)
    by_name = {name: (steps * factor).astype(np.float32) for name, factor in coarseness.items()}
    entropy = {
        name: EntropyTables.fit(np.rint(moved / step).astype(np.int64), tokens=source.tokens)
        for name, step in by_name.items()
    }
    by_name["fp8"] = fp8_steps(moved, "channel")
    best, *_ = np.linalg.lstsq(z, normal.reshape(-1, normal.shape[-1]), rcond=None)
    uniform = UniformQuantizer.name
    points = (
        *(
            OperatingPoint(index=i, name=n, quantizer=uniform, rank=rank, steps=n)
            for i, n in enumerate(reversed(coarseness), start=1)
        ),
        OperatingPoint(index=FP8_POINT, name="fp8", quantizer="fp8_e4m3", rank=rank, steps="fp8"),
        OperatingPoint(index=FLOAT_POINT, name="float", quantizer="none", rank=rank),
        RAW_KV_FP8,
    )
    return Encoder(
        source_fingerprint=source.fingerprint,
        points=points,
        x_mean=x_mean,
        x_scale=x_scale,
        projection=np.ascontiguousarray(projection),
        reconstruction=best.astype(np.float32),
        centre=centre,
        latent_mean=z.mean(axis=0).astype(np.float32),
        latent_inv_cov=np.linalg.inv(np.atleast_2d(np.cov(z.T)) + 1e-6 * np.eye(rank)).astype(
            np.float32
        ),
        raw_scale=fp8_steps(sample.reshape(-1, sample.shape[-1]), "channel"),
        steps=by_name,
        entropy=entropy,
        text=text,
    )


def encoder_of(made: Map, states: npt.NDArray[np.floating] | Ragged) -> Encoder:
    """The edge half of a family's map: its `down` on z-scores, as a matrix.

    A map without an edge half sends the z-scored state itself, rank `d_s`.

    Args:
        made: the map.
        states: `[n, N, d_s]` of training pictures; `Ragged` for texts, which have one centre for
            all positions: the mean token.
    """
    text = isinstance(states, Ragged)
    if isinstance(states, Ragged):
        states = _tokens_of(states)
    with torch.no_grad():
        projection = made.down(torch.eye(made.source.state_dim)).numpy().astype(np.float32)
        if made.rounding is not None:
            centre = made.centre().numpy().astype(np.float32)  # training rounded latents about it
        else:
            mean = torch.from_numpy(states.mean(axis=0, dtype=np.float32))
            centre = made.down(made.normal(mean)).numpy().astype(np.float32)
        steps = made.steps().numpy().astype(np.float32)
    if text:
        centre = np.tile(centre, (made.source.tokens, 1))
    return make_encoder(
        made.source,
        states,
        x_mean=made.x_mean.numpy(),
        x_scale=made.x_scale.numpy(),
        projection=projection,
        centre=centre,
        steps=steps,
        coarseness=TEXT_COARSENESS if text else COARSENESS,
        text=text,
    )


def _tokens_of(states: Ragged) -> npt.NDArray[np.float16]:
    """Tokens spread evenly over all texts, `[T, d]`, as many as calibration uses."""
    step = max(1, int(states.lengths.sum()) // _CALIBRATION_TOKENS)
    rows = [states[index : index + 1][0] for index in range(0, len(states), step)]
    return np.concatenate(rows)


def feedback_of(
    made: Map, states: npt.NDArray[np.floating] | Ragged, rank: int = 0
) -> Feedback | None:
    """The two halves of a map's way back; None for a map without one, or a map of texts.

    Each of the cloud's tokens is sent as the first principal components of its image under the way
    back, scaled to variance 1, and the logit of its weight. (With even weights that is the best
    rank r for the mean squared error.)

    Args:
        made: the map.
        states: the cloud's states of training pictures, `[n, M, d_r]`.
        rank: r, at most the way back's rank; 0 for all of it.

    Raises:
        FitError: the way back gives zeros: it was never fitted.
    """
    if not isinstance(made, BidirectionalMap) or isinstance(states, Ragged):
        return None
    mean, scale = made.y_mean.numpy(), made.y_scale.numpy()
    compress = made.compress.detach().numpy().astype(np.float64)
    gram = np.zeros((compress.shape[1],) * 2)
    for begin in range(0, len(states), _CHUNK):
        normal = (states[begin : begin + _CHUNK].astype(np.float32) - mean) / scale
        small = normal.reshape(-1, len(mean)) @ compress
        gram += small.T @ small
    variance, axes = np.linalg.eigh(gram / (states.shape[0] * states.shape[1]))
    variance, axes = variance[::-1], axes[:, ::-1]
    most = int((variance > _LEAST_VARIANCE * variance[0]).sum()) if variance[0] > 0 else 0
    if not most:
        raise FitError("the way back makes nothing of the cloud's states: fit the map first")
    r = min(rank, most) if rank else most
    spread = np.sqrt(variance[:r])
    attend = made.attend.detach().numpy().astype(np.float64)[:, None]
    projection = np.hstack((compress @ (axes[:, :r] / spread), attend)).astype(np.float32)
    place = (states.mean(axis=0, dtype=np.float32) - mean) / scale
    # Steps are shares of a token's mean length; an error of 1 in its logit moves it by that length.
    length = np.sqrt(variance.sum())
    encoder = make_encoder(
        made.target,
        states,
        x_mean=mean,
        x_scale=scale,
        projection=projection,
        centre=place @ projection,
        steps=np.append(length / spread, 1).astype(np.float32),
        coarseness=FEEDBACK_COARSENESS,
    )
    # The edge cannot use raw states; the default point comes first.
    points = [point for point in encoder.points if point.kind == "latent"]
    encoder = replace(encoder, points=tuple(sorted(points, key=lambda p: p.index != FP8_POINT)))
    decoder = FeedbackDecoder.of(
        encoder,
        made.source,
        up=np.ascontiguousarray((axes[:, :r] * spread).T, dtype=np.float32),
        mean=made.x_mean.numpy(),
        scale=made.x_scale.numpy(),
        regrid=None if made.from_grid is None else made.from_grid.numpy(),
    )
    return Feedback(encoder, decoder)
