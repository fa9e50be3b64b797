"""What a frame costs on the link at a camera's rate, above TCP and with IP's headers.

The reference pair sends one frame with a question a second, at its default point, through a
counting relay. HTTP/2 frames are counted by type, so pings and window updates that small frames
cause show up. One large upload follows: it needs the windows that such updates would open.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks import command
from benchmarks.compare.arms import Pair
from benchmarks.compare.wire import Service, Shot
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL, cloud_server, ready
from reference.demo.relay import Relay
from reference.demo.testset import TestSet
from reference.report.parts import Table, show

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_TYPES = (
    *("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY"),
    *("WINDOW_UPDATE", "CONTINUATION"),
)
_HEADER = 9


class Http2Frames:
    """Counts HTTP/2 frames by type; a relay's `tap` for plain-text connections.

    Attributes:
        up: frames that clients sent, by type.
        down: frames that clients were sent, by type.
    """

    def __init__(self) -> None:
        self.up: Counter[str] = Counter()
        self.down: Counter[str] = Counter()
        self._rest: dict[tuple[int, bool], bytearray] = {}

    def __call__(self, connection: int, up: bool, data: bytes) -> None:
        """Take a piece of a connection."""
        rest = self._rest.setdefault((connection, up), bytearray())
        rest += data
        if up and rest.startswith(_PREFACE):
            del rest[: len(_PREFACE)]
        while len(rest) >= _HEADER:
            size = _HEADER + int.from_bytes(rest[:3], "big")
            if len(rest) < size:
                return
            kind = _TYPES[rest[3]] if rest[3] < len(_TYPES) else f"type {rest[3]}"
            (self.up if up else self.down)[kind] += 1
            del rest[:size]


def measure(
    service: Service, relay: Relay, frames: Http2Frames, shots: Sequence[Shot], pause_s: float
) -> dict[str, Any]:
    """Send frames one after the other, each with a question, and count what passes."""
    service.infer(shots[:1], ["what is left of the red car ?"])  # pays for what is sent only once
    time.sleep(min(pause_s, 1.0))
    before, up, down = relay.counts(), frames.up.copy(), frames.down.copy()
    message_bytes = 0
    for shot in shots[1:]:
        (reply,) = service.infer([shot], ["what is left of the red car ?"])
        message_bytes += reply.message_bytes
        time.sleep(pause_s)
    passed, count = relay.counts() - before, len(shots) - 1
    return {
        "frames": count,
        "message_bytes": message_bytes / count,
        "uplink_bytes": passed.uplink_bytes / count,
        "uplink_ip_bytes": passed.uplink_ip_bytes / count,
        "uplink_segments": passed.uplink_segments / count,
        "downlink_bytes": passed.downlink_bytes / count,
        "downlink_ip_bytes": passed.downlink_ip_bytes / count,
        "downlink_segments": passed.downlink_segments / count,
        "http2_up": dict(frames.up - up),
        "http2_down": dict(frames.down - down),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("link_bytes", __doc__)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--pause-s", type=float, default=1.0, help="between frames")
    parser.add_argument("--upload-bytes", type=int, default=3 << 20, help="the upload's size")
    return command.run(parser, bench, argv)


def bench(given: argparse.Namespace) -> int:
    """Measure and print."""
    test = TestSet.load("test", given.frames + 1, 1)
    pair = Pair.load(EDGE_MODEL, CLOUD_MODEL, BUNDLE)
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    shots = [pair.encode(state, point).shot for state in pair.states(test.pictures)]
    frames = Http2Frames()
    with tempfile.TemporaryDirectory() as folder:
        with (
            cloud_server(Path(folder) / "cloud.log") as cloud,
            Relay(ready(cloud).address, frames) as relay,
            Service(relay.address, pair.edge.layout, Path(folder)) as service,
        ):
            found = measure(service, relay, frames, shots, given.pause_s)
            large = Shot.of_picture(_noise(given.upload_bytes))
            started = time.perf_counter()
            service.hold([large])
            spent = time.perf_counter() - started
            found["upload_mb_per_s"] = len(large.payload) / spent / 1e6
    rows = [
        (
            name.replace("_", " "),
            *(f"{found[f'{way}_{name}']:.1f}" for way in ("uplink", "downlink")),
        )
        for name in ("bytes", "ip_bytes", "segments")
    ]
    show([Table("On the link", ("per frame", "#up", "#down"), rows)], Console())
    print(json.dumps(found, indent=1))
    return 0


def _noise(size_bytes: int) -> bytes:
    """A picture file of about that size."""
    side = int((size_bytes / 3) ** 0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
