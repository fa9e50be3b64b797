"""The edge half of a bundle: from a state to a frame's payload, and back to latents (NumPy).

Imports no torch, so it runs on a bare edge device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from projector.codec import select, texts
from projector.codec.arrays import Floats, Mask, check_arrays
from projector.codec.coders import Coders, as_received, check_coding, towards_zero
from projector.codec.deltas import Held, changed_tokens
from projector.codec.file_format import ENCODER, Parts
from projector.codec.regrid import Regrid
from projector.codec.risk import RiskModel, feature_count
from projector.codec.select.base import Selector
from projector.codec.select.task_aware import TaskAware
from protos import distortion
from protos.distortion import Distortion
from protos.entropy.tables import EntropyTables
from protos.errors import (
    BundleFormatError,
    ConfigError,
    FrameMalformedError,
    IncompatibleLayoutError,
    NonFiniteError,
)
from protos.points import OperatingPoint
from protos.quantize import Quantizer
from protos.state import KVState

_LEVELS = ("uniform",)
"""Quantizers that round to whole steps, however far a latent has moved."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One encoded picture.

    Attributes:
        kept: which grid tokens the payload holds, `[N]`.
        payload: the quantizer's output, without the bitmap.
        z: latents of those tokens before quantization, `[T_kept, r]`.
        distortion: the losses, as in the header.
        held: what the cloud knows after this frame.
        differences: whether the payload holds differences to the base.
    """

    kept: Mask
    payload: bytes
    z: Floats
    distortion: Distortion
    held: Held
    differences: bool = False


@dataclass(frozen=True, eq=False)
class Encoder:
    """The edge half. `z = ((x - x_mean) / x_scale) @ projection`.

    `z - centre` travels: each latent's distance from the mean at its position.

    Attributes:
        source_fingerprint: of the edge model's layout.
        points: the operating points; those of kind `picture` may be left out.
        selector: name of the selector that fills a point's token budget.
        x_mean: `[d_s]`.
        x_scale: `[d_s]`, above 0.
        projection: `[d_s, r]`.
        reconstruction: from latents back to normalised states, `[r, d_s]`; used only to measure
            the latent residual.
        centre: mean latents at each grid position, `[N, r]`.
        latent_mean: `[r]`.
        latent_inv_cov: `[r, r]`.
        raw_scale: steps of the raw state for points of kind `raw_kv`, `[d_s]`.
        steps: per steps name, `[r]`.
        entropy: tables per steps name, for points whose quantizer is `uniform`.
        task_weights: weights of the selector `task_aware`, `[r]`, not negative; None if
            calibration did not learn them.
        risk: the risk model; None if calibration did not learn it.
        text: whether frames carry texts. Each then has as many tokens as the text has in the
            target's tokenizer, at most N. A token that is not sent has the same source token as
            the one before it, so the kept bitmap is the alignment of the two tokenizers.
        regrid: from the source's grid to the one whose N tokens travel; None if they are the same.

    Raises:
        BundleFormatError: contradicting shapes, numbers that are not finite, or a point without
            steps or tables.
    """

    source_fingerprint: str
    points: tuple[OperatingPoint, ...]
    x_mean: Floats
    x_scale: Floats
    projection: Floats
    reconstruction: Floats
    centre: Floats
    latent_mean: Floats
    latent_inv_cov: Floats
    raw_scale: Floats
    steps: Mapping[str, Floats]
    entropy: Mapping[str, EntropyTables] = field(default_factory=dict)
    selector: str = select.DEFAULT
    task_weights: Floats | None = None
    risk: RiskModel | None = None
    text: bool = False
    regrid: Regrid | None = None
    _coders: Coders = field(init=False, repr=False)
    _blob: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything once; `encode` and `decode` trust it."""
        d, r = self.projection.shape if self.projection.ndim == 2 else (0, 0)
        wanted = {
            "x_mean": (d,),
            "x_scale": (d,),
            "projection": (d, r),
            "reconstruction": (r, d),
            "centre": (max(1, len(self.centre)) if self.centre.ndim else 1, r),
            "latent_mean": (r,),
            "latent_inv_cov": (r, r),
            "raw_scale": (d,),
        }
        if not d or not r:
            raise BundleFormatError(f"encoder: a projection of shape {self.projection.shape}")
        arrays = {name: getattr(self, name) for name in wanted}
        if self.task_weights is not None:
            arrays["task_weights"], wanted["task_weights"] = self.task_weights, (r,)
        check_arrays("encoder", arrays, wanted, positive=("x_scale", "raw_scale"))
        if self.regrid is not None and (self.text or len(self.regrid.weights) != self.tokens):
            raise BundleFormatError(f"encoder: grid weights to other than {self.tokens} tokens")
        if self.task_weights is not None and (self.task_weights < 0).any():
            raise BundleFormatError("encoder: task_weights must not be negative")
        check_coding("encoder", r, self.steps, self.entropy)
        if self.risk is not None and len(self.risk.weights) != feature_count(r):
            raise BundleFormatError(
                f"encoder: the risk has {len(self.risk.weights)} features, not {feature_count(r)}"
            )
        try:
            self.selecting()
        except ConfigError as error:
            raise BundleFormatError(f"encoder: {error}") from error
        object.__setattr__(self, "_coders", Coders("encoder", self.entropy))
        for point in self.points:
            self._check_point(point)
        object.__setattr__(self, "_blob", self._serialize())

    def _check_point(self, point: OperatingPoint) -> None:
        if self.text and not texts.sent_whole(point):
            raise BundleFormatError(f"encoder: point '{point.name}' does not send texts whole")
        if point.kind == "picture":
            return
        if point.kind == "latent":
            if point.rank > self.rank:
                raise BundleFormatError(
                    f"encoder: point '{point.name}' has rank {point.rank}, "
                    f"the projection {self.rank}"
                )
            if point.quantizer != "none" and point.steps not in self.steps:
                raise BundleFormatError(f"encoder: point '{point.name}' has no steps")
        if (point.dead_zone or point.quiet) and not self.has_levels(point):
            raise BundleFormatError(
                f"encoder: point '{point.name}' rounds towards 0, but has no levels to round to"
            )
        self.quantizer(point)

    # -- facts -----------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Numbers per latent, r."""
        return int(self.projection.shape[1])

    @property
    def tokens(self) -> int:
        """Image tokens of the grid, N."""
        return len(self.centre)

    @property
    def source_tokens(self) -> int:
        """Image tokens of the source's own grid."""
        return self.tokens if self.regrid is None else self.regrid.source_tokens

    @property
    def grid(self) -> tuple[int, int] | None:
        """The grid whose tokens travel; None if it is the source's own."""
        return None if self.regrid is None else self.regrid.grid

    def on_grid(self, state: KVState) -> KVState:
        """The state of a picture on the grid whose tokens travel."""
        return state if self.regrid is None else self.regrid.of(state)

    @property
    def state_dim(self) -> int:
        """Numbers per token of the source, d_s."""
        return int(self.projection.shape[0])

    @property
    def digest(self) -> str:
        """SHA-256 hex of `to_bytes()`."""
        return hashlib.sha256(self._blob).hexdigest()

    def point(self, index: int) -> OperatingPoint:
        """The operating point of that index.

        Raises:
            FrameMalformedError: the index is unknown.
        """
        for point in self.points:
            if point.index == index:
                return point
        raise FrameMalformedError(
            f"operating point {index} is unknown; this bundle has "
            f"{', '.join(f'{p.index} ({p.name})' for p in self.points)}"
        )

    def quantizer(self, point: OperatingPoint) -> Quantizer:
        """The point's quantizer; each is built once.

        Raises:
            BundleFormatError: as `Coders.of`.
        """
        return self._coders.of(point, self.width(point))

    def width(self, point: OperatingPoint) -> int:
        """Numbers per token that travel at a point: the first latents, or all `d_s`."""
        return self.state_dim if point.kind == "raw_kv" else point.rank or self.rank

    def has_levels(self, point: OperatingPoint) -> bool:
        """Whether a point rounds latents to whole steps; only then do delta frames save bytes."""
        return point.kind == "latent" and point.quantizer in _LEVELS

    def steps_of(self, point: OperatingPoint) -> Floats:
        """The point's quantization steps, `width` of them."""
        if point.kind == "raw_kv":
            return self.raw_scale
        if point.quantizer == "none":
            return np.ones(self.width(point), dtype=np.float32)
        return self.steps[point.steps][: self.width(point)]

    def selecting(self, name: str | None = None) -> Selector:
        """The selector of that name; by default the encoder's own.

        Raises:
            ConfigError: it is unknown, or needs weights that this encoder lacks.
        """
        wanted = name or self.selector
        if select.require(wanted) is not TaskAware:
            return select.get(wanted)
        if self.task_weights is None:
            raise ConfigError(
                f"the selector '{wanted}' needs weights that this bundle does not hold: "
                "`projector calibrate` learns them"
            )
        return TaskAware(self.x_mean, self.x_scale, self.projection, self.centre, self.task_weights)

    @cached_property
    def _statistics(self) -> tuple[npt.NDArray[np.float64], ...]:
        """The statistics for distortion figures in float64, converted once."""
        kept = (self.reconstruction, self.latent_mean, self.latent_inv_cov)
        return tuple(array.astype(np.float64) for array in kept)

    # -- a frame ---------------------------------------------------------------------------------

    def normalise(self, x: Floats) -> Floats:
        """Z-score flat states `[T, d_s]` with the calibration's mean and deviation."""
        normal: Floats = (x - self.x_mean) / self.x_scale
        return normal

    def project(self, x: Floats) -> Floats:
        """Flat states `[T, d_s]` to latents `[T, r]`."""
        latents: Floats = self.normalise(x) @ self.projection
        return latents

    def encode(
        self,
        state: KVState,
        point: OperatingPoint,
        kept: Mask | None = None,
        base: Held | None = None,
    ) -> Encoded:
        """Select, project and quantize; measure the losses.

        With a base, only tokens travel that are new or more than a step from what the cloud
        knows; if there are none, a token that sending does not change, or else the one that moved
        most. They travel as themselves or as differences to the base, whichever is shorter. At
        points with levels, each known token then stays within max(1, sqrt(quiet)) steps of the
        truth however long the chain of deltas is (within half a step if it was sent loud and
        without a dead zone). At other points nearly all tokens travel.

        Args:
            state: one picture, on the source's grid or by `on_grid`.
            point: an operating point of kind `latent` or `raw_kv`.
            kept: tokens to send `[N]`; by default the encoder's selector fills the point's budget,
                and texts are sent whole.
            base: what the cloud knows of the scene; makes a delta frame.

        Raises:
            IncompatibleLayoutError: the state is from another model than the encoder is for.
            NonFiniteError: the state holds NaN or infinity.
            ConfigError: the point sends a picture, nothing is kept, or there is a base but the
                point sends no latents.
        """
        if point.kind == "picture":
            raise ConfigError(f"point '{point.name}' sends the picture: there is nothing to encode")
        state = self.on_grid(state)
        x = state.flat()
        if x.shape[1] != self.state_dim:
            raise IncompatibleLayoutError(
                f"the encoder expects d_s={self.state_dim}, the state carries {x.shape[1]}: "
                "the edge runs another model than the bundle was trained for"
            )
        if not np.isfinite(x).all():
            raise NonFiniteError("the model's cache holds NaN or infinity")
        if kept is None and self.text:
            kept = np.ones(state.tokens, dtype=np.bool_)
        elif kept is None:
            kept = self.selecting().keep(state, budget=point.tokens or None)
        if kept.shape != (state.tokens,) or not kept.any():
            raise ConfigError(f"a kept mask has {state.tokens} tokens and keeps at least one")
        if not self._takes(state.tokens):
            raise IncompatibleLayoutError(
                f"the encoder is for {self.tokens} image tokens, the state has {state.tokens}"
            )
        if self.text and not (kept[0] and base is None):
            raise ConfigError("a text always sends its first token, and has no delta frames")
        centre = self.centre[: state.tokens]
        normal = self.normalise(x)
        latents = normal @ self.projection
        quantizer, steps = self.quantizer(point), self.steps_of(point)
        differences = False
        if point.kind == "raw_kv":
            if base is not None:
                raise ConfigError(f"point '{point.name}' sends no latents, hence no delta frames")
            payload = quantizer.encode(x[kept], steps)
            received = self.project(quantizer.decode(payload, kept.sum(), self.state_dim, steps))
        elif base is None:
            payload, received = self._code(latents[kept], centre[kept], point)
        else:
            origin = self._origin(base)
            settled = self._settled(latents, base, point)
            kept = changed_tokens(latents, origin, kept, base.kept, steps, point.quiet, settled)
            payload, received = self._code(latents[kept], centre[kept], point)
            other, other_received = self._code(latents[kept], origin[kept], point)
            if len(other) < len(payload):
                payload, received, differences = other, other_received, True
        held = self.hold(received, kept, base)
        reconstruction, latent_mean, latent_inv_cov = self._statistics
        return Encoded(
            kept=kept,
            payload=payload,
            z=latents[kept],
            held=held,
            differences=differences,
            distortion=Distortion(
                quantize=distortion.quantize_error(latents[held.kept], held.latents[held.kept]),
                dropped_attention=distortion.dropped_attention(state.attention, held.kept),
                latent_residual=0.0
                if point.kind == "raw_kv"
                else distortion.latent_residual(normal, latents, reconstruction),
                unfamiliarity=distortion.unfamiliarity(latents, latent_mean, latent_inv_cov),
            ),
        )

    def _takes(self, tokens: int) -> bool:
        return 1 <= tokens <= self.tokens if self.text else tokens == self.tokens

    def _code(self, z: Floats, origin: Floats, point: OperatingPoint) -> tuple[bytes, Floats]:
        """Code latents `[T, r]` from an origin; return the payload and what it decodes to."""
        quantizer, steps = self.quantizer(point), self.steps_of(point)
        width = len(steps)
        moved = towards_zero((z - origin)[:, :width], steps, point)
        payload = quantizer.encode(moved, steps)
        received = origin.copy()
        received[:, :width] += as_received(quantizer, payload, moved, steps)
        return payload, received

    def _settled(self, latents: Floats, base: Held, point: OperatingPoint) -> Mask:
        """Tokens that the cloud knows to be as usual, and that would be sent as zeros, `[N]`."""
        steps = self.steps_of(point)
        levels = towards_zero((latents - self.centre)[:, : len(steps)], steps, point) / steps
        settled: Mask = (
            base.kept
            & (base.latents == self.centre).all(axis=1)
            & (np.rint(levels) == 0).all(axis=1)
        )
        return settled

    def _origin(self, base: Held) -> Floats:
        """The latents that differences start from, `[N, r]`."""
        origin: Floats = np.where(base.kept[:, None], base.latents, self.centre)
        return origin

    def hold(self, z_hat: Floats, kept: Mask, base: Held | None = None) -> Held:
        """What the cloud knows after a frame with the latents `[T_kept, r]`."""
        if base is None:
            every = np.ones_like(kept) if self.text else kept
            return Held(self.scatter(z_hat, kept), every)
        return base.changed(z_hat, kept)

    def decode(
        self,
        payload: bytes,
        kept: Mask,
        point: OperatingPoint,
        base: Held | None = None,
        differences: bool = False,
    ) -> Floats:
        """Decode a frame's latents (on the cloud's side), `[T_kept, r]`, finite.

        Args:
            payload: as received, without the bitmap.
            kept: which tokens it holds, `[N]`.
            point: of the frame.
            base: for a delta frame, what the cloud knows.
            differences: whether the payload holds differences to the base.

        Raises:
            BridgeError: the quantizer's error about the payload.
            FrameMalformedError: the point sends a picture, the grid differs, or there is a base
                but the point sends no latents.
        """
        if point.kind == "picture":
            raise FrameMalformedError(f"point '{point.name}' carries a picture, not latents")
        if not self._takes(len(kept)):
            raise FrameMalformedError(
                f"the frame has a grid of {len(kept)} tokens, the encoder one of {self.tokens}"
            )
        if self.text and not (kept[0] and base is None):
            raise FrameMalformedError("a text's frame holds its first token and is no delta frame")
        tokens = int(np.count_nonzero(kept))
        quantizer, steps = self.quantizer(point), self.steps_of(point)
        if point.kind == "raw_kv":
            if base is not None:
                raise FrameMalformedError(f"point '{point.name}' sends no latents: no delta frames")
            return self.project(quantizer.decode(payload, tokens, self.state_dim, steps))
        origin = self._origin(base) if base is not None and differences else self.centre
        origin = origin[: len(kept)]
        # Finite latents may overflow here, but none that an encoder writes.
        with np.errstate(over="ignore"):
            latents = origin[kept]
            latents[:, : len(steps)] += quantizer.decode(payload, tokens, len(steps), steps)
        if not np.isfinite(latents).all():
            raise NonFiniteError("a decoded latent is NaN or infinite")
        return latents

    def scatter(self, z_hat: Floats, kept: Mask) -> Floats:
        """Put latents of kept tokens `[T_kept, r]` on the whole grid `[N, r]`, 0 elsewhere.

        In a text, each other token gets the latents of the token before it.
        """
        if self.text:
            return texts.repeat(z_hat, kept)
        grid = np.zeros((len(kept), self.rank), dtype=np.float32)
        grid[kept] = z_hat
        return grid

    # -- bytes -----------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Serialise to a safetensors blob; equal encoders give equal bytes."""
        return self._blob

    def _serialize(self) -> bytes:
        arrays = {name: getattr(self, name) for name in ENCODER.arrays}
        if self.task_weights is not None:
            arrays["task_weights"] = self.task_weights
        if self.regrid is not None:
            arrays["regrid"] = self.regrid.weights
        fields = {"source_fingerprint": self.source_fingerprint, "selector": self.selector}
        more: dict[str, Any] = {"text": True} if self.text else {}
        if self.regrid is not None:
            more["grid"] = list(self.regrid.grid)
        risk = self.risk.to_arrays() if self.risk is not None else {}
        parts = Parts(fields | more, self.points, arrays, self.steps, self.entropy, risk)
        return ENCODER.write(parts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Encoder:
        """Read untrusted bytes in the form that `to_bytes` writes.

        Raises:
            BundleFormatError: too large, not safetensors, or not exactly an encoder's parts.
        """
        parts = ENCODER.read(blob)
        if parts.fields.get("text", True) is not True:
            raise BundleFormatError("encoder: 'text' must be left out unless it is true")
        arrays, grid = dict(parts.arrays), parts.fields.get("grid")
        if (grid is None) != ("regrid" not in arrays) or not isinstance(grid, list | None):
            raise BundleFormatError("encoder: grid weights come with the grid they lead to")
        regrid = None if grid is None else Regrid(arrays.pop("regrid"), tuple(grid))
        return cls(
            source_fingerprint=str(parts.fields["source_fingerprint"]),
            points=parts.points,
            selector=str(parts.fields["selector"]),
            steps=parts.steps,
            risk=RiskModel.from_arrays(parts.risk) if parts.risk else None,
            entropy=parts.entropy,
            text="text" in parts.fields,
            regrid=regrid,
            **arrays,
        )
