"""Frames made beforehand, of our frames, pictures or video alike, as a file for the sender."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edge_agent.frame import Frame as EdgeFrame
from protos.points import PICTURE_POINT


@dataclass(frozen=True)
class Coded:
    """One coded frame; bytes as hex.

    Attributes:
        point: index of the operating point; a coded picture of video travels as a picture does.
        payload: what the codec made.
        kept: which tokens it holds, one byte each.
        figures: the header's four figures.
        back: how many frames before lies the one that a delta frame changes; 0 for a key frame.
        differences: whether the payload holds differences.
    """

    point: int
    payload: str
    kept: str = ""
    figures: str = "00000000"
    back: int = 0
    differences: bool = False

    @classmethod
    def of(cls, frame: EdgeFrame, number: int) -> Coded:
        """A frame as the agent makes it; `number` is its own among `frame.base`'s."""
        figures = frame.distortion.to_bytes() if frame.distortion is not None else bytes(4)
        return cls(
            frame.point.index,
            frame.payload.hex(),
            np.asarray(frame.kept, dtype=np.bool_).tobytes().hex(),
            bytes(figures).hex(),
            0 if frame.base is None else number - frame.base,
            frame.differences,
        )

    @classmethod
    def file(cls, content: bytes) -> Coded:
        """A picture's file, or a coded picture of video."""
        return cls(PICTURE_POINT, content.hex())


@dataclass(frozen=True)
class Job:
    """What one sender does.

    Attributes:
        layout: the edge model's layout (JSON).
        settings_digest: belongs to it.
        address: of the service.
        roots, chain, key: for TLS (PEM).
        linger_s, ack_wait_s: of the uplink.
        every_s: seconds between frames.
        in_flight: most frames on their way at once.
        frames: sent one after the other; the first one only opens the connection.
    """

    layout: str
    settings_digest: str
    address: str
    roots: str
    chain: str
    key: str
    linger_s: float
    ack_wait_s: float
    every_s: float
    in_flight: int
    frames: Sequence[Coded]

    def write(self, path: Path) -> None:
        """To a file that only the owner reads."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """From that file."""
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**told, "frames": [Coded(**frame) for frame in told["frames"]]})
