"""`projector calibrate-edge`: learn how far an edge export's own answers can be trusted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
        "learn how far an edge export's own answers can be trusted (for edge-agent --cascade)",
        _run,
        ("max_picture_pixels", "threads"),
        ("projector calibrate-edge exports/edge-a held-out",),
    )
    calibrate.add_argument("export", type=Path, metavar="EXPORT", help="an edge export")
    calibrate.add_argument(
        "data", type=Path, metavar="DATA", help="pictures with true answers, not trained on"
    )


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen)
    import numpy as np

    from projector.calibration.confidence import learn_confidence
    from projector.codec.confidence import features
    from projector.models.exported.manifest import CalibratedConfidence, write_manifest
    from projector.models.exported.vlm import ExportedVLM
    from projector.training.dataset import Dataset
    from projector.validation.estimate import same_answer

    vlm = ExportedVLM.load(args.export, "cpu", chosen.threads)
    data = open_data(args.data, chosen.max_picture_pixels)
    if not isinstance(data, Dataset):
        raise SourceError(f"{args.data} holds texts: an edge export sees pictures")
    rows, right, pictures = [], [], []
    with tables.doing(f"asking about {len(data)} pictures"):
        for index in range(len(data)):
            asked = data.asked(index)
            if not asked:
                continue
            read = vlm.prefill(data.picture(index))
            for each in asked:
                ids = vlm.question_ids(each.text)
                rows.append(features(each.text, vlm.first_token(read.layers, ids)))
                said = vlm.text(vlm.answer(read.layers, ids, _ANSWER_TOKENS))
                right.append(same_answer(said, each.answer))
                pictures.append(index)
    if not rows:
        raise SourceError(f"{args.data} has no questions with answers (questions.jsonl)")
    good = np.array(right)
    made = learn_confidence(np.array(rows), good, np.array(pictures))
    write_manifest(
        args.export,
        vlm.manifest.model_copy(
            update={
                "confidence": CalibratedConfidence(
                    weights=made.confidence.weights.tolist(),
                    bias=made.confidence.bias,
                    questions=len(good),
                    accuracy=float(good.mean()),
                    error=made.error,
                )
            }
        ),
    )
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
