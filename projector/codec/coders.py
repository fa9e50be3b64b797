"""The quantizers of one half, and the dead zone in their rounding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from projector.codec.arrays import Floats, check_arrays
from protos import quantize
from protos.entropy.tables import EntropyTables
from protos.errors import (
    BundleFormatError,
)
from protos.points import OperatingPoint
from protos.quantize import Quantizer, UniformQuantizer

_MOST_CODED = 1 << 25
"""Most frequencies in all coders of a half: some 300 MB; the reference has under half a million."""


def towards_zero(moved: Floats, steps: Floats, point: OperatingPoint) -> Floats:
    """Move latents so that a quantizer's rounding gives the levels that the point asks for.

    Levels near 0 are cheap to code. With a dead zone, as in video coders, the threshold between
    two levels lies `0.5 + dead_zone` steps from the level nearer 0. Tokens quieter than `quiet`
    become zeros.

    Args:
        moved: latents minus the centre at their position, `[T, r]`.
        steps: `[r]`.
        point: gives `dead_zone` and `quiet`.
    """
    if not point.dead_zone and not point.quiet:
        return moved
    levels = moved / steps
    loud = np.square(levels).sum(axis=1, keepdims=True) >= point.quiet
    levels -= np.copysign(np.minimum(np.abs(levels), np.float32(point.dead_zone)), levels)
    rounded: Floats = np.rint(levels) * steps * loud
    return rounded


def check_coding(
    what: str, rank: int, steps: Mapping[str, Floats], entropy: Mapping[str, EntropyTables]
) -> None:
    """Require steps `[rank]` above 0, and entropy tables of the same rank.

    Raises:
        BundleFormatError: they are not.
    """
    named = {f"steps/{name}": array for name, array in steps.items()}
    check_arrays(what, named, dict.fromkeys(named, (rank,)), positive=named)
    for name, tables in entropy.items():
        if tables.rank != rank:
            raise BundleFormatError(f"{what}: entropy tables of {name} are for {tables.rank}")


class Coders:
    """The quantizers of one half, each built once. Points with the same coding share one."""

    def __init__(self, what: str, entropy: Mapping[str, EntropyTables]) -> None:
        """Builds no quantizer yet.

        Args:
            what: name of the half, for messages.
            entropy: tables per steps name.
        """
        self._what, self._entropy = what, entropy
        self._made: dict[tuple[str, str, str, int], Quantizer] = {}
        self._numbers = 0

    def of(self, point: OperatingPoint, width: int) -> Quantizer:
        """A point's quantizer for the first `width` numbers of a token.

        Raises:
            BundleFormatError: it is unknown, its tables are missing, or all coders together would
                take far too much memory.
        """
        key = point.quantizer, point.steps, point.kind, width
        if key not in self._made:
            self._made[key] = self._make(point, width)
        return self._made[key]

    def _make(self, point: OperatingPoint, width: int) -> Quantizer:
        name, tables = point.quantizer, self._entropy.get(point.steps)
        if name not in quantize.QUANTIZERS:
            raise BundleFormatError(f"{self._what}: point '{point.name}' uses '{name}'")
        if name != UniformQuantizer.name:
            return quantize.get(name)
        if tables is None or point.kind != "latent":
            raise BundleFormatError(f"{self._what}: point '{point.name}' has no entropy tables")
        first = tables.first(width)
        self._numbers += first.frequency.size
        if self._numbers > _MOST_CODED:
            raise BundleFormatError(
                f"{self._what}: the coders of its points have more than {_MOST_CODED:,} "
                "frequencies in all"
            )
        return quantize.get(name, first)


def as_received(quantizer: Quantizer, payload: bytes, z: Floats, steps: Floats) -> Floats:
    """What the other side will decode. The entropy coder is lossless, so it is not run."""
    if isinstance(quantizer, UniformQuantizer):
        rounded: Floats = np.rint(z / steps) * steps
        return rounded
    return quantizer.decode(payload, len(z), z.shape[1], steps)
