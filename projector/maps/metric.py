"""A quadratic cost of errors of a target state, block by block (NumPy).

Knows eigenvalues. Does not know where the second moments come from
(`projector/training/sensitivity.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

SHRINK = 0.1


@dataclass(frozen=True)
class Metric:
    """What an error of a z-scored target state costs: one quadratic form per layer, K and V apart.

    Attributes:
        values: eigenvalues, `[2 layers, w]`, `w` numbers to a layer's keys or values.
        vectors: eigenvectors, `[2 layers, w, w]`.
    """

    values: Doubles
    vectors: Doubles

    @classmethod
    def of(cls, second: Doubles, scale: Floats, shrink: float = SHRINK) -> Metric:
        """From second moments of gradients at the target's states.

        Args:
            second: `[2 layers, w, w]`.
            scale: the target's deviations, `[d_r]`.
            shrink: of a block's mean eigenvalue, and so much of the mean over all blocks, are added
                to its eigenvalues, so that no error is free.
        """
        blocks, width, _ = second.shape
        by = scale.reshape(blocks, width).astype(np.float64)
        values, vectors = np.linalg.eigh(second * by[:, :, None] * by[:, None, :])
        values = np.maximum(values, 0.0)
        each = values.mean(axis=1, keepdims=True)
        return cls(values + shrink * (each + each.mean()), vectors)

    def times(self, rows: Doubles, power: float) -> Doubles:
        """`rows [n, d_r]` times the form's power."""
        blocks, width = self.values.shape
        parts = rows.reshape(len(rows), blocks, width).swapaxes(0, 1)
        turned = (parts @ self.vectors) * self.values[:, None] ** power
        back: Doubles = turned @ self.vectors.swapaxes(1, 2)
        return back.swapaxes(0, 1).reshape(len(rows), -1)
