"""Checks shapes and numbers of the float32 arrays in a half."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.errors import (
    BundleFormatError,
)

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def check_arrays(
    what: str,
    arrays: Mapping[str, npt.NDArray[Any]],
    wanted: Mapping[str, tuple[int, ...]],
    positive: Collection[str] = (),
) -> None:
    """Require float32 arrays of these shapes, finite, and above 0 where named in `positive`.

    Raises:
        BundleFormatError: an array is not as required; `what` begins the message.
    """
    for name, array in arrays.items():
        if array.shape != wanted[name] or array.dtype != np.float32:
            raise BundleFormatError(
                f"{what}: {name} is {array.dtype} {array.shape}, expected float32 {wanted[name]}"
            )
        if not np.isfinite(array).all():
            raise BundleFormatError(f"{what}: {name} holds NaN or infinity")
        if name in positive and not (array > 0).all():
            raise BundleFormatError(f"{what}: {name} must be above 0 everywhere")
