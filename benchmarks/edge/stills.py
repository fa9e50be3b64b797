"""Stills of the test split at one frame a second: our frames beside the smallest picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.compare.arms import Pair
from benchmarks.edge.film import Coded
from benchmarks.edge.links import measure
from benchmarks.edge.rows import LINGERING, SHORT_WAIT_S, Way, row
from benchmarks.rate.pictures import Rival, bare
from edge_agent.frame import Frame
from reference.demo.halves import BUNDLES, CLOUD_MODEL, MODELS
from reference.demo.testset import TestSet

FILE, BARE = Rival("webp", 50, 48), Rival("avif", 35, 64)
"""The smallest file, and the smallest without its container, within two points (docs/rate.md)."""
EDGES = {"edge-a": "x4-q6-r24", "edge-b": "x5-q6"}
"""The default point of the default edge model, and the cheapest point of all within two points."""
FRAMES = 80
WAYS = {
    "linger 0": Way(),
    "linger 0, acknowledgements wait 4 s": Way(ack_wait_s=SHORT_WAIT_S),
    **LINGERING,
}


def stills(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns bytes per frame by arm, and `figures`."""
    pictures = TestSet.load("test", 24 if quick else FRAMES + 1, 1).pictures
    rivals = {
        FILE.name: [Coded.file(FILE.encode(picture)) for picture in pictures],
        f"{BARE.name} without container": [
            Coded.file(bare(BARE.encode(picture))) for picture in pictures
        ],
    }
    found: dict[str, Any] = {}
    for edge, name in EDGES.items():
        bundle = BUNDLES / f"{edge}-cloud"
        pair = Pair.load(MODELS / edge, CLOUD_MODEL, bundle)
        films = {f"{edge} {name}": _coded(pair, name, pictures)}
        arms = [
            how.arm(film, way, frames)
            for film, frames in (films | ({} if found else rivals)).items()
            for way, how in WAYS.items()
        ]
        found |= measure(folder, bundle, pair.edge.layout, arms)

    def over(edge: str, way: str, what: str) -> float:
        ours: float = found[f"{edge} {EDGES[edge]}, {way}"][what]
        other: float = found[f"{FILE.name}, {way}"][what]
        return other / ours

    figures = []
    for edge, point in EDGES.items():
        told = f"stills, {edge} {point}"
        name = f"{told}, linger 0, packets with frames"
        figures.append(row(name, over(edge, "linger 0", "ip_up_data"), 3.3))
        for way, how in WAYS.items():
            name = f"{told}, {way}, all packets up"
            figures.append(row(name, over(edge, way, "ip_up"), 8.0 if how.linger_s else 3.3))
    return {"arms": found, "figures": figures}


def _coded(pair: Pair, name: str, pictures: Sequence[Image.Image]) -> list[Coded]:
    """Key frames of all pictures at a point."""
    point = next(one for one in pair.bundle.encoder.points if one.name == name)
    coded = []
    for number, state in enumerate(pair.states(pictures)):
        shot = pair.encode(state, point).shot
        frame = Frame(point, len(shot.kept), shot.kept, shot.payload, shot.distortion, 0.0, 0.0)
        coded.append(Coded.of(frame, number))
    return coded
