"""`projector hub join`: a new edge model's half, fitted to a hub in closed form."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projector.commands.arguments import count, whole
from projector.commands.hub.pair import add_hub_command, open_vlms, target_of
from projector.commands.inputs import open_data
from projector.report import tables
from projector.training import preflight
from protos.errors import UselessMapError
from protos.process.progress import note

if TYPE_CHECKING:
    from projector.hub.join import Joined

_TUNING_STEPS = 200


def register(commands: Any) -> None:
    """Add the command."""
    join = add_hub_command(
        commands,
        "join",
        "fit a small model's edge half to a hub from few unlabelled pictures, judge it, and write "
        "a bundle to serve",
        _run,
        "projector hub join hub/ photos/ bundles/edge-c --edge models/edge-c --target models/cloud",
        "projector hub join hub/ photos/ bundles/edge-c --edge models/edge-c "
        "--target models/cloud --like bundles/edge-a-cloud models/edge-a",
    )
    join.add_argument("hub", type=Path, metavar="HUB", help="what `hub make` wrote")
    join.add_argument(
        "data", type=Path, metavar="PHOTOS", help="pictures; those kept apart need questions"
    )
    join.add_argument(
        "out", type=Path, nargs="?", metavar="BUNDLE", help="folder of the bundle (default: named "
        "after the model and the hub)"
    )  # fmt: skip
    join.add_argument(
        "--held", type=Path, metavar="FOLDER", help="pictures with questions to judge by "
        "(default: up to half of PHOTOS)"
    )  # fmt: skip
    join.add_argument("--pictures", type=count, default=0, help="most pictures to fit to; 0: all")
    join.add_argument(
        "--judged", type=whole, default=128, help="most pictures kept apart; default: %(default)s"
    )
    join.add_argument(
        "--questions", type=whole, default=6, help="of each of them; default: %(default)s"
    )
    join.add_argument(
        "--like",
        type=Path,
        nargs=2,
        metavar=("BUNDLE", "MODEL"),
        help="take the latents of this bundle of the hub and its small model as targets, instead "
        "of reading the large model's own cache",
    )
    join.add_argument(
        "--within",
        type=float,
        default=0.016,
        help="accuracy that the default point may lose against the large model's own caches; "
        "default: %(default)s",
    )
    join.add_argument(
        "--tune",
        type=whole,
        nargs="?",
        const=_TUNING_STEPS,
        default=0,
        metavar="STEPS",
        help="tune the closed form through the frozen hub and large model, with rounding in the "
        "loop; pays where grids differ, and takes 256 pictures with questions (`projector label` "
        "writes them) and minutes; STEPS: %(const)s by default",
    )
    join.add_argument("--work", type=Path, help="folder that keeps what models saw")
    join.add_argument(
        "--force",
        action="store_true",
        help="write the bundle even if it does not beat its controls; the bundle records it",
    )
    join.add_argument(
        "--canary-frames",
        type=count,
        default=48,
        help="frames of the canary set; 0 for no set; default: %(default)s",
    )
    join.add_argument("--id", help="name of the bundle (default: its folder's)")
    join.add_argument("--bundle-version", type=whole, default=1, help="default: %(default)s")


def _run(args: argparse.Namespace) -> int:
    from projector.bundle.load import Bundle
    from projector.bundle.write import write_bundle
    from projector.calibration.canary_frames import canary_set
    from projector.hub.hub import Hub
    from projector.hub.join import Like, Work, join
    from projector.hub.photos import apart
    from projector.hub.tune import SETTINGS

    data = open_data(args.data, args.max_picture_pixels)
    held = None if args.held is None else open_data(args.held, args.max_picture_pixels)
    target_path = target_of(args)
    out = args.out or Path(f"{args.edge.resolve().name}-{Hub.peek(args.hub).id}")
    preflight.writable(out)
    Hub.peek(args.hub)
    fitted, judged = apart(data, held, args.pictures, args.judged, args.questions)
    others = [args.like[1]] if args.like else []
    tuning = None
    if args.tune:
        preflight.asked(data, fitted.indices, "--tune")
        tuning = replace(SETTINGS, task_steps=args.tune, batch=min(SETTINGS.batch, len(fitted)))
    edge, target, *like = open_vlms(args, args.edge, target_path, *others)
    hub = Hub.load(args.hub, target.layout)
    work = Work(
        hub=hub,
        edge=edge,
        target=target,
        fitted=fitted,
        held=judged,
        checkpoint=args.edge,
        like=Like(Bundle.load(args.like[0], like[0].layout, target.layout), like[0])
        if like
        else None,
        states=args.work,
    )
    made = join(work, args.questions, args.within, tuning)
    _show(made)
    certificate = made.certificate
    if not made.good:
        verdict = f"{certificate['verdict']}: {certificate['why']}"
        if not args.force:
            raise UselessMapError(
                f"{verdict}. The hub's latents cannot be read from this model's cache, or the "
                "pictures are too few; give more of them, or train a bundle of its own; --force "
                "writes it and records that"
            )
        certificate["forced"] = {"verdict": certificate["verdict"], "why": certificate["why"]}
        note(f"projector: written by force: {verdict}")
    canary = canary_set(
        edge, target, made.encoder, made.backend, judged.data, made.default_point,
        args.canary_frames,
    )  # fmt: skip
    info = write_bundle(
        out,
        id=args.id or out.resolve().name,
        version=args.bundle_version,
        source=edge.layout,
        target=target.layout,
        encoder=made.encoder,
        cloud=hub.cloud,
        certificate=certificate,
        default_point=made.default_point,
        ladder=made.ladder,
        canary=canary,
    )
    print(
        f"wrote bundle {info.id} version {info.version} to {out}: an edge half of hub "
        f"{hub.info.id} version {hub.info.version}"
    )
    return 0


def _show(made: Joined) -> None:
    told = made.certificate
    arms = [
        (name.replace("_", " "), *(f"{100 * one[end]:.1f} %" for end in ("mean", "low", "high")))
        for name, one in told["accuracy"].items()
        if isinstance(one, dict)
    ]
    points = [
        (p.name, f"{p.measured.payload_bytes:.1f}", f"{100 * p.measured.accuracy:.1f} %")
        for p in made.encoder.points
        if p.measured is not None
    ]
    joined = told["joined"]
    tables.print_tables(
        [
            tables.table(
                f"right answers on {told['pictures']} pictures kept apart; fitted to "
                f"{joined['pictures']} in {joined['fit_seconds']:.1f} s"
                + (
                    f", tuned in {joined['tune_seconds']:.0f} s" if "tune_seconds" in joined else ""
                ),
                ("", "#mean", "#low", "#high"),
                arms,
            ),
            tables.table(
                f"operating points; the default is {made.encoder.point(made.default_point).name}",
                ("point", "#payload bytes", "#right"),
                points,
            ),
        ]
    )
