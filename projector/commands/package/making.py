"""What `projector package create` and `derive` share: flags, and how a package is written."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path

from projector import package as packages
from projector.bundle.keys import SigningKey
from projector.codec import select
from projector.commands.arguments import whole
from projector.package import Certification, Package
from protos.errors import ConfigError, FrameMalformedError, PackageFormatError
from protos.process.console import printable
from protos.process.files import without_mark
from protos.strict_json import read_json

_MAX_JSON_BYTES = 1 << 20


def add_making(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `create` and `derive` share."""
    parser.add_argument("--creator", required=True, metavar="NAME", help="who makes it")
    parser.add_argument("--description", metavar="TEXT", help="what it is about")
    parser.add_argument(
        "--tokens", type=whole, metavar="N", help="most tokens to keep (default: all)"
    )
    parser.add_argument(
        "--share",
        type=float,
        metavar="X",
        help="keep the fewest tokens that hold this share of the selector's mass, in (0, 1]",
    )
    parser.add_argument(
        "--selector",
        choices=sorted(select.SELECTORS),
        help=f"chooses the tokens to keep (default: the bundle's, or {select.DEFAULT})",
    )
    parser.add_argument("--embed", action="store_true", help="put the bundle into the package")
    parser.add_argument(
        "--royalty", type=float, default=0.0, metavar="PERCENT", help="0..100 (%(default)s)"
    )
    parser.add_argument(
        "--quality",
        type=float,
        metavar="X",
        help="share of right answers, 0..1 (create: by default from the bundle's certificate)",
    )
    parser.add_argument(
        "--certification",
        type=Path,
        metavar="FILE",
        help="JSON object with tier, epsilon, retention, verified_at and report (create: by "
        "default what the bundle's certificate says)",
    )
    parser.add_argument("--id", metavar="ID", help="name of the package (default: a new UUID)")
    parser.add_argument(
        "--package-version", type=whole, default=1, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign it with this private key")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing OUTPUT")


def certification_in(path: Path | None) -> Certification | None:
    """Read the file that `--certification` names.

    Raises:
        ConfigError: it cannot be read, or is no such JSON object.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            raw = without_mark(file.read(_MAX_JSON_BYTES + 1), path)
        plain = read_json(raw, _MAX_JSON_BYTES, str(path))
        return Certification.from_plain(plain)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (FrameMalformedError, PackageFormatError) as error:
        raise ConfigError(f"{path}: {error.message}") from error


def save(made: Package, key: SigningKey | None, args: argparse.Namespace) -> int:
    """Sign a package if there is a key, write it and say so; the exit code is 0."""
    if key is not None:
        made = packages.sign(made, key)
    packages.write(made, args.output, args.overwrite)
    meta, size = made.info.metadata, args.output.stat().st_size
    print(
        printable(
            f"{args.output}: {made.info.digest}, {meta.tokens} of {meta.grid_tokens} tokens, "
            f"{size:,} bytes, {'signed' if key else 'not signed'}"
        )
    )
    return 0


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse an output file that must not be written, before anything slow is done.

    Raises:
        ConfigError: it exists and is not to be replaced, or its folder does not exist.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists already (--overwrite replaces it)")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path.absolute().parent} is not a folder")


def now() -> str:
    """The time in UTC, to the second, as packages carry it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
