"""`projector calibrate-edge`: learn how far a small model's own answers can be trusted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from projector.commands.arguments import add_command
from projector.commands.inputs import open_data
from projector.commands.settings import check, settings_of
from projector.report import tables
from protos.errors import SourceError

_LIMITS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_ANSWER_TOKENS = 16


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    calibrate = add_command(
        commands,
        "calibrate-edge",
        "learn how far a small model's own answers can be trusted (for edge-agent --cascade)",
        _run,
        ("max_picture_pixels", "threads"),
        ("projector calibrate-edge exports/edge-a held-out",),
    )
    calibrate.add_argument(
        "model", type=Path, metavar="MODEL", help="an edge export, or a checkpoint"
    )
    calibrate.add_argument(
        "data", type=Path, metavar="DATA", help="pictures with true answers, not trained on"
    )


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen)
    import numpy as np

    from projector.calibration.confidence import learn_confidence
    from projector.codec.answers import same_answer
    from projector.codec.confidence import features
    from projector.codec.confidence_file import NAME, write_confidence
    from projector.models.exported.manifest import (
        CalibratedConfidence,
        is_export,
        read_manifest,
        write_manifest,
    )
    from projector.training.dataset import Dataset

    asker = _asker(args.model, chosen.threads)
    data = open_data(args.data, chosen.max_picture_pixels)
    if not isinstance(data, Dataset):
        raise SourceError(f"{args.data} holds texts: a small model sees pictures here")
    rows, right, pictures = [], [], []
    with tables.doing(f"asking about {len(data)} pictures"):
        for index in range(len(data)):
            asked = data.asked(index)
            if not asked:
                continue
            about = asker.see(data.picture(index))
            for each in asked:
                first, said = about(each.text)
                rows.append(features(each.text, first))
                right.append(same_answer(said, each.answer))
                pictures.append(index)
    if not rows:
        raise SourceError(f"{args.data} has no questions with answers (questions.jsonl)")
    good = np.array(right)
    made = learn_confidence(np.array(rows), good, np.array(pictures))
    learnt = CalibratedConfidence(
        weights=made.confidence.weights.tolist(),
        bias=made.confidence.bias,
        questions=len(good),
        accuracy=float(good.mean()),
        error=made.error,
    )
    if is_export(args.model):
        manifest = read_manifest(args.model)
        write_manifest(args.model, manifest.model_copy(update={"confidence": learnt}))
    else:
        write_confidence(args.model, asker.fingerprint, learnt)
        print(f"written to {args.model / NAME}")
    print(
        f"{len(good)} questions, {100 * good.mean():.1f} % answered rightly; calibration error "
        f"{100 * made.error:.1f} points"
    )
    print("limit  answered here  of them right  sent up")
    for limit in _LIMITS:
        here = made.crossed >= limit
        share = f"{100 * good[here].mean():.1f} %" if here.any() else "-"
        print(
            f"{limit:5.2f}  {100 * here.mean():11.1f} %  {share:>13}  {100 * (~here).mean():5.1f} %"
        )
    return 0


@dataclass(frozen=True)
class _Asker:
    """A small model, however it runs.

    Attributes:
        fingerprint: of its cache layout.
        see: reads a picture; what it returns gives, for a question, the distribution of the
            answer's first token, and the answer.
    """

    fingerprint: str
    see: Callable[[Image.Image], Callable[[str], tuple[Any, str]]]


def _asker(path: Path, threads: int) -> _Asker:
    from projector.models.exported.manifest import is_export

    if is_export(path):
        return _exported(path, threads)
    import torch

    from projector.models.vlm import VLM
    from protos.process import threads as counts

    counts.use(threads, torch.set_num_threads)
    vlm = VLM.load(path)

    def see(picture: Image.Image) -> Callable[[str], tuple[Any, str]]:
        layers = vlm.prefill([picture], attention=False).layers()

        def about(question: str) -> tuple[Any, str]:
            ids = [vlm.question_ids(question)]
            first = vlm.first_token(layers, ids)[0]
            return first, vlm.text(vlm.answer(layers, ids, _ANSWER_TOKENS)[0])

        return about

    return _Asker(vlm.layout.fingerprint, see)


def _exported(path: Path, threads: int) -> _Asker:
    from projector.models.exported.vlm import ExportedVLM

    vlm = ExportedVLM.load(path, "cpu", threads)

    def see(picture: Image.Image) -> Callable[[str], tuple[Any, str]]:
        read = vlm.prefill(picture)

        def about(question: str) -> tuple[Any, str]:
            ids = vlm.question_ids(question)
            first = vlm.first_token(read.layers, ids)
            return first, vlm.text(vlm.answer(read.layers, ids, _ANSWER_TOKENS))

        return about

    return _Asker(vlm.layout.fingerprint, see)
