"""`projector package apply`: put a package into a model's cache and let it answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from projector import package as packages
from projector.commands.arguments import add_command, add_trusted, whole
from projector.commands.bundles import bundle_folder, trusted_keys
from projector.commands.models import open_vlm
from projector.commands.settings import check, required, settings_of
from projector.package import SUFFIX
from protos.process.console import printable


def register(commands: Any) -> None:
    """Add the command to those of `projector package`."""
    parser = add_command(
        commands,
        "apply",
        "put a package into a model's cache and let the model answer a question about it",
        _run,
        (
            "target",
            "target_dtype",
            "device",
            "bundles",
            "threads",
            "backend",
            "backend_device",
        ),
        (
            f"projector package apply yard{SUFFIX} 'How many crates?' --target models/cloud "
            "--bundle bundles/edge-a-cloud",
            f"projector package apply embedded{SUFFIX} 'How many crates?' --target models/cloud",
        ),
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the file")
    parser.add_argument("question", metavar="QUESTION", help="the question, in words")
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="BUNDLE",
        help="a folder, or a name in --bundles (default: the one embedded)",
    )
    add_trusted(parser)
    parser.add_argument(
        "--max-new-tokens", type=whole, default=16, metavar="N", help="(%(default)s)"
    )


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    folder = bundle_folder(args.bundle, chosen) if args.bundle else None
    if args.check_config:
        return check(chosen, bundles=[folder] if folder else [])
    model = required(chosen, "target")
    trusted = trusted_keys(args)
    package = packages.read(args.package)
    if trusted is not None:
        packages.require_trusted(package.info, trusted)
    # A bundle that does not fit is refused before a model is loaded.
    packages.fitting_bundle(package, folder, package.info.metadata.target.fingerprint)
    vlm = open_vlm(model, chosen, chosen.target_dtype)
    bundle = packages.fitting_bundle(package, folder, vlm.layout)
    said = packages.answer(
        package,
        bundle,
        vlm,
        args.question,
        args.max_new_tokens,
        chosen.backend,
        chosen.threads,
        chosen.backend_device,
    )
    print(printable(said))
    return 0
