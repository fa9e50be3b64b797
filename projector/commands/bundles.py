"""Finds the bundles that a command is given, and verifies every byte."""

from __future__ import annotations

import argparse
from pathlib import Path

from projector.bundle.files import DESCRIPTION
from projector.bundle.keys import TrustedKeys
from projector.bundle.load import Bundle
from projector.commands.settings import Settings
from protos.errors import BundleMissingError


def bundle_folder(given: Path, chosen: Settings) -> Path:
    """The folder of a bundle: the path given, or the folder of that name in `--bundles`."""
    if chosen.bundles is not None and not given.exists():
        inside = chosen.bundles / given
        if inside.exists():
            return inside
    return given


def intact(path: Path, trusted: TrustedKeys | None = None) -> Bundle:
    """Load a bundle and verify every byte; it is not compared with any live model."""
    info = Bundle.peek(path)
    return Bundle.load(path, info.source, info.target, trusted=trusted)


def trusted_keys(args: argparse.Namespace) -> TrustedKeys | None:
    """The keys of `--trusted`; None without the flag."""
    return TrustedKeys.load(args.trusted) if args.trusted else None


def bundles_in(folder: Path) -> list[Path]:
    """Folders with a bundle: the folder itself and two levels below it."""
    if not folder.is_dir():
        raise BundleMissingError(f"{folder} is not a folder")
    patterns = (DESCRIPTION, f"*/{DESCRIPTION}", f"*/*/{DESCRIPTION}")
    return sorted(file.parent for pattern in patterns for file in folder.glob(pattern))
