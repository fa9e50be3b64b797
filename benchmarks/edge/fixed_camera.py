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
from benchmarks.edge.links import Arm, measure
from benchmarks.edge.rows import EVERY_S, LINGER_S, row
from benchmarks.rate.sequences import QUESTIONS, Film, code
from benchmarks.rate.video import Video, available, coded_pictures
from protos.errors import ConfigError
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
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


def fixed_camera(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns bytes per frame by arm, what was chosen, and `figures`."""
    if not available():
        return {"skipped": "no ffmpeg (Debian: apt-get install ffmpeg)", "figures": []}
    pair = Pair.load(EDGE_MODEL, CLOUD_MODEL, BUNDLE)
    chosen = _chosen(folder.with_name("fixed-camera-video.json"), pair, quick)
    video = Video(**chosen["video"])
    sequences = 1 if quick else SEQUENCES
    film = _film("test", sequences, FRAMES)
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    ours = list(code(pair, pair.states(film.pictures), FRAMES, point, True))
    films = {
        f"ours {point.name}, delta frames": [Coded.of(one, i) for i, one in enumerate(ours)],
        video.name: [
            Coded.file(part)
            for part in coded_pictures(video.codec, video.encode(film.pictures, FRAMES))
        ],
    }
    arms = [
        Arm(f"{name}, {way}", frames, linger_s, 0.0, EVERY_S)
        for name, frames in films.items()
        for way, linger_s in (("linger 0", 0.0), ("linger", LINGER_S))
    ]
    found = measure(folder, BUNDLE, pair.edge.layout, arms)
    mine, other = (found[f"{name}, linger"]["ip_up"] for name in films)
    return {
        "arms": found,
        "chosen": chosen,
        "figures": [row("fixed camera, 1 frame/s, linger 10 s, all packets up", other / mine, 4.0)],
    }


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


def _chosen(kept: Path, pair: Pair, quick: bool) -> dict[str, Any]:
    """The smallest video within two points of seeing the frames, on validation; kept in a file.

    Raises:
        ConfigError: no setting is within two points.
    """
    if kept.is_file():
        known: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    film = _film("validation", 2 if quick else 8, 24)

    def share(answers: Sequence[str]) -> float:
        return float(np.mean(film.right(answers)))

    native = share(seeing(pair.cloud, film.pictures, film.asked, lambda _: None))
    rows: list[dict[str, Any]] = []
    for video in VIDEOS:
        stream = video.encode(film.pictures, film.frames)
        seen = video.decode(stream, len(film.pictures))
        size = sum(map(len, coded_pictures(video.codec, stream))) / len(film.pictures)
        right = share(seeing(pair.cloud, seen, film.asked, lambda _: None))
        rows.append({"video": vars(video), "bytes": round(size, 2), "minus_seeing": right - native})
        print(f"edge: {video.name}: {size:.1f} bytes, {100 * (right - native):+.1f} points")
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    coded = list(code(pair, pair.states(film.pictures), film.frames, point, True))
    shown = [
        Shown(Shot(point.index, b""), one.held.latents, one.held.kept)
        for one in coded
        if one.held is not None
    ]
    injected = pair.injected(shown, [(q.picture, q.text) for q in film.asked], lambda _: None)
    within = [one for one in rows if one["minus_seeing"] >= -WITHIN]
    if not within:
        raise ConfigError("no video setting is within two points of seeing the frames")
    best = min(within, key=lambda one: float(one["bytes"]))
    found = {
        "seeing": native,
        "ours_minus_seeing": share(injected) - native,
        **best,
        "rows": rows,
        "questions": len(film.asked),
    }
    if not quick:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
