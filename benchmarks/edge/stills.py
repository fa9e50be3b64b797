"""Stills of the test split at one frame a second: our frames beside the smallest picture files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.compare.arms import Pair
from benchmarks.edge.film import Coded
from benchmarks.edge.links import Arm, measure
from benchmarks.edge.rows import ACK_WAIT_S, EVERY_S, LINGER_S, row
from benchmarks.rate.pictures import Rival, bare
from edge_agent.frame import Frame
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.testset import TestSet

FILE, BARE = Rival("webp", 50, 48), Rival("avif", 35, 64)
"""The smallest file, and the smallest without its container, within two points (docs/rate.md)."""
FRAMES = 100
WAYS = {"linger 0": (0.0, 0.0), "acknowledgements wait": (0.0, ACK_WAIT_S), "linger": (LINGER_S, 0)}


def stills(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns bytes per frame by arm, and `figures`."""
    test = TestSet.load("test", 24 if quick else FRAMES + 1, 1)
    pair = Pair.load(EDGE_MODEL, CLOUD_MODEL, BUNDLE)
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    ours = []
    for number, state in enumerate(pair.states(test.pictures)):
        shot = pair.encode(state, point).shot
        frame = Frame(point, len(shot.kept), shot.kept, shot.payload, shot.distortion, 0.0, 0.0)
        ours.append(Coded.of(frame, number))
    files = [Coded.file(FILE.encode(picture)) for picture in test.pictures]
    bares = [Coded.file(bare(BARE.encode(picture))) for picture in test.pictures]
    films = {f"ours {point.name}": ours, FILE.name: files, f"{BARE.name} without container": bares}
    arms = [
        Arm(f"{name}, {way}", film, linger_s, ack_wait_s, EVERY_S)
        for name, film in films.items()
        for way, (linger_s, ack_wait_s) in WAYS.items()
    ]
    found = measure(folder, BUNDLE, pair.edge.layout, arms)

    def over(way: str, what: str, rival: str = FILE.name) -> float:
        mine: float = found[f"ours {point.name}, {way}"][what]
        other: float = found[f"{rival}, {way}"][what]
        return other / mine

    return {
        "arms": found,
        "figures": [
            row("stills, linger 0, packets with frames", over("linger 0", "ip_up_data"), 3.3),
            row("stills, linger 0, all packets up", over("linger 0", "ip_up"), 3.3),
            row(
                "stills, linger 0, acknowledgements wait 4 s, all packets up",
                over("acknowledgements wait", "ip_up"),
                3.3,
            ),
            row("stills, linger 10 s, all packets up", over("linger", "ip_up"), 8.0),
        ],
    }
