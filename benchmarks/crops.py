"""Crops: accuracy and bytes of frame alone, crop where unsure, and picture where unsure.

    python -m benchmarks.crops --pictures 512

Asked about are the questions with the highest risk by the service's guard that look at a part of
the picture small enough for a crop; the same ones in every arm.
The crop is the part that the engine would ask for (`cloud_server/engine/crop.py`). It is answered
in three ways: from scene and crop, from the crop at its place on a canvas, and from the crop alone.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console

from benchmarks import command
from benchmarks.compare.arms import MAX_NEW_TOKENS, Frame, Pair
from benchmarks.compare.measure import quiet_libraries
from benchmarks.guard import made_for
from cloud_server.engine import crop
from edge_agent.picture import PictureCodec
from edge_agent.uplink.crops import crop_file
from projector.codec.answers import same_answer
from projector.codec.risk import RiskModel, received_features
from projector.models.cache import LayerCache
from projector.models.pictures import read
from projector.validation.estimate import LEAST_EVENTS
from protos.errors import ConfigError
from protos.process.files import write_file
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.terminal import Terminal
from reference.report.parts import Part, Table, html, percent
from reference.report.parts import show as print_tables
from reference.yard import Question, ask, render, sample_scenes

BLOCK, QUESTIONS = 32, 6
SHARES = (0.05, 0.1, 0.2)
_UNSURE = 0.25
"""Share of a block's questions that are asked about crops: more than any of `SHARES`."""
_SMALL = PictureCodec(quality=50, longest_px=48)
"""The smallest pictures within two points of the best (docs/rate.md)."""
_MOST_BYTES = 16 << 10
ATTENTION, MOST_SHARE = 0.6, 0.67
"""As the service's settings have them by default."""
ARMS = {
    "frame": "frame alone",
    "alone": "crop where unsure, seen alone",
    "pasted": "crop where unsure, on a canvas",
    "spliced": "crop where unsure, with the scene",
    "small": "picture of 48 px where unsure",
    "whole": "picture where unsure",
}
Rows = dict[str, npt.NDArray[Any]]


def collect(pair: Pair, split: str, count: int, folder: Path, show: Terminal) -> Rows:
    """Ask about pictures of the yard; blocks that `folder` holds already are read from it."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks: list[Rows] = []
    with show.stage(f"{split}: crops", -(-count // BLOCK)) as advance:
        for first in range(0, count, BLOCK):
            path = folder / f"crops-{split}-{first:06d}.npz"
            if not path.exists():
                blob = io.BytesIO()
                np.savez(blob, **cast(Any, _block(pair, split, first)))
                write_file(path, [blob.getbuffer()])
            with np.load(path) as stored:
                blocks.append({name: stored[name] for name in stored.files})
            advance(1)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _block(pair: Pair, split: str, first: int) -> Rows:
    """The rows of 32 pictures, one a question."""
    scenes = sample_scenes(split, first, BLOCK)
    pictures = [Image.fromarray(pixels) for pixels in render(scenes)]
    asked = [(row, q) for row in range(BLOCK) for q in ask(scenes, row, QUESTIONS, 0)]
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    frames = [pair.encode(state, point) for state in pair.states(pictures)]
    projected = [torch.as_tensor(part) for part in pair.project(frames)]
    risk = _risks(pair, frames, asked)
    rows = [row for row, _ in asked]
    scene = pair.cloud.scene_cache(*projected)
    said = _answers(pair, scene, rows, asked)
    found: Rows = {
        "risk": risk,
        "frame": _right(said, asked),
        "frame_bytes": np.array([len(frames[row].shot.payload) for row in rows]),
    }
    unsure = np.sort(np.argsort(-risk, kind="stable")[: round(_UNSURE * len(asked))])
    some = [asked[index] for index in unsure]
    seen, parts, attention, files = _cropped(pair, projected, pictures, some)
    arms = {
        "native": _seeing(pair, [pictures[row] for row, _ in some]),
        "whole": _seeing(pair, [read(PictureCodec().encode(pictures[row])) for row, _ in some]),
        "small": _seeing(pair, [read(_SMALL.encode(pictures[row])) for row, _ in some]),
        "alone": _seeing(pair, parts),
        "pasted": _seeing(pair, seen[0]),
    }
    arms["spliced"] = _spliced(arms["pasted"], scene, [row for row, _ in some], seen[1])
    each = list(range(len(some)))
    answers = {name: _answers(pair, layers, each, some) for name, layers in arms.items()}
    for name, texts in answers.items():
        found[name] = found["frame"].copy()
        found[name][unsure] = _right(texts, some)
    for name, differ in (
        ("frame", [said[index] for index in unsure]),
        ("spliced", answers["spliced"]),
    ):
        column = np.zeros(len(asked), dtype=np.bool_)
        column[unsure] = [
            not same_answer(one, other)
            for one, other in zip(differ, answers["native"], strict=True)
        ]
        found[f"{name}_differs"] = column
    for name, values in (
        ("crop_bytes", [len(file) for file in files]),
        ("small_bytes", [len(_SMALL.encode(pictures[row])) for row, _ in some]),
        ("whole_bytes", [len(PictureCodec().encode(pictures[row])) for row, _ in some]),
        ("attention", attention),
    ):
        figures = np.zeros(len(asked))
        figures[unsure] = values
        found[name] = figures
    return found


def _risks(
    pair: Pair, frames: list[Frame], asked: list[tuple[int, Question]]
) -> npt.NDArray[np.float64]:
    """The risk of each question by the service's guard."""
    guard: RiskModel | None = pair.bundle.service_risk
    if guard is None:
        raise ConfigError(f"bundle {pair.bundle.info.id} has no guard for the service")
    centre, found = pair.bundle.encoder.centre, []
    for row, question in asked:
        frame = frames[row]
        moved = frame.latents[frame.kept] - centre[frame.kept]
        assert frame.shot.distortion is not None
        found.append(received_features(frame.shot.distortion, question.text, moved))
    return guard.risk(np.stack(found)).astype(np.float64)


def _cropped(
    pair: Pair,
    projected: list[torch.Tensor],
    pictures: list[Image.Image],
    some: list[tuple[int, Question]],
) -> tuple[
    tuple[list[Image.Image], list[npt.NDArray[np.bool_]]],
    list[Image.Image],
    list[float],
    list[bytes],
]:
    """Canvases with their windows, the crops, the attention in each, and the files."""
    cloud = pair.cloud
    keys, values = zip(*cloud.constant_prefix(), strict=True)
    prefix = torch.cat(keys), torch.cat(values)
    canvases, windows, parts, shares, files = [], [], [], [], []
    for row, question in some:
        context = projected[0][:, row], projected[1][:, row]
        box, attention = crop.wanted(
            cloud, context, prefix, cloud.question_ids(question.text), ATTENTION, MOST_SHARE
        )
        file = crop_file(pictures[row], box, _MOST_BYTES)
        part = read(file)
        canvases.append(crop.on_canvas(part, box, 4096))
        windows.append(crop.inside(box, cloud.layout.grid))
        parts.append(part)
        shares.append(attention)
        files.append(file)
    return (canvases, windows), parts, shares, files


def _seeing(pair: Pair, pictures: list[Image.Image]) -> list[LayerCache]:
    return pair.cloud.prefill(pictures, attention=False).layers()


def _spliced(
    canvas: list[LayerCache],
    scene: list[LayerCache],
    rows: list[int],
    windows: list[npt.NDArray[np.bool_]],
) -> list[LayerCache]:
    """The scenes of some rows with the tokens inside their windows from the canvases."""
    tokens = windows[0].size
    seen = torch.as_tensor(np.stack(windows))[:, None, :, None]
    made = []
    for there, here in zip(canvas, scene, strict=True):
        both = []
        for theirs, ours in zip(there, here, strict=True):
            part = ours[rows].clone()
            start = part.shape[2] - tokens
            part[:, :, start:] = torch.where(seen, theirs[:, :, start:], part[:, :, start:])
            both.append(part)
        made.append((both[0], both[1]))
    return made


def _answers(
    pair: Pair, layers: list[LayerCache], rows: list[int], asked: list[tuple[int, Question]]
) -> list[str]:
    cloud, texts = pair.cloud, []
    for first in range(0, len(rows), 2 * BLOCK):
        some = rows[first : first + 2 * BLOCK]
        ids = [cloud.question_ids(q.text) for _, q in asked[first : first + 2 * BLOCK]]
        cache = [(keys[some], values[some]) for keys, values in layers]
        texts += [cloud.text(made) for made in cloud.answer(cache, ids, MAX_NEW_TOKENS)]
    return texts


def _right(texts: list[str], asked: list[tuple[int, Question]]) -> npt.NDArray[np.bool_]:
    return np.array(
        [same_answer(text, q.answer) for text, (_, q) in zip(texts, asked, strict=True)]
    )


def examine(rows: Rows) -> dict[str, Any]:
    """Accuracy and bytes of each arm at each share, and how well the result is judged."""
    shares = {}
    more = dict.fromkeys((*ARMS, "native"), rows["crop_bytes"]) | {
        "frame": np.zeros(len(rows["risk"])),
        "small": rows["small_bytes"],
        "whole": rows["whole_bytes"],
        "native": rows["whole_bytes"],
    }
    for share in SHARES:
        unsure = rows["risk"] >= np.quantile(rows["risk"], 1 - share)
        over = unsure & (rows["attention"] >= ATTENTION)
        arms = {}
        for name in (*ARMS, "native"):
            right = np.where(over, rows[name], rows["frame"])
            sent = rows["frame_bytes"] + np.where(over, more[name], 0.0)
            arms[name] = {
                "accuracy": round(float(right.mean()), 4),
                "accuracy_asked": round(float(rows[name][over].mean()), 4),
                "payload_bytes": round(float(sent.mean()), 1),
            }
        shares[f"{share:g}"] = {
            "questions_unsure": int(unsure.sum()),
            "questions_asked": int(over.sum()),
            "arms": arms,
            "differs_frame": round(float(rows["frame_differs"][over].mean()), 4),
            "risk_frame": round(float(rows["risk"][over].mean()), 4),
            "differs_crop": round(float(rows["spliced_differs"][over].mean()), 4),
            "gain": _gain(rows, over),
            "crop_bytes": round(float(rows["crop_bytes"][over].mean()), 1),
            "whole_bytes": round(float(rows["whole_bytes"][over].mean()), 1),
            "attention": round(float(rows["attention"][over].mean()), 4),
        }
    return {"questions": len(rows["risk"]), "shares": shares}


def _gain(rows: Rows, over: npt.NDArray[np.bool_]) -> float | None:
    """The service's `crop_gain`; None if too few of the frames' answers differ to tell."""
    before, after = int(rows["frame_differs"][over].sum()), int(rows["spliced_differs"][over].sum())
    if before < LEAST_EVENTS:
        return None
    return round((1 - after / before) / float(rows["attention"][over].mean()), 4)


def parts(report: dict[str, Any]) -> list[Part]:
    """A table of the arms, and one of how often answers differ from the picture's."""
    arms, risks = [], []
    for share, found in report["shares"].items():
        for name, words in ARMS.items():
            row = found["arms"][name]
            accuracy, asked = percent(row["accuracy"]), percent(row["accuracy_asked"])
            which = f"{percent(float(share))} ({found['questions_asked']} asked)"
            arms.append((which, words, accuracy, asked, f"{row['payload_bytes']:.0f}"))
        risks.append(
            (
                percent(float(share)),
                *(percent(found[name]) for name in ("risk_frame", "differs_frame", "differs_crop")),
                "cannot be judged" if found["gain"] is None else f"{found['gain']:.2f}",
            )
        )
    heads = ("#unsure, %", "arm", "#right, %", "#right of those asked, %", "#bytes a question")
    judging = (
        *("#unsure, %", "#risk of the frame, %", "#answers that differ, %"),
        *("#with the crop, %", "#gain"),
    )
    return [
        Table("Crops", heads, arms),
        Table("Answers that differ from the picture's", judging, risks),
    ]


def bench(given: argparse.Namespace) -> int:
    """Ask, judge, print, write."""
    console = Console()
    show = Terminal(console)
    quiet_libraries()
    pair = Pair.load(given.edge, given.cloud, given.bundle)
    work = given.work / made_for(pair)
    rows = collect(pair, given.split, given.pictures, work, show)
    report = {
        "command": command.command("crops"),
        "bundle": pair.bundle.digest,
        "split": given.split,
        **examine(rows),
    }
    shown = parts(report)
    command.write(report, given.out, html("Crops", f"`{report['command']}`", shown))
    print_tables(shown, console)
    return 0


def main() -> int:
    """Command line."""
    parser = command.parser("crops", (__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--split", choices=("validation", "test", "shifted"), default="validation")
    parser.add_argument("--edge", type=Path, default=EDGE_MODEL)
    parser.add_argument("--cloud", type=Path, default=CLOUD_MODEL)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--work", type=Path, default=command.ROOT / "build" / "guard")
    parser.add_argument("--out", type=Path, default=command.REPORTS / "crops.json")
    return command.run(parser, bench)


if __name__ == "__main__":
    sys.exit(main())
