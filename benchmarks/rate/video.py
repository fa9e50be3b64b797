"""The rival on sequences: H.264, H.265 and AV1 by ffmpeg, at low rates and small sizes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image

from protos.errors import BridgeError

Pixels = npt.NDArray[np.uint8]

SIZES_PX = (48, 64, 96)
GROUPS = ("long", "reordered")
"""Only the first frame is a key frame; `reordered` also has frames that refer to later ones."""

_RATES = {
    "h264": (26, 32, 38, 44),
    "h265": (26, 32, 38, 44),
    "av1": (40, 50, 60),
}
_FORMATS = {"h264": "h264", "h265": "hevc", "av1": "obu"}
_TIMEOUT_S = 600
_OBU_PICTURES = (3, 4, 6, 7)  # frame header, tile group, frame, redundant frame header


@dataclass(frozen=True)
class Video:
    """One video codec at one setting.

    Attributes:
        codec: h264, h265 or av1.
        rate: constant rate factor; higher is coarser.
        px: side of the coded pictures.
        group: one of `GROUPS`.
    """

    codec: str
    rate: int
    px: int
    group: str

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.codec} crf {self.rate} {self.px} px {self.group}"

    def encode(self, pictures: Sequence[Image.Image], frames: int) -> bytes:
        """One stream of several sequences, each of which begins with a key frame.

        Raises:
            BridgeError: ffmpeg refused.
        """
        side = (self.px, self.px)
        small = [
            p if p.size == side else p.resize(side, Image.Resampling.LANCZOS) for p in pictures
        ]
        raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{self.px}x{self.px}", "-r", "10")
        keys = f"expr:not(mod(n,{frames}))"
        chosen = (*self._coder(frames), "-force_key_frames", keys, "-g", str(frames))
        out = ("-pix_fmt", "yuv420p", *chosen, "-threads", "1", "-f", _FORMATS[self.codec])
        pixels = b"".join(np.asarray(p.convert("RGB")).tobytes() for p in small)
        return _ffmpeg((*raw, "-i", "pipe:0", *out), pixels)

    def _coder(self, every: int) -> tuple[str, ...]:
        later = self.group == "reordered"
        if self.codec == "av1":
            lag = "25" if later else "0"
            return (
                *("-c:v", "libaom-av1", "-cpu-used", "6", "-b:v", "0", "-crf", str(self.rate)),
                *("-lag-in-frames", lag),
            )
        between = ("-bf", "3") if later else ("-bf", "0", "-tune", "zerolatency")
        common = ("-preset", "slow", "-crf", str(self.rate), "-forced-idr", "1", *between)
        if self.codec == "h264":
            return ("-c:v", "libx264", *common, "-sc_threshold", "0")
        return (
            *("-c:v", "libx265", *common, "-x265-params"),
            f"log-level=error:info=0:pools=none:frame-threads=1:scenecut=0:keyint={every}",
        )

    def decode(self, stream: bytes, count: int) -> list[Image.Image]:
        """The frames as the cloud sees them.

        Raises:
            BridgeError: ffmpeg refused, or the stream holds another number of frames.
        """
        given = ("-f", _FORMATS[self.codec], "-i", "pipe:0", "-vsync", "passthrough")
        raw = _ffmpeg((*given, "-f", "rawvideo", "-pix_fmt", "rgb24"), stream)
        frames = np.frombuffer(raw, dtype=np.uint8)
        if frames.size != count * self.px * self.px * 3:
            raise BridgeError(f"{self.name}: {count} frames were coded, others came back")
        return [Image.fromarray(frame) for frame in frames.reshape(count, self.px, self.px, 3)]


VIDEOS = tuple(
    Video(codec, rate, px, group)
    for codec, rates in _RATES.items()
    for rate, px, group in product(rates, SIZES_PX, GROUPS)
)


def available() -> bool:
    """Whether ffmpeg is installed."""
    return shutil.which("ffmpeg") is not None


def picture_bytes(codec: str, stream: bytes) -> int:
    """Bytes of `coded_pictures`."""
    return sum(map(len, coded_pictures(codec, stream)))


def coded_pictures(codec: str, stream: bytes) -> list[bytes]:
    """A stream without the parts that both ends could agree on once, in coding order.

    Those are parameter sets, comments, start codes and delimiters; the rest are coded pictures.
    """
    if codec == "av1":
        return [unit for kind, unit in _obus(stream) if kind in _OBU_PICTURES]
    found = []
    for unit in stream.split(b"\0\0\1")[1:]:
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        if 1 <= kind <= 5 if codec == "h264" else kind < 32:
            found.append(unit.rstrip(b"\0"))
    return found


def _obus(stream: bytes) -> list[tuple[int, bytes]]:
    """Kind and bytes, header included, of each open bitstream unit (AV1 specification, 5.3)."""
    found = []
    at = 0
    while at < len(stream):
        start, head = at, stream[at]
        at += 2 if head & 4 else 1
        size = shift = 0
        while True:
            byte = stream[at]
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        at += size
        found.append((head >> 3 & 15, stream[start:at]))
    return found


def _ffmpeg(arguments: Sequence[str], given: bytes) -> bytes:
    command = ("ffmpeg", "-v", "error", "-nostdin", *arguments, "pipe:1")
    done = subprocess.run(command, input=given, capture_output=True, timeout=_TIMEOUT_S)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BridgeError(f"ffmpeg: {' '.join(last) or 'failed'} ({' '.join(command)})")
    return done.stdout
