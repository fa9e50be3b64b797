"""Bounds how many compiled kernels oneDNN and torch keep for matrix products in bfloat16."""

from __future__ import annotations

import os

_CAPACITIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "16"}


def bound_kernels() -> None:
    """Have both caches keep few kernels; call it before torch is imported.

    oneDNN compiles a kernel for each layer's shape and each number of rows: half a millisecond and
    about half a megabyte. Both caches keep 1024 by default: hundreds of megabytes that no setting
    counts. Values that the operator has set in the environment stay.
    """
    for name, capacity in _CAPACITIES.items():
        os.environ.setdefault(name, capacity)
