"""A quadratic cost of errors in a target state, block by block (NumPy).

`projector/training/sensitivity.py` measures the second moments that it is made from.
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
    """Cost of an error in a z-scored target state: a quadratic form per layer, for K and for V.

    Attributes:
        values: eigenvalues, `[2 layers, w]`; a layer's keys, or values, are `w` numbers.
        vectors: eigenvectors, `[2 layers, w, w]`.
    """

    values: Doubles
    vectors: Doubles

    @classmethod
    def of(cls, second: Doubles, scale: Floats, shrink: float = SHRINK) -> Metric:
        """Build the form from second moments of gradients at the target's states.

        Args:
            second: `[2 layers, w, w]`.
            scale: the target's deviations, `[d_r]`.
            shrink: this share of the block's mean eigenvalue, and of the mean over all blocks, is
                added to each eigenvalue, so that no error is free.
        """
        blocks, width, _ = second.shape
        by = scale.reshape(blocks, width).astype(np.float64)
        values, vectors = np.linalg.eigh(second * by[:, :, None] * by[:, None, :])
        values = np.maximum(values, 0.0)
        each = values.mean(axis=1, keepdims=True)
        return cls(values + shrink * (each + each.mean()), vectors)

    def times(self, rows: Doubles, power: float) -> Doubles:
        """`rows [n, d_r]` times a power of the form."""
        blocks, width = self.values.shape
        parts = rows.reshape(len(rows), blocks, width).swapaxes(0, 1)
        turned = (parts @ self.vectors) * self.values[:, None] ** power
        back: Doubles = turned @ self.vectors.swapaxes(1, 2)
        return back.swapaxes(0, 1).reshape(len(rows), -1)
