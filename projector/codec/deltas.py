"""Delta frames: what the cloud knows of a scene, and which tokens have moved since."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from projector.codec.arrays import Floats, Mask


@dataclass(frozen=True, eq=False)
class Held:
    """What the cloud knows of a scene: what a delta frame changes.

    Attributes:
        latents: as decoded, 0 where no token is known, `[N, r]`.
        kept: which tokens are known, `[N]`.
    """

    latents: Floats
    kept: Mask

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.latents.nbytes + self.kept.nbytes

    def changed(self, z_hat: Floats, kept: Mask) -> Held:
        """With other latents `[T_kept, r]` for the tokens of `kept [N]`."""
        latents = self.latents.copy()
        latents[kept] = z_hat
        return Held(latents, self.kept | kept)


def changed_tokens(
    latents: Floats, origin: Floats, kept: Mask, known: Mask, steps: Floats, quiet: float
) -> Mask:
    """Which tokens a delta frame has to hold, `[N]`.

    Those new, and those more than a step off, unless all that changed counts as quiet: it would
    travel as no change.
    """
    levels = np.abs(latents - origin)[:, : len(steps)] / steps
    off = levels.max(axis=1)
    loud = np.square(levels).sum(axis=1) >= quiet
    moved: Mask = (kept & ~known) | (known & (off > 1) & loud)
    if not moved.any():
        moved[np.argmax(np.where(known, off, -1))] = True
    return moved
