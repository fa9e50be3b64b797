"""`projector layout`: print what a model's cache looks like."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from projector.commands.arguments import add_command, text_tokens
from projector.commands.as_json import layout_json
from projector.commands.models import live_layout
from projector.commands.settings import check, settings_of


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    layout = add_command(
        commands,
        "layout",
        "print a model's cache layout and its fingerprint as JSON",
        _run,
        ("device", "dtype", "threads"),
        ("projector layout models/edge-a", "projector layout models/cloud --dtype bfloat16"),
    )
    layout.add_argument("model", type=Path, metavar="MODEL", help="directory of a checkpoint")
    layout.add_argument(
        "--text-tokens",
        type=text_tokens,
        default=0,
        metavar="N",
        help="longest text of a text-only language model, in tokens (default: 128)",
    )


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen, models=[args.model])
    layout = live_layout(args.model, chosen.device, chosen.dtype, chosen.threads, args.text_tokens)
    print(json.dumps(layout_json(layout), indent=2))
    return 0
