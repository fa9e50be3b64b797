"""`projector corpus`: run both models over a folder of pictures or texts and keep the pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from projector.commands.arguments import add_pair_command, add_text_tokens, whole
from projector.commands.inputs import make_corpus, open_data
from projector.commands.models import open_models
from projector.training import preflight


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    corpus = add_pair_command(
        commands,
        "corpus",
        "run both models over pictures or texts and keep the pairs",
        _run,
        "projector corpus photos/ corpus/ --source models/edge-a --target models/cloud",
    )
    corpus.add_argument("data", type=Path, metavar="DATA", help="folder of pictures, or of texts")
    corpus.add_argument(
        "corpus",
        type=Path,
        metavar="CORPUS",
        help="folder of the shards; a run that was stopped goes on",
    )
    corpus.add_argument("--count", type=whole, help="only the first of them (default: all)")
    add_text_tokens(corpus)


def _run(args: argparse.Namespace) -> int:
    data = open_data(args.data, args.max_picture_pixels)
    preflight.writable(args.corpus)
    corpus = make_corpus(data, *open_models(args, data), args.corpus, args.count)
    print(
        f"{len(corpus)} {data.unit}s, {corpus.x.shape[1]} -> {corpus.y.shape[1]} tokens, "
        f"{corpus.x.shape[2]} -> {corpus.y.shape[2]} numbers each, in {args.corpus}"
    )
    return 0
