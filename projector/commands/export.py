"""`projector export`: write a map and its validation as a bundle to serve."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from projector.commands.arguments import (
    add_feedback_rank,
    add_pair_command,
    add_text_tokens,
    count,
    whole,
)
from projector.commands.inputs import corpus_size, open_corpus, open_data
from projector.commands.models import open_models
from projector.models.foreign import in_words
from projector.report import tables
from projector.training import preflight
from projector.training.map_folder import identity_of, map_bytes, read_map, same_map
from protos.errors import BridgeError, ConfigError, UselessMapError
from protos.process.files import without_mark
from protos.process.progress import note

_MAX_REPORT_BYTES = 1 << 24
_CONTROLS = ("native", "blind", "other_picture", "mean_state", "untrained_map", "untrained_edge")


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    export = add_pair_command(
        commands,
        "export",
        "write a judged map as a bundle to serve",
        _run,
        "projector export map/ photos/ corpus/ bundles/mine --report report/report.json "
        "--source models/edge-a --target models/cloud",
    )
    export.add_argument("map", type=Path, metavar="MAP", help="what `train` wrote")
    export.add_argument("data", type=Path, metavar="DATA", help="the corpus's pictures")
    export.add_argument("corpus", type=Path, metavar="CORPUS", help="training pairs, to calibrate")
    export.add_argument("out", type=Path, metavar="BUNDLE", help="folder of the bundle")
    export.add_argument(
        "--report", type=Path, required=True, metavar="FILE", help="report.json of `validate`"
    )
    add_feedback_rank(export)
    add_text_tokens(export)
    export.add_argument(
        "--force",
        action="store_true",
        help="write the bundle even if the report says that the map is no better than its "
        "controls or cannot be judged; the bundle records it",
    )
    export.add_argument(
        "--canary-frames",
        type=count,
        default=48,
        help="frames of the canary set, from the corpus's pictures; 0 for no set; "
        "default: %(default)s",
    )
    export.add_argument("--id", help="name of the bundle (default: its folder's)")
    export.add_argument("--bundle-version", type=whole, default=1, help="default: %(default)s")
    export.add_argument(
        "--precision",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="number format of the stored weights (the report says what each loses); default: "
        "%(default)s",
    )


def _run(args: argparse.Namespace) -> int:
    import torch

    from projector.bundle.certificate import verdict_of
    from projector.bundle.write import write_bundle
    from projector.calibration.calibrate import COARSENESS, FP8_POINT, encoder_of, feedback_of
    from projector.calibration.canary_frames import canary_set
    from projector.maps import ServedMap
    from projector.serving import backends
    from projector.serving.backends import CloudFiles
    from projector.serving.export import export
    from projector.validation.answers import PRECISIONS

    data = open_data(args.data, args.max_picture_pixels)
    preflight.models(args)
    preflight.writable(args.out)
    corpus_size(args.corpus)
    report = _read_report(args.report, args.map)
    certificate, verdict = _certificate(report), verdict_of(report, "mapped")
    if not verdict.good:
        if not args.force:
            raise UselessMapError(
                f"{args.report}: {verdict}. A bundle of this map is not worth serving: train "
                "another, or judge it by other questions; --force writes it and records that"
            )
        certificate["forced"] = {"verdict": verdict.state, "why": verdict.why}
        note(f"projector: written by force: {verdict}")
    source, target = open_models(args, data)
    made = read_map(args.map, source, target).eval()
    if not same_map(report["map"], identity_of(args.map, made), made):
        raise ConfigError(f"{args.report} judges {args.map} between other models: judge it again")
    dtype = {"float32": torch.float32, **PRECISIONS}[args.precision]
    corpus = open_corpus(data, source, target, args.corpus)
    made = made.in_precision(dtype)  # the graph must hold the stored numbers
    with tables.doing("calibrating the edge half, exporting the cloud half"):
        encoder = encoder_of(made, corpus.x)
        feedback = feedback_of(made, corpus.y, args.feedback_rank)
        exported = export(ServedMap(made))
    cloud = CloudFiles(weights=made.to_bytes(dtype), graph=exported.graph)
    backend = backends.get("onnxruntime")(cloud, target.layout, encoder.rank, source=source.layout)
    canary = canary_set(source, target, encoder, backend, data, FP8_POINT, args.canary_frames)
    info = write_bundle(
        args.out,
        id=args.id or args.out.name,
        version=args.bundle_version,
        source=source.layout,
        target=target.layout,
        encoder=encoder,
        cloud=cloud,
        certificate={**certificate, "stored_in": args.precision},
        default_point=FP8_POINT,
        ladder=[*range(1, len(COARSENESS) + 1), *(p.index for p in encoder.points if p.index > 9)],
        feedback=feedback,
        canary=canary,
    )
    print(
        f"wrote bundle {info.id} version {info.version} to {args.out}: rank {info.rank}, graph "
        f"parity {exported.parity:.1e}, tier {certificate['tier_by_answers'] or verdict.state}"
        + (f", way back of rank {feedback.decoder.rank - 1}" if feedback else "")
        + (f", canary set of {len(canary.frames)} frames" if canary else "")
    )
    return 0


def _read_report(path: Path, map_path: Path) -> dict[str, Any]:
    """A report of `validate` on one map, with every control.

    Raises:
        FitError: there is no map.
        ConfigError: it is not such a report.
    """
    from protos.strict_json import read_json

    of = hashlib.sha256(map_bytes(map_path)).hexdigest()
    try:
        raw = without_mark(path.read_bytes(), path)
        report: dict[str, Any] = read_json(raw, _MAX_REPORT_BYTES, str(path))
        same, controls = report["map"]["sha256"] == of, report["accuracy"]
        controlled = all("mean" in controls[name] for name in _CONTROLS)
        _certificate(report)["tier_by_answers"]
    except (OSError, BridgeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no report of `projector validate` ({in_words(error)})"
        ) from error
    if not same or not controlled:
        raise ConfigError(
            f"{path} judges another map than {map_path}, or without its controls: run "
            "`projector validate` on this one"
        )
    return report


def _certificate(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that a bundle carries: nothing about single pictures or frames."""
    kept = {key: value for key, value in report.items() if key != "worst_pictures"}
    bound = {key: value for key, value in report["bound"].items() if key != "frames"}
    return {**kept, "bound": bound}
