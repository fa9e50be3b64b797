"""`projector package derive`: make a package from another."""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from projector import package as packages
from projector.bundle.keys import SigningKey
from projector.codec import select
from projector.codec.select.base import Selector
from projector.commands.arguments import add_command
from projector.commands.bundles import bundle_folder, intact
from projector.commands.package.making import (
    add_making,
    certification_in,
    now,
    refuse_existing,
    save,
)
from projector.commands.settings import check, settings_of
from projector.package import CODECS, SUFFIX, Package
from protos.errors import ConfigError


def register(commands: Any) -> None:
    """Add the command to those of `projector package`."""
    parser = add_command(
        commands,
        "derive",
        "make a package from another: fewer tokens, another codec, bundle or description",
        _run,
        ("bundles",),
        (
            f"projector package derive yard{SUFFIX} small{SUFFIX} --creator me --tokens 16",
            f"projector package derive yard{SUFFIX} other{SUFFIX} --creator me --bundle "
            "bundles/edge-a-other --key maker.pem",
        ),
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the parent")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=f"file to write (*{SUFFIX})")
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="BUNDLE",
        help="another bundle for the same source: a folder, or a name in --bundles",
    )
    parser.add_argument(
        "--codec", choices=CODECS, help="codec of keys and values (default: the parent's)"
    )
    add_making(parser)


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    folder = bundle_folder(args.bundle, chosen) if args.bundle else None
    if args.check_config:
        return check(chosen, bundles=[folder] if folder else [])
    refuse_existing(args.output, args.overwrite)
    key = SigningKey.load(args.key) if args.key else None
    certification = certification_in(args.certification)
    parent = packages.read(args.package)
    bundle = intact(folder) if folder else None
    kept = None
    if args.tokens or args.share is not None:
        selector = select.get(args.selector or select.DEFAULT)
        kept = _best(selector, parent, args.tokens, args.share)
    made = packages.derive(
        parent,
        id=args.id or str(uuid.uuid4()),
        version=args.package_version,
        created=now(),
        creator=args.creator,
        royalty_percent=args.royalty,
        description=args.description,
        kept=kept,
        codec=args.codec,
        bundle=bundle,
        embed=args.embed,
        transformation_quality=args.quality,
        certification=certification,
    )
    return save(made, key, args)


def _best(
    selector: Selector, parent: Package, budget: int | None, share: float | None
) -> npt.NDArray[np.bool_]:
    """The highest-scoring tokens among those that the parent carries.

    At most `budget`, and the fewest that hold `share` of the mass that the parent carries.
    """
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"a share lies in (0, 1], not {share}")
    state, theirs = parent.state(), parent.kept
    order = np.argsort(-np.where(theirs, selector.score(state), -1.0), kind="stable")
    count = min(budget or len(order), int(theirs.sum()))
    if share is not None:
        mass = np.cumsum(np.where(theirs, selector.mass(state), 0.0)[order])
        count = min(count, int(np.searchsorted(mass, mass[-1] * share - 1e-6)) + 1)
    kept = np.zeros(len(order), dtype=np.bool_)
    kept[order[:count]] = True
    return kept
