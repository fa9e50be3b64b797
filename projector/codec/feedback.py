"""The edge's half of feedback: decodes a state that the cloud sent back (NumPy).

The cloud encodes its state with an `Encoder` of its own layout. A token's last latent is the logit
of its weight. The softmax needs all tokens, so it runs here, after transport; it commutes with
matrix products on single tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from projector.codec.arrays import Floats, Mask, check_arrays
from projector.codec.coders import Coders, check_coding
from projector.codec.encoder import Encoder
from projector.codec.file_format import FEEDBACK_DECODER, Parts
from protos import distortion
from protos.entropy.tables import EntropyTables
from protos.errors import (
    BundleFormatError,
    FrameMalformedError,
    IncompatibleLayoutError,
    NonFiniteError,
    UnknownQuantizerError,
)
from protos.layout import KVLayout
from protos.points import OperatingPoint
from protos.state import KVState

_HEADER_ROOM_BYTES = 64


@dataclass(frozen=True, eq=False)
class FeedbackDecoder:
    """`x = scale * regrid (M softmax_tokens(a) * (z up)) + mean`, where `(z, a)` is a token.

    Attributes:
        source_fingerprint: of the cloud's layout; its states were encoded.
        target_fingerprint: of the edge's layout; its states are made.
        points: the operating points, all of kind `latent`; the first is the default.
        centre: added to the latents that travelled, `[M, r + 1]`.
        steps: per steps name, `[r + 1]`.
        entropy: tables per steps name, for points whose quantizer is `uniform`.
        up: `[r, d_s]`, to z-scored states of the edge.
        mean: `[d_s]`.
        scale: `[d_s]`, above 0.
        regrid: from the cloud's token grid to the edge's, `[N, M]`; None if they are equal.

    Raises:
        BundleFormatError: contradicting shapes, numbers that are not finite, or a point without
            steps or tables.
    """

    source_fingerprint: str
    target_fingerprint: str
    points: tuple[OperatingPoint, ...]
    centre: Floats
    steps: Mapping[str, Floats]
    up: Floats
    mean: Floats
    scale: Floats
    regrid: Floats | None = None
    entropy: Mapping[str, EntropyTables] = field(default_factory=dict)
    _coders: Coders = field(init=False, repr=False)
    _blob: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything once."""
        r, d = self.up.shape if self.up.ndim == 2 else (0, 0)
        m = len(self.centre) if self.centre.ndim else 0
        if not (r and d and m and self.points):
            raise BundleFormatError(f"{FEEDBACK_DECODER.what}: no points, or empty arrays")
        wanted = {"centre": (m, r + 1), "up": (r, d), "mean": (d,), "scale": (d,)}
        arrays = {name: getattr(self, name) for name in wanted}
        if self.regrid is not None:
            n = len(self.regrid) if self.regrid.ndim else 0
            arrays["regrid"], wanted["regrid"] = self.regrid, (max(1, n), m)
        check_arrays(FEEDBACK_DECODER.what, arrays, wanted, positive=("scale",))
        check_coding(FEEDBACK_DECODER.what, r + 1, self.steps, self.entropy)
        object.__setattr__(self, "_coders", Coders(FEEDBACK_DECODER.what, self.entropy))
        for point in self.points:
            if point.kind != "latent" or point.rank not in (0, r + 1):
                raise BundleFormatError(
                    f"{FEEDBACK_DECODER.what}: point '{point.name}' does not send {r + 1} latents"
                )
            if point.quantizer != "none" and point.steps not in self.steps:
                raise BundleFormatError(
                    f"{FEEDBACK_DECODER.what}: point '{point.name}' has no steps"
                )
            self._coders.of(point, r + 1)
        object.__setattr__(self, "_blob", self._serialize())

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        target: KVLayout,
        *,
        up: Floats,
        mean: Floats,
        scale: Floats,
        regrid: Floats | None,
    ) -> FeedbackDecoder:
        """The half that decodes what `encoder` encodes."""
        return cls(
            source_fingerprint=encoder.source_fingerprint,
            target_fingerprint=target.fingerprint,
            points=encoder.points,
            centre=encoder.centre,
            steps=encoder.steps,
            entropy=encoder.entropy,
            up=up,
            mean=mean,
            scale=scale,
            regrid=regrid,
        )

    # -- facts -----------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Image tokens of the cloud's grid, M."""
        return len(self.centre)

    @property
    def rank(self) -> int:
        """Numbers per token that travel, r + 1."""
        return int(self.centre.shape[1])

    @property
    def digest(self) -> str:
        """SHA-256 hex of `to_bytes()`."""
        return hashlib.sha256(self._blob).hexdigest()

    @property
    def max_payload_bytes(self) -> int:
        """Longest payload of any point, in bytes: float32 latents and a bitmap."""
        return 4 * self.tokens * self.rank + (self.tokens + 7) // 8 + _HEADER_ROOM_BYTES

    def point(self, name: str) -> OperatingPoint:
        """The point of that name; the default point for an empty name.

        Raises:
            UnknownQuantizerError: the name is unknown.
        """
        return point_of(self.points, name)

    # -- a frame ---------------------------------------------------------------------------------

    def decode(self, body: bytes, kept: Mask, index: int) -> Floats:
        """Decode a frame's latents, 0 for dropped tokens: `[M, r + 1]`, finite.

        Args:
            body: the payload without its bitmap.
            kept: `[M]`.
            index: of the operating point.

        Raises:
            FrameMalformedError: the point is unknown, or the grid differs.
            BridgeError: the quantizer's error about the payload.
        """
        point = next((p for p in self.points if p.index == index), None)
        if point is None or len(kept) != self.tokens:
            raise FrameMalformedError(
                f"a frame at point {index} of {len(kept)} tokens; the feedback has the points "
                f"{', '.join(f'{p.index} ({p.name})' for p in self.points)} and {self.tokens}"
            )
        count = int(np.count_nonzero(kept))
        quantizer, grid = self._coders.of(point, self.rank), np.zeros_like(self.centre)
        steps = self.steps.get(point.steps, np.ones(self.rank, dtype=np.float32))
        with np.errstate(over="ignore"):
            grid[kept] = quantizer.decode(body, count, self.rank, steps) + self.centre[kept]
        if not np.isfinite(grid).all():
            raise NonFiniteError("a decoded latent is NaN or infinite")
        return grid

    def state(self, latents: Floats, layout: KVLayout, positions: npt.NDArray[np.int64]) -> KVState:
        """The edge model's state, keys un-rotated.

        Args:
            latents: `[M, r + 1]`, from `decode`.
            layout: of the edge model that is running.
            positions: of its image tokens, `[N]`.

        Raises:
            IncompatibleLayoutError: the feedback is for another edge model.
            NonFiniteError: the latents are so large that the state overflows.
        """
        if self.target_fingerprint not in layout.fingerprints:
            raise IncompatibleLayoutError(
                f"the feedback is for the layout {self.target_fingerprint[:12]}…, this agent's "
                f"model {layout.model_id!r} has {layout.fingerprint[:12]}…"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            x = self.normal(latents) * self.scale + self.mean
        if not np.isfinite(x).all():
            raise NonFiniteError("the latents are so large that the state overflows")
        return KVState.from_flat(x, layout, positions)

    def normal(self, latents: Floats) -> Floats:
        """The edge's states as z-scores, `[N, d_s]`, from latents `[M, r + 1]`."""
        logits = latents[:, -1] - latents[:, -1].max()
        share = np.exp(logits) / np.exp(logits).sum() * self.tokens
        weighed = latents[:, :-1] * share[:, None]
        small: Floats = (weighed if self.regrid is None else self.regrid @ weighed) @ self.up
        return small

    def round_trip(self, latents: Floats, state: KVState) -> float:
        """`distortion.round_trip`: the edge's own state against the one that came back."""
        return distortion.round_trip((state.flat() - self.mean) / self.scale, self.normal(latents))

    # -- bytes -----------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Serialise to a safetensors blob; equal decoders give equal bytes."""
        return self._blob

    def _serialize(self) -> bytes:
        names = (*FEEDBACK_DECODER.arrays, *FEEDBACK_DECODER.more_arrays)
        arrays = {name: a for name in names if (a := getattr(self, name)) is not None}
        fields = {
            "source_fingerprint": self.source_fingerprint,
            "target_fingerprint": self.target_fingerprint,
        }
        parts = Parts(fields, self.points, arrays, self.steps, self.entropy, risk={})
        return FEEDBACK_DECODER.write(parts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> FeedbackDecoder:
        """Read untrusted bytes in the form that `to_bytes` writes.

        Raises:
            BundleFormatError: too large, not safetensors, or not exactly a decoder's parts.
        """
        parts = FEEDBACK_DECODER.read(blob)
        return cls(
            source_fingerprint=str(parts.fields["source_fingerprint"]),
            target_fingerprint=str(parts.fields["target_fingerprint"]),
            points=parts.points,
            steps=parts.steps,
            entropy=parts.entropy,
            **parts.arrays,
        )


def point_of(points: tuple[OperatingPoint, ...], name: str) -> OperatingPoint:
    """The feedback point of that name; the first one for an empty name.

    Raises:
        UnknownQuantizerError: the name is unknown.
    """
    for point in points:
        if not name or point.name == name:
            return point
    known = ", ".join(point.name for point in points)
    raise UnknownQuantizerError(f"the feedback has no point {name[:64]!r}; it has {known}")
