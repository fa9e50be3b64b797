"""Video files for tests."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def clip(
    path: Path,
    frames: int = 30,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    still: bool = False,
) -> Path:
    """A grey clip in which a white square moves to the right, one pixel a frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 60, np.uint8)
            left = 0 if still else number
            pixels[10:26, left : left + 16] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
