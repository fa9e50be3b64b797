"""The rate ladder of a reference bundle: swept on validation pictures, its convex hull kept.

`python -m reference.calibrate edge-a` measures the committed bundle's points again and writes it
one version up; `reference.build_bundle` ends with the same sweep. Knows the yard and where its
pictures and pairs are kept; how a point is measured and chosen is
`projector/calibration/ladder.py`'s to know.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from projector.bundle.load import Bundle
from projector.bundle.write import write_next
from projector.calibration import ladder
from projector.calibration.ladder import Calibrated, Judge, Sweep
from projector.codec.encoder import Encoder
from projector.models.autocast import product_type, said
from projector.models.vlm import VLM
from projector.serving.backends import Backend
from projector.training.corpus import Corpus, collect
from reference.split import HELD_OUT, Split, pairs_folder

HERE = Path(__file__).parent
SAMPLE_PICTURES = 1024
SELECTOR_PICTURES = 128
QUESTIONS = 6
PRECISION = product_type()
"""Of the large model's products: in bfloat16 a few answers in a thousand are others."""


def sweeps(tokens: int) -> list[Sweep]:
    """Bits and quiet tokens together; fewer latents and tokens at points that could use it.

    Args:
        tokens: of a picture.
    """
    return [
        Sweep(coarseness=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), quiet=(0.0, 6.0)),
        Sweep(coarseness=(2.0, 4.0), quiet=(4.0, 8.0)),
        Sweep(coarseness=(1.0, 4.0), ranks=(24,)),
        Sweep(coarseness=(4.0, 6.0), quiet=(6.0,), tokens=(tokens // 3, tokens // 2)),
    ]


def calibrate(
    encoder: Encoder,
    backend: Backend,
    source: VLM,
    target: VLM,
    corpora: tuple[Corpus, Corpus],
    splits: tuple[Split, Split],
    within: float,
) -> Calibrated:
    """Learn what `task_aware` goes by, then sweep.

    Args:
        encoder: the edge half of a bundle.
        backend: runs its cloud half.
        source: the small model.
        target: the frozen large one.
        corpora: pairs of train and of held-out pictures.
        splits: the pictures and questions of both.
        within: accuracy that the default point may lose against the target's own caches.
    """
    few = corpora[0].part(slice(SELECTOR_PICTURES))
    learnt = Judge(source, target, backend, few, splits[0].questions, QUESTIONS, PRECISION)
    encoder = replace(encoder, task_weights=ladder.learn_task_weights(learnt, encoder))
    sample = ladder.states_of(source, corpora[0].part(slice(SAMPLE_PICTURES)))
    held_out = Judge(source, target, backend, corpora[1], splits[1].questions, QUESTIONS, PRECISION)
    return ladder.calibrate(encoder, held_out, sample, sweeps(source.image_tokens), within)


def certified(made: Calibrated, pictures: int) -> dict[str, Any]:
    """What a certificate says of a sweep: `accuracy` and `payload_bytes` by point, all tried."""
    measured = {p.name: p.measured for p in made.encoder.points if p.measured is not None}
    return {
        "accuracy": {name: one.accuracy for name, one in measured.items()},
        "payload_bytes": {name: one.payload_bytes for name, one in measured.items()},
        "calibration": {
            "pictures": pictures,
            "questions": QUESTIONS * pictures,
            "native": made.native,
            "precision": f"{said(PRECISION)} products in the large model",
            "tried": {name: asdict(one) for name, one in made.tried.items()},
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the edge model's folder under --models")
    parser.add_argument(
        "--within", type=float, default=0.016, help="accuracy that the default point may lose"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--pool", type=Path, default=Path("build/pool"))
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--bundles", type=Path, default=HERE / "bundles")
    parser.add_argument("--out", type=Path, help="default: where the bundle is")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    source, target = VLM.load(args.models / args.name), VLM.load(args.models / "cloud")
    bundle = Bundle.load(args.bundles / f"{args.name}-cloud", source.layout, target.layout)
    backend = bundle.backend("onnxruntime", threads=args.threads)
    splits = Split("train", SAMPLE_PICTURES, args.pool), Split("validation", HELD_OUT, args.pool)
    folder = args.work / pairs_folder(args.name, source, target)
    corpora = (
        collect(source, target, splits[0].picture, SAMPLE_PICTURES, folder / "train"),
        collect(source, target, splits[1].picture, HELD_OUT, folder / "validation", "held out"),
    )
    made = calibrate(bundle.encoder, backend, source, target, corpora, splits, args.within)
    found = certified(made, HELD_OUT)
    kept = {
        name: {k: v for k, v in bundle.certificate[name].items() if k in ("closed_form", "float")}
        for name in ("accuracy", "payload_bytes")
    }
    certificate = {**bundle.certificate, **found}
    for name, values in kept.items():
        certificate[name] = {**values, **found[name]}
    info = write_next(
        bundle,
        (args.out or args.bundles) / f"{args.name}-cloud",
        encoder=made.encoder,
        certificate=certificate,
        default_point=made.default_point,
        ladder=made.ladder,
    )
    print(f"wrote {info.id} version {info.version}, default point {made.default_point}", flush=True)


if __name__ == "__main__":
    main()
