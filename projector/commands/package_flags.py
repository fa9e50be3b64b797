"""The flags of `projector package …`: their names, what they mean, and examples.

Knows what may be typed. Does not know what the commands do: they are handed in, and so is the
function that adds a command with the flags that all of `projector` shares.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from projector.codec import select
from projector.commands.arguments import whole
from projector.package import CODECS, SUFFIX

Run = Callable[[argparse.Namespace], int]
"""A command: what was typed, to an exit code."""
Add = Callable[..., argparse.ArgumentParser]
"""Name, text, `Run`, fields of the settings that are flags, examples."""

SUMMARY = "make, verify, sign, derive and use memory packages: what a model saw, in one file"
EXAMPLES = (
    "projector package keygen maker.pem",
    "projector package create yard.neural-bridge --model models/edge-a --picture yard.jpg "
    "--bundle bundles/edge-a-cloud --creator 'yard team'",
    "projector package sign yard.neural-bridge --key maker.pem",
    "projector package verify yard.neural-bridge --trusted trusted.toml",
    "projector package apply yard.neural-bridge 'What is left of it?' --target models/cloud "
    "--bundle bundles/edge-a-cloud",
)
_MODEL = ("device", "bundles", "threads")
_BACKEND = ("backend", "backend_device")


def add_commands(add: Add, runs: Mapping[str, Run]) -> None:
    """Add the parsers of the commands, in this order.

    Args:
        add: adds one to the parser of `projector package`.
        runs: by name, what each command does.
    """
    _create(add, runs["create"])
    _inspect(add, runs["inspect"])
    _verify(add, runs["verify"])
    _sign(add, runs["sign"])
    _derive(add, runs["derive"])
    _apply(add, runs["apply"])
    _keygen(add, runs["keygen"])


def _create(add: Add, run: Run) -> None:
    parser = add(
        "create",
        "let a model see a picture and pack what it saw",
        run,
        ("source", "source_dtype", "max_picture_pixels", *_MODEL),
        f"projector package create yard{SUFFIX} --model models/edge-a --picture yard.jpg "
        "--bundle bundles/edge-a-cloud --creator 'yard team' --share 0.9",
        f"projector package create yard{SUFFIX} --model models/edge-a --picture yard.jpg "
        "--bundle edge-a-cloud --creator me --embed --key maker.pem --royalty 2.5",
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
        "--codec", choices=CODECS, default=CODECS[0], help="of keys and values (%(default)s)"
    )
    _add_making(parser)


def _derive(add: Add, run: Run) -> None:
    parser = add(
        "derive",
        "make a package of another: fewer tokens, another codec, bundle or description",
        run,
        ("bundles",),
        f"projector package derive yard{SUFFIX} small{SUFFIX} --creator me --tokens 16",
        f"projector package derive yard{SUFFIX} other{SUFFIX} --creator me --bundle "
        "bundles/edge-a-other --key maker.pem",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the parent")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=f"file to write (*{SUFFIX})")
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="BUNDLE",
        help="another bundle for the same source: a folder, or a name in --bundles",
    )
    parser.add_argument("--codec", choices=CODECS, help="of keys and values, if it is to change")
    _add_making(parser)


def _add_making(parser: argparse.ArgumentParser) -> None:
    """What `create` and `derive` have in common."""
    parser.add_argument("--creator", required=True, metavar="NAME", help="who makes it")
    parser.add_argument("--description", metavar="TEXT", help="what it is about")
    parser.add_argument(
        "--tokens", type=whole, metavar="N", help="keep at most so many tokens (default: all)"
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
        help=f"which tokens go first (default: the bundle's, or {select.DEFAULT})",
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


def _inspect(add: Add, run: Run) -> None:
    parser = add(
        "inspect",
        "verify a package's bytes and show what it says of itself",
        run,
        ("bundles",),
        f"projector package inspect yard{SUFFIX}",
        f"projector package inspect yard{SUFFIX} --json | jq .metadata.certification",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the file")
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def _verify(add: Add, run: Run) -> None:
    parser = add(
        "verify",
        "verify every byte of a package, who signed it, and whom it is derived from",
        run,
        ("bundles",),
        f"projector package verify yard{SUFFIX}",
        f"projector package verify small{SUFFIX} --trusted trusted.toml --among packages",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the file")
    _add_trusted(parser)
    parser.add_argument(
        "--among",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"verify up to the root: files, or folders of *{SUFFIX}, that hold the parents",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def _sign(add: Add, run: Run) -> None:
    parser = add(
        "sign",
        "verify a package and sign it",
        run,
        ("bundles",),
        f"projector package sign yard{SUFFIX} --key maker.pem",
        f"projector package sign yard{SUFFIX} --key maker.pem --output signed{SUFFIX}",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the file")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write another file instead of this one"
    )
    parser.add_argument("--replace", action="store_true", help="take another's signature away")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output")


def _apply(add: Add, run: Run) -> None:
    parser = add(
        "apply",
        "put a package into a model's cache and let the model answer a question about it",
        run,
        ("target", "target_dtype", *_MODEL, *_BACKEND),
        f"projector package apply yard{SUFFIX} 'How many crates?' --target models/cloud "
        "--bundle bundles/edge-a-cloud",
        f"projector package apply embedded{SUFFIX} 'How many crates?' --target models/cloud",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="the file")
    parser.add_argument("question", metavar="QUESTION", help="in words")
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="BUNDLE",
        help="a folder, or a name in --bundles (default: the one embedded)",
    )
    _add_trusted(parser)
    parser.add_argument(
        "--max-new-tokens", type=whole, default=16, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="keep transformed states here (at most 1 GiB), so that the next question about this "
        "package projects nothing",
    )


def _keygen(add: Add, run: Run) -> None:
    parser = add(
        "keygen",
        "make an Ed25519 key that only its owner can read, and print its public half",
        run,
        ("bundles",),
        "projector package keygen maker.pem",
    )
    parser.add_argument("key", type=Path, metavar="FILE", help="where the private key goes")


def _add_trusted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trusted",
        type=Path,
        metavar="FILE",
        help="accept only what a key of this list signed (TOML, [keys])",
    )
