"""Motion, cheaply: small grey pictures against a running background, before the model runs.

A change of the light as a whole is no motion: gain and offset between picture and background are
taken out first. Hidden regions never count.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edge_agent.cameras.mask import Mask
from edge_agent.cameras.ring import Pixels

_ACROSS = 80
"""Cells across the picture, about."""
_LEARN_S = 10.0
"""Time constant of the background, seconds."""
_LEAST = 10.0
"""Grey levels below which a difference is noise."""
_NOISES = 5.0
_QUANTILES = 0.2, 0.5, 0.8
_DARKEST, _BRIGHTEST = 2.0, 250.0
_LEAST_FIT = 0.05
"""Share of the picture that must be neither black nor white, or nothing can be told."""

Grey = npt.NDArray[np.float32]


class Motion:
    """Tells which share of a picture moved against those before it."""

    def __init__(self) -> None:
        self._background: Grey | None = None
        self._seen: npt.NDArray[np.bool_] | None = None
        self._shape: tuple[int, ...] = ()
        self._at = 0.0

    def see(self, pixels: Pixels, mask: Mask, now: float) -> float:
        """Take the next picture.

        Args:
            pixels: RGB, masks painted.
            mask: what was painted.
            now: seconds, on any clock.

        Returns:
            The share of visible cells that moved, 0 to 1; 0 for the first picture, and for the
            first of another size.
        """
        step = max(1, pixels.shape[1] // (2 * _ACROSS))
        grey = _cells(pixels[::step, ::step, 1])
        if self._background is None or self._shape != pixels.shape:
            self._background, self._shape, self._at = grey, pixels.shape, now
            hidden = mask.hidden(pixels.shape[1], pixels.shape[0])
            self._seen = None if hidden is None else _cells(hidden[::step, ::step]) == 0
            return 0.0
        was = self._background
        mine, theirs = (grey, was) if self._seen is None else (grey[self._seen], was[self._seen])
        fit = (mine > _DARKEST) & (mine < _BRIGHTEST)  # what is black or white tells no gain
        if np.count_nonzero(fit) < _LEAST_FIT * mine.size or mine.size == 0:
            return 0.0
        expected = _relit(theirs, mine[fit], theirs[fit])
        away = np.abs(mine - np.clip(expected, 0.0, 255.0))
        limit = max(_LEAST, _NOISES * 1.5 * float(np.median(away)))
        share = 1.0 - math.exp(-max(0.0, now - self._at) / _LEARN_S)
        was += share * (grey - was)
        self._at = now
        return float(np.mean(away > limit))


def _relit(background: Grey, mine: Grey, theirs: Grey) -> Grey:
    """The background in the light of the picture, from cells that show both well."""
    low, middle, high = np.quantile(mine, _QUANTILES)
    was_low, was_middle, was_high = np.quantile(theirs, _QUANTILES)
    flat = was_high - was_low < _LEAST
    gain = (middle + 1) / (was_middle + 1) if flat else (high - low) / (was_high - was_low)
    relit: Grey = background * np.float32(gain) + np.float32(middle - gain * was_middle)
    return relit


def _cells(plane: npt.NDArray[np.generic]) -> Grey:
    """Means of two by two samples, so that single noisy samples do not count."""
    grey = plane.astype(np.float32)
    high, wide = (max(2, side) // 2 * 2 for side in grey.shape)
    if grey.shape[0] < 2 or grey.shape[1] < 2:
        return grey
    grey = grey[:high, :wide]
    return (grey[::2, ::2] + grey[1::2, ::2] + grey[::2, 1::2] + grey[1::2, 1::2]) * 0.25
