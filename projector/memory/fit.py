"""Fits a basis of keys in closed form: linear discriminant analysis with shrinkage.

A key has two parts: whom a text is about, and what it asks. Each is fitted by itself: texts of one
class are about the same one, or ask the same. The directions kept are those in which
classes lie apart, measured by how far texts of one class scatter (Fisher, 1936; Rao, 1948), each
scaled by the share of its variance that tells classes apart (Wiener).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from projector.codec.arrays import Floats
from protos.errors import FitError

SHRINKAGE = 0.03


def discriminants(
    features: Floats, classes: Sequence[Hashable], rank: int, shrinkage: float = SHRINKAGE
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
    if len(labels) < 2:
        raise FitError("texts of one class tell nothing apart: give two or more")
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


def key_parts(
    features: Floats, about: Sequence[Hashable], asks: Sequence[Hashable], rank: int
) -> tuple[Floats, Floats, Floats, tuple[int, ...]]:
    """Both parts of a key.

    Args:
        features: of n texts, [n, F].
        about: whom or what each text is about, [n].
        asks: what each text asks or states of it, [n].
        rank: entries of both parts together; what is asked gets a quarter of them at most.

    Returns:
        Mean [F], deviation [F], projection [F, r] and parts of a `MemoryBasis`; r is `rank`, or
        less where there are fewer classes.

    Raises:
        FitError: as `discriminants`.
    """
    kinds, whom = len(set(asks)), len(set(about))
    if rank < 2:
        raise FitError(f"rank {rank}: a key needs two entries or more")
    of_asks = min(kinds - 1, max(1, rank // 4), features.shape[1])
    of_about = min(rank - of_asks, whom - 1, features.shape[1])
    mean, scale, first = discriminants(features, about, of_about)
    if not of_asks:
        return mean, scale, first, (of_about,)
    _, _, second = discriminants(features, asks, of_asks)
    projection: Floats = np.concatenate([first, second], axis=1)
    return mean, scale, projection, (of_about, of_asks)
