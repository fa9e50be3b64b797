"""`projector guard`: a bundle's two guards learn when a frame's answer differs from the picture's.

The device's guard sees the picture; the service's guard sees only the frame.

Answers are compared in `projector/calibration/disagreement.py`, the risk is learnt in
`projector/calibration/learn_risk.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from projector.commands.arguments import add_pair_command, rate, seed, whole
from projector.commands.inputs import open_data
from projector.commands.models import open_models
from projector.report import tables
from projector.training import preflight
from protos.errors import ConfigError
from protos.process.progress import Progress

if TYPE_CHECKING:
    from projector.bundle.load import Bundle
    from projector.calibration.disagreement import Comparison, Rows
    from projector.calibration.learn_risk import Learnt
    from projector.training.dataset import Dataset

_PICTURES = 8
"""Pictures asked about at a time, and kept in one file."""


def register(commands: Any) -> None:
    """Add the command to `projector`'s sub-parsers."""
    parser = add_pair_command(
        commands,
        "guard",
        "teach a bundle's guards to tell when a frame's answer differs from the picture's",
        _guard,
        "projector guard bundles/calibrated held-out/ bundles/guarded "
        "--source models/edge-a --target models/cloud",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a calibrated bundle's folder")
    parser.add_argument("held", type=Path, metavar="HELD", help="held-out pictures and questions")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the guarded bundle")
    parser.add_argument(
        "--work",
        type=Path,
        help="folder that keeps the answers, so that a stopped run goes on (default: HELD-asked)",
    )
    parser.add_argument(
        "--questions",
        type=whole,
        default=6,
        help="questions per picture, at most; default: %(default)s",
    )
    parser.add_argument(
        "--within",
        type=rate,
        default=0.015,
        help="accuracy that frames may lose against pictures; this sets the guard's limit; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--unusual",
        type=rate,
        default=0.5,
        help="share of pictures that are first darkened, blurred or tilted, so that the guard "
        "learns what is unfamiliar; 0 if HELD has such pictures itself; default: %(default)s",
    )
    parser.add_argument(
        "--answer-tokens",
        type=whole,
        default=16,
        help="tokens of an answer, at most; default: %(default)s",
    )
    parser.add_argument(
        "--service-only",
        action="store_true",
        help="learn only the service's guard; the edge half with the device's guard stays as it is",
    )
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")


def _guard(args: argparse.Namespace) -> int:
    import torch

    from projector.bundle.load import Bundle
    from projector.bundle.write import write_next
    from projector.calibration.canary_frames import canary_set
    from projector.calibration.disagreement import Comparison
    from projector.calibration.learn_risk import learn
    from projector.models.vlm import VLM
    from projector.training.dataset import Texts

    data = open_data(args.held, args.max_picture_pixels)
    if isinstance(data, Texts):
        raise ConfigError(
            "the guard is for pictures: a text travels whole, and no picture could replace it"
        )
    data.require_questions(args.questions)
    held = args.held.resolve()
    work = args.work or held.with_name(held.name + "-asked")
    Bundle.peek(args.bundle)
    preflight.writable(work)
    preflight.writable(args.out)
    source, target = open_models(args, data)
    if not isinstance(source, VLM) or not isinstance(target, VLM):
        raise ConfigError("the guard is for pictures, and these models read texts")
    bundle = Bundle.load(args.bundle, source.layout, target.layout)
    backend = bundle.backend("onnxruntime", threads=torch.get_num_threads())
    between = Comparison(source, target, bundle.encoder, backend, args.answer_tokens)
    rows = _ask(between, bundle, data, args, work)
    default = rows.point == bundle.info.default_point

    def learnt_from(features: npt.NDArray[np.float32]) -> tuple[Learnt, dict[str, Any]]:
        learnt = learn(
            features,
            rows.disagree,
            rows.picture,
            rows.right_frame,
            rows.right_picture,
            args.within,
            limiting=default,
        )
        told = {"unusual_share": args.unusual, "within": args.within}
        return learnt, _found(bundle, rows, learnt) | told

    service, certified = learnt_from(rows.received)
    encoder, certificate = bundle.encoder, {**bundle.certificate, "service_guard": certified}
    if not args.service_only:
        device, certificate["guard"] = learnt_from(rows.found)
        encoder = replace(encoder, risk=device.risk)
        _show("the device's guard", certificate["guard"])
    info = write_next(
        bundle,
        args.out,
        encoder=encoder,
        certificate=certificate,
        service_risk=service.risk,
        canary=canary_set(source, target, encoder, backend, data, bundle.info.default_point),
    )
    _show("the service's guard", certified)
    print(f"wrote bundle {info.id} version {info.version} to {args.out}")
    return 0


def _ask(
    between: Comparison, bundle: Bundle, data: Dataset, args: argparse.Namespace, work: Path
) -> Rows:
    """Ask every question from frames and from pictures; earlier answers are read from files."""
    from projector.calibration.disagreement import FORMAT, Rows, lesson_points
    from projector.calibration.unusual import unusual
    from protos.process.files import write_files

    bare = hashlib.sha256(replace(bundle.encoder, risk=None).to_bytes() + bundle.cloud.weights)
    plan: list[Any] = [FORMAT, data.digest, data.questions_digest, bare.hexdigest()]
    plan += [list(bundle.info.ladder), bundle.info.default_point]
    plan += [args.questions, args.unusual, args.seed]
    plan += [between.max_new_tokens, between.target.layout.fingerprint]
    made_for = hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)
    parts: list[Rows] = []
    with Progress("asking", len(data), "picture") as shown:
        for first in range(0, len(data), _PICTURES):
            name = f"{made_for}-{first:07d}.npz"
            size = min(_PICTURES, len(data) - first)
            if (work / name).exists():
                shown.skip(size)
            else:
                rng = np.random.default_rng([args.seed, first])
                block = [i for i in range(first, first + size) if data.asked(i)]
                if not block:
                    shown.skip(size)
                    continue
                changed = [bool(rng.random() < args.unusual) for _ in block]
                pictures = [
                    unusual(data.picture(index), rng) if so else data.picture(index)
                    for index, so in zip(block, changed, strict=True)
                ]
                made = between.rows(
                    pictures,
                    [[(q.text, q.answer) for q in data.asked(i)[: args.questions]] for i in block],
                    [
                        lesson_points(
                            bundle.encoder, bundle.info.ladder, bundle.info.default_point, rng
                        )
                        for _ in block
                    ],
                    block,
                    changed,
                )
                blob = io.BytesIO()
                np.savez(blob, **vars(made))
                write_files(work, {name: blob.getvalue()})
                shown.advance(size)
            with np.load(work / name, allow_pickle=False) as stored:
                parts.append(Rows(**{field: stored[field] for field in stored.files}))
    return Rows.join(parts)


def _found(bundle: Bundle, rows: Rows, learnt: Learnt) -> dict[str, Any]:
    """A certificate's figures of the guard, cross-fitted.

    Each half of the pictures is judged by the risk and limit learnt from the other half.
    """
    from projector.validation.estimate import LEAST_EVENTS, auroc, clustered

    default = rows.point == bundle.info.default_point
    usual, risk, over = rows.where(default), learnt.crossed[default], learnt.over[default]
    differ = int(usual.disagree.sum())
    told = min(differ, len(usual) - differ) >= LEAST_EVENTS
    answers = {
        "frames": usual.right_frame,
        "guarded": np.where(over, usual.right_picture, usual.right_frame),
        "seeing": usual.right_picture,
    }

    def of(those: npt.NDArray[np.bool_]) -> dict[str, Any]:
        pictures = usual.picture[those].tolist()
        right = {
            name: clustered(r[those].tolist(), pictures).to_json() for name, r in answers.items()
        }
        return right | {"over_the_limit": round(float(over[those].mean()), 4)}

    kinds = {"ordinary": ~usual.unusual, "unusual": usual.unusual}
    return {
        "pictures": len(np.unique(usual.picture)),
        "questions": len(usual),
        "limit": round(learnt.risk.limit, 4),
        "auroc": round(auroc(risk, usual.disagree), 4) if told else None,
        **{kind: of(those) for kind, those in kinds.items() if those.any()},
        "by_point": {
            bundle.encoder.point(index).name: {
                "questions": int(there.sum()),
                "disagree": round(float(rows.disagree[there].mean()), 4),
                "risk": round(float(learnt.crossed[there].mean()), 4),
            }
            for index in bundle.info.ladder
            if (there := rows.point == index).any()
        },
    }


def _show(whose: str, found: dict[str, Any]) -> None:
    heads = ("operating point", "#questions", "#answers that differ", "#risk, mean")
    shown = [
        (name, one["questions"], f"{100 * one['disagree']:.1f} %", f"{100 * one['risk']:.1f} %")
        for name, one in found["by_point"].items()
    ]
    right = [
        (
            f"{kind} pictures: {said}",
            *(f"{100 * found[kind][name][end]:.1f} %" for end in ("mean", "low", "high")),
        )
        for kind in ("ordinary", "unusual")
        if kind in found
        for said, name in (
            ("from frames alone", "frames"),
            (f"guarded, {100 * found[kind]['over_the_limit']:.1f} % as pictures", "guarded"),
            ("from every picture", "seeing"),
        )
    ]
    auroc = "cannot be judged" if found["auroc"] is None else f"{found['auroc']:.3f}"
    tables.print_tables(
        [
            tables.table(f"{whose}: limit {found['limit']:.2f}, AUROC {auroc}", heads, shown),
            tables.table(
                "right answers about the unchanged picture",
                ("", "#mean", "#low", "#high"),
                right,
            ),
        ]
    )
