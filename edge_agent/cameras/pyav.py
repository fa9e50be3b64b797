"""Reads a camera or a file with FFmpeg, through PyAV."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from edge_agent.cameras.ring import Pixels
from edge_agent.cameras.shot import Shot
from edge_agent.cameras.states import CameraFailure
from edge_agent.sources.address import Address

INSTALL = "pip install 'neural-bridge[video]'"

_STRICT = ("h264", "hevc")
"""Codecs whose damage would smear every picture up to the next key frame, so none is repaired."""
_REFUSED, _REFUSED_SHARE = 3, 10
"""Some cameras always write faulty metadata: if more than a tenth is refused, it is let by."""


class PyavReader:
    """Decodes the first video stream of an address.

    After damaged data it waits for the next key frame: until then pictures would be smeared.

    Args:
        address: of a camera or file.
        open_s: longest wait for the server's answer, seconds.
        stall_s: longest wait for data, seconds.
    """

    def __init__(self, address: Address, open_s: float, stall_s: float) -> None:
        self.dropped: Counter[str] = Counter()
        self._address, self._timeout = address, (open_s, stall_s)
        self._live = address.scheme != "file"

    def shots(self) -> Iterator[Shot]:
        """See `Reader.shots`."""
        try:
            import av
        except ImportError as error:
            cause = f"{self._address.shown} needs PyAV: {INSTALL} ({error})"
            raise CameraFailure("no_decoder", cause) from error
        strict, last_s = True, -math.inf
        while True:
            with av.open(self._address.url, **self._how()) as container:
                if not container.streams.video:
                    raise CameraFailure("unreadable", f"{self._address.shown} has no video")
                for shot in self._decoded(container, strict, av.error.InvalidDataError):
                    if shot is None:
                        break
                    if self._live or shot.media_s is None or shot.media_s > last_s:
                        yield shot
                        last_s = last_s if shot.media_s is None else shot.media_s
                else:
                    return
            strict = False  # this stream never keeps to the standard

    def _decoded(
        self, container: Any, strict: bool, broken: type[Exception]
    ) -> Iterator[Shot | None]:
        """The pictures of an open stream; None at its end if `strict` refuses too many."""
        stream = container.streams.video[0]
        # Decoding several pictures at once would hold each back until the next ones came.
        stream.thread_type = "SLICE" if self._live else "AUTO"
        strict = strict and stream.codec_context.name in _STRICT
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        waiting, good, refused = True, 0, 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                self.dropped["damaged"] += 1
                waiting = True
                continue
            if waiting and packet.size and not packet.is_keyframe:
                self.dropped["no_key_frame"] += 1
                continue
            try:
                frames = packet.decode()
            except (broken, ValueError):
                self.dropped["damaged"] += 1
                refused += 1
                if strict and refused >= _REFUSED and refused * _REFUSED_SHARE > good:
                    yield None
                    return
                stream.codec_context.flush_buffers()
                waiting = True
                continue
            waiting = waiting and not packet.size
            for frame in frames:
                if frame.is_corrupt:
                    self.dropped["damaged"] += 1
                    waiting = True
                else:
                    good += 1
                    yield _shot(frame)

    def _how(self) -> dict[str, Any]:
        """The arguments of `av.open`."""
        address, options = self._address, self._address.options
        if address.scheme.startswith("rtsp"):
            # By itself FFmpeg watches for seconds to find the rate, which nobody needs here.
            quickly = {"analyzeduration": "500000", "fpsprobesize": "0"}
            transport = options.get("transport", "tcp")
            asked = {"rtsp_transport": transport, **quickly}
            return {"options": asked, "timeout": self._timeout}
        if address.scheme == "v4l2":
            asked = {}
            if "width" in options and "height" in options:
                asked["video_size"] = f"{options['width']}x{options['height']}"
            if "format" in options:
                asked["input_format"] = options["format"]
            return {"format": "v4l2", "options": asked, "timeout": self._timeout}
        return {"timeout": self._timeout}


def _shot(frame: Any) -> Shot:
    """A decoded picture, upright."""
    turns = round(frame.rotation / 90) % 4 if frame.rotation else 0
    wide, high = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)

    def render(width: int, height: int) -> Pixels:
        lying = (height, width) if turns % 2 else (width, height)
        samples: Pixels = frame.reformat(*lying, format="rgb24").to_ndarray()
        return np.rot90(samples, turns) if turns else samples

    return Shot(frame.time, wide, high, render)
