"""Shadowing on the reference yard: how often answers differ, by world, and when the alarm comes.

    python -m benchmarks.shadowing --pictures 160

A camera by day is moved to night and to fog, its lens gets dirty, another camera takes its place.
Each picture is answered from its frame and from itself. The outcomes are then drawn again: a
million frames by day for false alarms, and each change many times for the delay.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from rich.console import Console

from benchmarks import command
from benchmarks.compare.arms import MAX_NEW_TOKENS, Pair
from benchmarks.compare.measure import quiet_libraries
from benchmarks.edge.figures import at_most
from benchmarks.guard import made_for
from cloud_server.engine.shadow import relative_errors
from cloud_server.frontend.shadowing.drift import BETS, YEAR_S
from cloud_server.frontend.shadowing.usual import FRAMES, Usual
from cloud_server.shadow_settings import ShadowSettings
from projector.bundle.certificate import shares_that_differ
from projector.codec.answers import same_answer
from projector.models.cache import LayerCache
from protos.process.files import write_file
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.terminal import Terminal
from reference.report.parts import Part, Table, html, percent
from reference.report.parts import show as print_tables
from reference.yard import Question, ask, render, sample_scenes

BLOCK, MOST_QUESTIONS = 32, 16
_AT_ONCE = 64
EVERY_S = 100.0
"""Between two shadowed frames: 1 % of one frame a second."""
MILLION, DEVICES, LONGEST = 1_000_000, 400, 3000
_QUIET = 100
"""Devices that share the million frames."""
TARGET_FRAMES = 200
Rows = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]
Change = Callable[[list[Image.Image], np.random.Generator], list[Image.Image]]


def _clean(pictures: list[Image.Image], _: np.random.Generator) -> list[Image.Image]:
    return pictures


def dirty(pictures: list[Image.Image], rng: np.random.Generator) -> list[Image.Image]:
    """One lens with smears: brown-grey spots out of focus, the same in every picture."""
    width, height = pictures[0].size
    rows, columns = np.mgrid[0:height, 0:width]
    cover = np.zeros((height, width))
    for _ in range(12):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        size = rng.uniform(0.06, 0.16) * min(width, height)
        spot = 0.75 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / size**2)
        cover = np.maximum(cover, spot)
    smear = np.array([96.0, 88.0, 76.0])
    made = []
    for picture in pictures:
        soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.0)), np.float64)
        mixed = soft * (1 - cover[..., None]) + smear * cover[..., None]
        made.append(Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)))
    return made


def other_camera(pictures: list[Image.Image], _: np.random.Generator) -> list[Image.Image]:
    """Another camera: a longer lens, mounted askew, with flat and bluish colours."""
    made = []
    for picture in pictures:
        width, height = picture.size
        turned = picture.rotate(15, Image.Resampling.BICUBIC, expand=False)
        left, top = round(0.16 * width), round(0.16 * height)
        near = turned.crop((left, top, width - left, height - top))
        pixels = np.asarray(near.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        flat = (128 + 0.7 * (pixels - 128)) * np.array([0.9, 1.0, 1.12])
        made.append(Image.fromarray(np.clip(flat, 0, 255).astype(np.uint8)))
    return made


WORLDS: dict[str, tuple[str, Change]] = {
    "day": ("test", _clean),
    "night": ("shifted", _clean),
    "fog": ("shifted", _clean),
    "dirty lens": ("test", dirty),
    "other camera": ("test", other_camera),
}
"""A split of the yard, and what happens to its pictures; half of the shifted split is fog."""


def collect(pair: Pair, world: str, count: int, folder: Path, show: Terminal) -> Rows:
    """The outcomes of a world's pictures; blocks that `folder` holds already are read from it."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks: list[Rows] = []
    first = 0
    with show.stage(f"shadowing: {world}", count) as advance:
        while (have := sum(len(block["differ"]) for block in blocks)) < count:
            path = folder / f"{world.replace(' ', '-')}-{first:06d}.npz"
            if not path.exists():
                blob = io.BytesIO()
                np.savez(blob, **cast(Any, _block(pair, world, first)))
                write_file(path, [blob.getbuffer()])
            with np.load(path) as stored:
                blocks.append({name: stored[name] for name in stored.files})
            advance(min(len(blocks[-1]["differ"]), count - have))
            first += BLOCK
    return {name: np.concatenate([block[name] for block in blocks])[:count] for name in blocks[0]}


def _block(pair: Pair, world: str, first: int) -> Rows:
    """Outcomes of up to 32 pictures.

    Returns:
        `differ` and `kl`, `[n, 16]`, NaN past a picture's last question; `error`, `[n, layers]`.
    """
    split, change = WORLDS[world]
    scenes = sample_scenes(split, first, BLOCK)
    rows = list(range(BLOCK))
    if split == "shifted":
        rows = [row for row in rows if (scenes.fog[row] > 0) == (world == "fog")]
    pixels = render(scenes)
    lens = np.random.default_rng(7)  # the same one for every picture
    pictures = change([Image.fromarray(pixels[row]) for row in rows], lens)
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    frames = [pair.encode(state, point) for state in pair.states(pictures)]
    projected = [torch.as_tensor(part) for part in pair.project(frames)]
    native = pair.cloud.prefill(pictures, attention=False)
    start = native.prefix_tokens
    own = [torch.stack([p[:, :, start:] for p in part]) for part in (native.keys, native.values)]
    error = [
        relative_errors((projected[0][:, n], projected[1][:, n]), (own[0][:, n], own[1][:, n]))
        for n in range(len(rows))
    ]
    asked = [(n, q) for n, row in enumerate(rows) for q in ask(scenes, row, MOST_QUESTIONS, 0)]
    scene = pair.cloud.scene_cache(projected[0], projected[1])
    differ, kl = (np.full((len(rows), MOST_QUESTIONS), np.nan) for _ in range(2))
    turn: Counter[int] = Counter()
    for begin in range(0, len(asked), _AT_ONCE):
        some = asked[begin : begin + _AT_ONCE]
        given, seen = (_answers(pair, layers, some) for layers in (scene, native.layers()))
        for place, (n, _) in enumerate(some):
            differ[n, turn[n]] = not same_answer(given[0][place], seen[0][place])
            p, q = seen[1][place], given[1][place]
            kl[n, turn[n]] = max(0.0, float((p * (np.log(p + 1e-30) - np.log(q + 1e-30))).sum()))
            turn[n] += 1
    return {"differ": differ, "kl": kl, "error": np.array(error)}


def _answers(
    pair: Pair, layers: list[LayerCache], some: list[tuple[int, Question]]
) -> tuple[list[str], Floats]:
    """Answers, and distributions of their first tokens `[Q, V]`."""
    rows = [row for row, _ in some]
    ids = [pair.cloud.question_ids(question.text) for _, question in some]
    chosen = [(keys[rows], values[rows]) for keys, values in layers]
    texts = [pair.cloud.text(made) for made in pair.cloud.answer(chosen, ids, MAX_NEW_TOKENS)]
    chances = pair.cloud.first_token([(keys[rows], values[rows]) for keys, values in layers], ids)
    return texts, chances.astype(np.float64)


# -------------------------------------------------------------------------------- drawn again


def drawn(rows: Rows, devices: int, frames: int, questions: int, rng: np.random.Generator) -> Rows:
    """Outcomes of frames `[devices, frames]`: pictures with `questions` questions, drawn again."""
    count = np.isfinite(rows["differ"]).sum(axis=1)
    pictures = rng.integers(0, len(count), (devices, frames))
    share, kl = np.zeros((devices, frames)), np.zeros((devices, frames))
    for picture in range(len(count)):
        at = np.nonzero(pictures == picture)
        size = min(questions, int(count[picture]))
        order = rng.random((len(at[0]), int(count[picture]))).argsort(axis=1)[:, :size]
        share[at] = rows["differ"][picture][order].mean(axis=1)
        kl[at] = np.minimum(rows["kl"][picture][order], 1.0).mean(axis=1)
    return {"differ": share, "kl": kl}


def first_alarms(outcomes: Floats, limits: Floats, false_alarms: float) -> npt.NDArray[np.int64]:
    """The frame at which each device's alarm begins, -1 for none: `Drift` over many devices.

    Args:
        outcomes: `[devices, frames]`.
        limits: of each device.
        false_alarms: of one test in a year of a device.
    """
    bets = np.array(BETS)[:, None]
    stakes = np.zeros((len(BETS), len(outcomes)))
    first = np.full(len(outcomes), -1)
    for frame in range(outcomes.shape[1]):
        new = (EVERY_S if frame else 86400.0) / YEAR_S
        stakes = (stakes + new) * (1 + bets * (outcomes[:, frame] / limits - 1))
        over = (stakes.mean(axis=0) >= 1 / false_alarms) & (first < 0)
        first[over] = frame
        stakes[:, over] = 0.0
    return first


def alarms(before: Rows, after: Rows, level: float | None, rate: float) -> npt.NDArray[np.int64]:
    """The frame of `after` at which either test raises an alarm; -1 for none; -2 for one before.

    Args:
        before: frames by day, the first of which make what is usual.
        after: frames that follow.
        level: limit of the share of answers that differ; None if it is not tested.
        rate: false alarms of a device in a year.
    """
    kl = before["kl"]
    limits = np.array([_usual(row) for row in kl[:, :FRAMES]])
    change = first_alarms(np.hstack([kl[:, FRAMES:], after["kl"]]), limits, rate / 2)
    found = np.where(change < 0, -1, change - (kl.shape[1] - FRAMES))
    found = np.where((change >= 0) & (found < 0), -2, found)
    if level is not None:
        whole = np.hstack([before["differ"], after["differ"]])
        first = first_alarms(whole, np.full(len(whole), level), rate / 2)
        late = np.where(first < 0, -1, first - kl.shape[1])
        late = np.where((first >= 0) & (late < 0), -2, late)
        both = (found >= 0) & (late >= 0)
        found = np.where(both, np.minimum(found, late), np.where(found == -1, late, found))
        found = np.where(late == -2, -2, found)
    return found


def _usual(figures: Floats) -> float:
    limit = Usual(len(figures), float(figures.sum()), float((figures**2).sum())).limit
    assert limit is not None, "there are enough frames"
    return limit


def examine(
    worlds: Mapping[str, Rows], level: float | None, devices: int = DEVICES
) -> dict[str, Any]:
    """False alarms in a million frames by day, and the delay of each change.

    Args:
        worlds: outcomes by world.
        level: limit of the share of answers that differ; None if it is not tested.
        devices: that each change happens to.
    """
    rng, day = np.random.default_rng(1), worlds["day"]
    defaults = ShadowSettings.model_fields
    questions = int(defaults["shadow_questions"].default)
    rate = float(defaults["shadow_false_alarms"].default)
    quiet = drawn(day, _QUIET, MILLION // _QUIET, questions, rng)
    begin = {name: part[:, : 2 * FRAMES] for name, part in quiet.items()}
    rest = {name: part[:, 2 * FRAMES :] for name, part in quiet.items()}
    false = int((alarms(begin, rest, level, rate) != -1).sum())
    found: dict[str, Any] = {}
    for world, rows in worlds.items():
        found[world] = {
            "pictures": len(rows["differ"]),
            "differ": round(float(np.nanmean(rows["differ"])), 4),
            "kl_nats": round(float(np.nanmean(rows["kl"])), 4),
            "error": round(float(rows["error"].mean()), 4),
            "layer_errors": [round(float(one), 4) for one in rows["error"].mean(axis=0)],
        }
        if world == "day":
            continue
        before = drawn(day, devices, FRAMES + 500, questions, rng)
        after = drawn(rows, devices, LONGEST, questions, rng)
        delays = alarms(before, after, level, rate)
        raised = delays >= 0
        spread = np.where(raised, delays + 1, LONGEST + 1)
        found[world] |= {
            "raised": round(float(raised.mean()), 4),
            "frames_p50": int(np.quantile(spread, 0.5)),
            "frames_p95": int(np.quantile(spread, 0.95)),
        }
    return {
        "questions_a_frame": questions,
        "false_alarms_a_device_year": rate,
        "level_limit": level,
        "frames_by_day": MILLION,
        "false_alarms": false,
        "worlds": found,
    }


def figures(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows for `make bench-observe`: name, value, unit, target, met."""
    night = report["worlds"]["night"]
    return [
        *(
            at_most(f"drift alarm, day to night, {words}", night[name], TARGET_FRAMES, "frames")
            for name, words in (("frames_p50", "median"), ("frames_p95", "95 of 100 cameras"))
        ),
        at_most("false alarms in 1,000,000 frames by day", report["false_alarms"], 1, "alarms"),
    ]


def measure(pictures: int, work: Path, show: Terminal) -> dict[str, Any]:
    """Measure the outcomes on the reference models, and draw them again."""
    quiet_libraries()
    pair = Pair.load(EDGE_MODEL, CLOUD_MODEL, BUNDLE)
    folder = work / made_for(pair)
    worlds = {world: collect(pair, world, pictures, folder, show) for world in WORLDS}
    info = pair.bundle.info
    point = next(p.name for p in info.points if p.index == info.default_point)
    share = shares_that_differ(pair.bundle.certificate).get(point)
    margin = float(ShadowSettings.model_fields["shadow_margin"].default)
    return examine(worlds, None if share is None else share + margin)


def parts(report: Mapping[str, Any]) -> list[Part]:
    """A table of the worlds."""
    rows = [
        (
            world,
            percent(found["differ"]),
            f"{found['kl_nats']:.3f}",
            f"{found['error']:.3f}",
            "" if world == "day" else percent(found["raised"]),
            "" if world == "day" else found["frames_p50"],
            "" if world == "day" else found["frames_p95"],
        )
        for world, found in report["worlds"].items()
    ]
    heads = (
        *("world", "#answers that differ, %", "#KL, nats", "#relative error"),
        *("#alarms raised, %", "#frames to the alarm, median", "#95 %"),
    )
    false = (("frames by day", "false alarms"), [(report["frames_by_day"], report["false_alarms"])])
    return [Table("Shadowing", heads, rows), Table("Without change", *false)]


def bench(given: argparse.Namespace) -> int:
    """Measure, print, write."""
    console = Console()
    report = {
        "command": command.command("shadowing"),
        **measure(given.pictures, given.work, Terminal(console)),
    }
    report["figures"] = figures(report)
    shown = parts(report)
    command.write(report, given.out, html("Shadowing", f"`{report['command']}`", shown))
    print_tables(shown, console)
    return 0


def main() -> int:
    """Command line."""
    parser = command.parser("shadowing", (__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=160, help="of each world")
    parser.add_argument("--work", type=Path, default=command.ROOT / "build" / "shadowing")
    parser.add_argument("--out", type=Path, default=command.REPORTS / "shadowing.json")
    return command.run(parser, bench)


if __name__ == "__main__":
    sys.exit(main())
