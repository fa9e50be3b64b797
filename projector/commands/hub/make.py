"""`projector hub make`: a hub from a trained bundle and some pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from projector.commands.arguments import whole
from projector.commands.hub.pair import add_hub_command, open_vlms, target_of
from projector.commands.inputs import open_data
from projector.report import tables
from projector.training import preflight


def register(commands: Any) -> None:
    """Add the command."""
    make = add_hub_command(
        commands,
        "make",
        "make a hub from a trained bundle: its cloud half, and how a cache reads as its latents",
        _run,
        "projector hub make bundles/edge-a-cloud photos/ hub/ --edge models/edge-a "
        "--target models/cloud",
    )
    make.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    make.add_argument("data", type=Path, metavar="PHOTOS", help="pictures; no labels are needed")
    make.add_argument("out", type=Path, metavar="HUB", help="folder of the hub")
    make.add_argument(
        "--pictures", type=whole, default=1024, help="most pictures; default: %(default)s"
    )
    make.add_argument("--work", type=Path, help="folder that keeps what models saw")
    make.add_argument("--id", help="name of the hub (default: its folder's)")
    make.add_argument("--hub-version", type=whole, default=1, help="default: %(default)s")


def _run(args: argparse.Namespace) -> int:
    from projector.bundle.load import Bundle
    from projector.hub.half import different
    from projector.hub.hub import Member, write_hub
    from projector.hub.make import make_space
    from projector.hub.photos import Some, see

    data = open_data(args.data, args.max_picture_pixels)
    target_path = target_of(args)
    preflight.writable(args.out)
    Bundle.peek(args.bundle)
    some = Some(data, tuple(different(data.contents)[: args.pictures]))
    edge, target = open_vlms(args, args.edge, target_path)
    bundle = Bundle.load(args.bundle, edge.layout, target.layout)
    x = see(edge, some, args.work, "the edge model").x
    y = see(target, some, args.work, "the large model").x
    with tables.doing("fitting the reading matrix"):
        space, reading = make_space(bundle, target.layout, x, y)
    fitted = {
        "pictures": len(some),
        "ridge_weight": reading.weight,
        "explained": round(reading.explained, 4),
    }
    member = Member(
        bundle.info.id, bundle.info.version, bundle.digest, bundle.info.source.fingerprint
    )
    info = write_hub(
        args.out,
        id=args.id or args.out.name,
        version=args.hub_version,
        target=target.layout,
        space=space,
        cloud=bundle.cloud,
        members=[member],
        certificate={"reading": fitted},
        service_risk=bundle.service_risk,
    )
    print(
        f"wrote hub {info.id} version {info.version} to {args.out}: rank {space.rank}, "
        f"{space.grid[0]} x {space.grid[1]} tokens; its reading explains "
        f"{reading.explained:.0%} of the latents on pictures left out"
    )
    return 0
