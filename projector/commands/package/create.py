"""`projector package create`: let a model see a picture and pack what it saw."""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path
from typing import Any

from projector import package as packages
from projector.bundle.certificate import Judged, seen_in_training
from projector.bundle.keys import SigningKey
from projector.bundle.load import Bundle
from projector.codec import select
from projector.commands.arguments import add_command
from projector.commands.bundles import bundle_folder, intact
from projector.commands.models import open_vlm
from projector.commands.package.making import (
    add_making,
    certification_in,
    now,
    refuse_existing,
    save,
)
from projector.commands.settings import check, required, settings_of
from projector.package import CODECS, SUFFIX, Certification
from protos.errors import PackageFormatError


def register(commands: Any) -> None:
    """Add the command to those of `projector package`."""
    parser = add_command(
        commands,
        "create",
        "let a model see a picture and pack what it saw",
        _run,
        ("source", "source_dtype", "max_picture_pixels", "device", "bundles", "threads"),
        (
            f"projector package create yard{SUFFIX} --model models/edge-a --picture yard.jpg "
            "--bundle bundles/edge-a-cloud --creator 'yard team' --share 0.9",
            f"projector package create yard{SUFFIX} --model models/edge-a --picture yard.jpg "
            "--bundle edge-a-cloud --creator me --embed --key maker.pem --royalty 2.5",
        ),
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=f"file to write (*{SUFFIX})")
    parser.add_argument(
        "--model",
        dest="source",
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="checkpoint that sees the picture; the same as --source",
    )
    parser.add_argument("--picture", type=Path, required=True, metavar="FILE", help="what it sees")
    parser.add_argument(
        "--bundle",
        type=Path,
        required=True,
        metavar="BUNDLE",
        help="the bundle that will project it: a folder, or a name in --bundles",
    )
    parser.add_argument(
        "--parent", type=Path, metavar="PACKAGE", help="an earlier package that this one continues"
    )
    parser.add_argument(
        "--codec", choices=CODECS, default=CODECS[0], help="codec of keys and values (%(default)s)"
    )
    add_making(parser)


def _run(args: argparse.Namespace) -> int:
    from projector.models import pictures

    chosen = settings_of(args)
    folder = bundle_folder(args.bundle, chosen)
    if args.check_config:
        return check(chosen, bundles=[folder])
    model = required(chosen, "source")
    refuse_existing(args.output, args.overwrite)
    key = SigningKey.load(args.key) if args.key else None
    parent = packages.verify(args.parent).info.digest if args.parent else None
    certification = certification_in(args.certification)
    bundle = intact(folder)
    selector = select.get(args.selector or bundle.encoder.selector)
    picture = pictures.read(args.picture, max_pixels=chosen.max_picture_pixels)
    vlm = open_vlm(model, chosen, chosen.source_dtype)
    bundle = Bundle.load(folder, vlm.layout, bundle.info.target)
    state = vlm.states(vlm.prefill([picture]))[0]
    kept = selector.keep(state, budget=args.tokens, threshold=args.share)
    # The bundle's figures hold for all tokens; nobody measured fewer.
    quality, certificate = (_quality(bundle), certified(bundle)) if kept.all() else (None, None)
    made = packages.create(
        state,
        kept,
        vlm.layout,
        bundle,
        id=args.id or str(uuid.uuid4()),
        version=args.package_version,
        created=now(),
        creator=args.creator,
        description=args.description or "",
        codec=args.codec,
        embed=args.embed,
        royalty_percent=args.royalty,
        transformation_quality=quality if args.quality is None else args.quality,
        certification=certification or certificate,
        parent=parent,
    )
    return save(made, key, args)


def certified(bundle: Bundle) -> Certification | None:
    """What a bundle's certificate says of its map, if that was judged on held-out data.

    None if it was not, or if the certificate lacks any part of this.
    """
    if seen_in_training(bundle.certificate) != 0:
        return None
    name = bundle.encoder.point(bundle.info.default_point).name
    found = Judged.of(bundle.certificate, name).to_json()
    fit = bundle.certificate.get("reconstruction")
    whole = fit.get("whole") if isinstance(fit, dict) else None
    try:
        return Certification(
            tier=found["tier_by_answers"],
            epsilon=whole["relative_l2"],  # type: ignore[index]  # a certificate is not trusted
            retention=round(found["retention"], 4),
            verified_at=bundle.certificate["judged_at"],
            report=f"certificate of bundle {bundle.digest}",
        )
    except (PackageFormatError, KeyError, TypeError):
        return None


def _quality(bundle: Bundle) -> float | None:
    """Certified accuracy, at the default point if that was measured; None if nothing was."""
    name = bundle.encoder.point(bundle.info.default_point).name
    return Judged.of(bundle.certificate, name).accuracy
