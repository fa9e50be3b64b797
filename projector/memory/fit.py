"""Fits a basis of keys in closed form: linear discriminant analysis with shrinkage.

Texts of one class ask for the same thing in other words. The directions kept are those in which
classes lie apart, measured by how far texts of one class scatter (Fisher, 1936; Rao, 1948), each
scaled by the share of its variance that tells classes apart (Wiener).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from projector.codec.arrays import Floats
from protos.errors import FitError

SHRINKAGE = 0.03
_LEAST_CLASSES = 8


def discriminants(
    features: Floats, classes: Sequence[int], rank: int, shrinkage: float = SHRINKAGE
) -> tuple[Floats, Floats, Floats]:
    """Directions in which classes lie apart.

    Args:
        features: of n texts, [n, F].
        classes: of each text, [n]; each class needs two texts or more.
        rank: directions kept, r.
        shrinkage: share of the scatter within classes that is made equal in all directions, 0 to 1.

    Returns:
        Mean [F], deviation [F] and projection [F, r] of a `MemoryBasis`.

    Raises:
        FitError: too few classes for the rank, NaN, or a class of one text.
    """
    labels, index, sizes = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    if len(labels) < max(_LEAST_CLASSES, 2):
        raise FitError(f"{len(labels)} classes are too few: give {_LEAST_CLASSES} or more")
    if sizes.min() < 2:
        raise FitError("a class has one text only: give each two or more phrasings")
    most = min(features.shape[1], len(labels) - 1)
    if not 1 <= rank <= most:
        raise FitError(f"rank {rank}: {len(labels)} classes allow 1 to {most}")
    if not np.isfinite(features).all():
        raise FitError("the features hold NaN or infinity")
    mean = features.mean(axis=0)
    scale = features.std(axis=0) + 1e-6
    rows = ((features - mean) / scale).astype(np.float64)
    centres = np.zeros((len(labels), rows.shape[1]))
    np.add.at(centres, index, rows)
    centres /= sizes[:, None]
    apart = rows - centres[index]
    within = apart.T @ apart / max(1, len(rows) - len(labels))
    between = (centres * sizes[:, None]).T @ centres / len(rows)
    level = np.trace(within) / len(within)
    within = (1 - shrinkage) * within + shrinkage * level * np.eye(len(within))
    # Whitened by what scatters within classes, the directions are those of an ordinary PCA.
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    ratios, turned = np.linalg.eigh(whiten @ between @ whiten.T)
    ratios, directions = ratios[::-1][:rank], (whiten.T @ turned)[:, ::-1][:, :rank]
    wiener = ratios / (1 + ratios)
    projection = directions * wiener
    return mean.astype(np.float32), scale.astype(np.float32), projection.astype(np.float32)
