"""Delta frames: what the cloud knows of a scene, and which tokens have moved since then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from projector.codec.arrays import Floats, Mask


@dataclass(frozen=True, eq=False)
class Held:
    """The latents that the cloud knows of a scene, the base of the next delta frame.

    Attributes:
        latents: as decoded, 0 for unknown tokens, `[N, r]`.
        kept: which tokens are known, `[N]`.
    """

    latents: Floats
    kept: Mask

    @property
    def bytes(self) -> int:
        """Memory of both arrays, in bytes."""
        return self.latents.nbytes + self.kept.nbytes

    def changed(self, z_hat: Floats, kept: Mask) -> Held:
        """A copy with new latents `[T_kept, r]` for the tokens in `kept [N]`."""
        latents = self.latents.copy()
        latents[kept] = z_hat
        return Held(latents, self.kept | kept)


def changed_tokens(
    latents: Floats,
    origin: Floats,
    kept: Mask,
    known: Mask,
    steps: Floats,
    quiet: float,
    settled: Mask,
) -> Mask:
    """Which tokens a delta frame must hold, `[N]`.

    Those are new tokens, and tokens that moved by more than a step unless the change is quiet (it
    would be sent as zeros). If there are none, a token that sending does not change, the same one
    each time; else the token that moved most.

    Args:
        latents: of the picture, `[N, r]`.
        origin: what the cloud knows of them, `[N, r]`.
        kept: which are to be known, `[N]`.
        known: which the cloud knows, `[N]`.
        steps: `[r]`, or fewer.
        quiet: of the point.
        settled: known tokens that would come out as they are known, `[N]`.
    """
    levels = np.abs(latents - origin)[:, : len(steps)] / steps
    off = levels.max(axis=1)
    loud = np.square(levels).sum(axis=1) >= quiet
    moved: Mask = (kept & ~known) | (known & (off > 1) & loud)
    if not moved.any():
        still = settled if settled.any() else np.where(known, off, -1)
        moved[np.argmax(still)] = True
    return moved
