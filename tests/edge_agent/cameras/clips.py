"""Video files for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="no PyAV: pip install 'neural-bridge[video]'")


def textured(path: Path, frames: int = 90) -> Path:
    """A transport stream, 128 by 96 pixels, whose texture moves; a key frame every 15 frames."""
    texture = np.random.default_rng(0).integers(0, 64, (96, 128, 3), dtype=np.uint8)
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.gop_size, stream.options = 15, {"bf": "0", "sc_threshold": "0"}
        for number in range(frames):
            pixels = np.roll(texture, number, 1)
            pixels[10:26, number : number + 16] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def with_faulty_metadata(path: Path, frames: int = 90) -> Path:
    """H.264 with a message for the decoder in front of every picture that is no such message."""
    with av.open(io.BytesIO(), "w", format="h264") as container, path.open("wb") as out:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.gop_size, stream.options = 15, {"bf": "0"}
        for number in range(frames):
            pixels = np.full((96, 128, 3), 60, np.uint8)
            pixels[10:26, number : number + 16] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                out.write(b"\0\0\0\1\6\6\4\xff\xff\x80" + bytes(packet))
        for packet in stream.encode():
            out.write(bytes(packet))
    return path


def clip(
    path: Path,
    frames: int = 30,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    still: bool = False,
    codec: str = "libx264",
) -> Path:
    """A grey clip in which a white square moves to the right, one pixel a frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 60, np.uint8)
            left = 0 if still else number
            pixels[10:26, left : left + 16] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
