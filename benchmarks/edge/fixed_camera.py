"""A fixed camera at one frame a second: our delta frames beside video, sent in the same way.

Video gets more than a device could give it: its frames may refer to frames of a later message, and
parameter sets, start codes and delimiters are not counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.compare.arms import Frame as Shown
from benchmarks.compare.arms import Pair, seeing
from benchmarks.compare.figures import WITHIN
from benchmarks.compare.wire import Shot
from benchmarks.edge.film import Coded
from benchmarks.edge.links import measure
from benchmarks.edge.rows import LINGERING, Way, row
from benchmarks.rate.sequences import QUESTIONS, Film, code
from benchmarks.rate.video import Video, available, coded_pictures
from protos.errors import ConfigError
from protos.points import OperatingPoint
from reference.demo.halves import BUNDLES, CLOUD_MODEL, MODELS
from reference.demo.testset import Asked
from reference.yard import render, sample_sequence

STRIDE = 10
"""The yard's films have ten frames a second."""
SEQUENCES, FRAMES, EVERY = 4, 40, 4
VIDEOS = tuple(
    Video(codec, rate, px, group)
    for codec, rate, px in (
        *(("h264", 38, 64), ("h264", 38, 96), ("h264", 32, 64), ("h264", 26, 64)),
        *(("h265", 44, 96), ("h265", 38, 96), ("h265", 32, 64), ("av1", 50, 64)),
    )
    for group in ("reordered", "long")
)
"""Near the frontier at one frame a second; cheaper ones lose more than two points."""


OURS = (
    ("edge-a", "x4-q6-r24"),
    ("edge-a", "x4-q8-r24"),
    ("edge-a", "x5-q6"),
    ("edge-b", "x6-q6"),
    ("edge-b", "x5-q6"),
    ("edge-c", "x5-q6"),
)
"""The default, and points near the frontier."""
WAYS = {"linger 0": Way(), **LINGERING}


def fixed_camera(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns bytes per frame by arm, what was chosen, and `figures`."""
    if not available():
        return {"skipped": "no ffmpeg (Debian: apt-get install ffmpeg)", "figures": []}
    chosen = _chosen(folder.with_name("fixed-camera-chosen.json"), quick)
    video = Video(**chosen["video"]["video"])
    film = _film("test", 1 if quick else SEQUENCES, FRAMES)
    rival = [
        Coded.file(part)
        for part in coded_pictures(video.codec, video.encode(film.pictures, FRAMES))
    ]
    found: dict[str, Any] = {}
    figures = []
    for edge, name in dict.fromkeys((OURS[0], (chosen["ours"]["edge"], chosen["ours"]["point"]))):
        pair = _pair(edge)
        ours = list(code(pair, pair.states(film.pictures), FRAMES, _point(pair, name), True))
        mine = f"{edge} {name}, delta frames"
        films = {mine: [Coded.of(one, i) for i, one in enumerate(ours)]}
        if not found:
            films[video.name] = rival
        arms = [
            how.arm(film, way, frames)
            for film, frames in films.items()
            for way, how in WAYS.items()
        ]
        found |= measure(folder, BUNDLES / f"{edge}-cloud", pair.edge.layout, arms)
        for way in LINGERING:
            over = found[f"{video.name}, {way}"]["ip_up"] / found[f"{mine}, {way}"]["ip_up"]
            told = f"fixed camera, 1 frame/s, {edge} {name}, {way}, all packets up"
            figures.append(row(told, over, 4.0))
    return {"arms": found, "chosen": chosen, "figures": figures}


def _pair(edge: str) -> Pair:
    return Pair.load(MODELS / edge, CLOUD_MODEL, BUNDLES / f"{edge}-cloud")


def _point(pair: Pair, name: str) -> OperatingPoint:
    return next(point for point in pair.bundle.encoder.points if point.name == name)


def _film(split: str, sequences: int, frames: int) -> Film:
    """The first sequences of a split at one frame a second."""
    pictures: list[Image.Image] = []
    asked: list[Asked] = []
    for number in range(sequences):
        made = sample_sequence(split, number, 0, (frames - 1) * STRIDE + 1)
        first = len(pictures)
        pictures += [Image.fromarray(pixels) for pixels in render(made.drawn)[::STRIDE]]
        for frame in range(EVERY - 1, frames, EVERY):
            for q in made.ask(frame * STRIDE, QUESTIONS, 0):
                asked.append(Asked(first + frame, q.text, q.kind, q.answer))
    return Film(pictures, frames, asked)


def _chosen(kept: Path, quick: bool) -> dict[str, Any]:
    """The smallest of each side within two points of seeing the frames, on validation.

    Returns:
        `video` and `ours`, and the `rows` they were chosen from; kept in a file.

    Raises:
        ConfigError: no setting of a side is within two points.
    """
    if kept.is_file():
        known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    film = _film("validation", 2 if quick else 8, 24)

    def share(answers: Sequence[str]) -> float:
        return float(np.mean(film.right(answers)))

    pairs = {edge: _pair(edge) for edge in dict(OURS)}
    cloud = pairs[OURS[0][0]].cloud
    native = share(seeing(cloud, film.pictures, film.asked, lambda _: None))
    rows: dict[str, list[dict[str, Any]]] = {"video": [], "ours": []}

    def add(side: str, name: str, size: float, right: float, **what: Any) -> None:
        rows[side].append({**what, "bytes": round(size, 2), "minus_seeing": right - native})
        print(f"edge: {name}: {size:.1f} bytes, {100 * (right - native):+.1f} points", flush=True)

    for video in VIDEOS:
        stream = video.encode(film.pictures, film.frames)
        seen = video.decode(stream, len(film.pictures))
        size = sum(map(len, coded_pictures(video.codec, stream))) / len(film.pictures)
        right = share(seeing(cloud, seen, film.asked, lambda _: None))
        add("video", video.name, size, right, video=vars(video))
    states = {edge: pair.states(film.pictures) for edge, pair in pairs.items()}
    for edge, name in OURS:
        pair = pairs[edge]
        coded = list(code(pair, states[edge], film.frames, _point(pair, name), True))
        shown = [
            Shown(Shot(one.point.index, b""), one.held.latents, one.held.kept)
            for one in coded
            if one.held is not None
        ]
        asked = [(q.picture, q.text) for q in film.asked]
        size = sum(len(one.payload) for one in coded) / len(coded)
        right = share(pair.injected(shown, asked, lambda _: None))
        add("ours", f"{edge} {name}", size, right, edge=edge, point=name)
    found: dict[str, Any] = {"seeing": native, "questions": len(film.asked), "rows": rows}
    for side, some in rows.items():
        within = [one for one in some if one["minus_seeing"] >= -WITHIN]
        if not within:
            raise ConfigError(f"no setting of {side} is within two points of seeing the frames")
        found[side] = min(within, key=lambda one: float(one["bytes"]))
    if not quick:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
