"""Frames in shared memory: a few slots that a camera's process fills and the agent reads.

A slot has one owner at a time. The process fills a slot that it owns and gives it away with a
message; the agent reads it and gives it back with a message. So no frame is ever read half written.
The memory has no name: the kernel frees it when the last process that holds it ends.
"""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt

SLOTS = 4
SLOT_BYTES = 3 << 24
"""Room for a picture of 16.7 million pixels; a page takes memory only once it is written."""

Pixels = npt.NDArray[np.uint8]
"""RGB, `[height, width, 3]`."""


def create() -> int:
    """Make the memory and return its descriptor; neither side can shrink it under the other."""
    number = os.memfd_create("camera", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(number, SLOTS * SLOT_BYTES)
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return number


class Ring:
    """One side's view of the slots.

    Args:
        descriptor: from `create`; closed here, the mapping stays.
        writable: true in the camera's process.
    """

    def __init__(self, descriptor: int, writable: bool) -> None:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._memory = mmap.mmap(descriptor, SLOTS * SLOT_BYTES, access=access)
        os.close(descriptor)

    def write(self, slot: int, pixels: Pixels) -> None:
        """Copy a picture into a slot; it must fit (`fits`)."""
        start = slot * SLOT_BYTES
        flat = np.frombuffer(self._memory, np.uint8, pixels.size, start)
        flat.reshape(pixels.shape)[:] = pixels

    def read(self, slot: int, width: int, height: int) -> bytes:
        """Copy a picture's RGB samples out of a slot."""
        start = slot * SLOT_BYTES
        return self._memory[start : start + 3 * width * height]

    def close(self) -> None:
        """Give the mapping back."""
        self._memory.close()


def fits(width: int, height: int) -> bool:
    """Whether a picture has room in a slot."""
    return 0 < width and 0 < height and 3 * width * height <= SLOT_BYTES
