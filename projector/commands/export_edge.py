"""`projector export-edge`: write an edge model as files that a device runs without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from projector.commands.arguments import add_command
from projector.commands.models import open_vlm
from projector.commands.settings import check, settings_of
from projector.report import tables
from protos.errors import ConfigError


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    export = add_command(
        commands,
        "export-edge",
        "write an edge model as ONNX graphs, for a device without torch",
        _run,
        ("dtype", "threads"),
        ("projector export-edge models/edge-a exports/edge-a",),
    )
    export.add_argument("model", type=Path, metavar="MODEL", help="directory of a checkpoint")
    export.add_argument("out", type=Path, metavar="OUT", help="folder of the export")


def _run(args: argparse.Namespace) -> int:
    chosen = settings_of(args)
    if args.check_config:
        return check(chosen, models=[args.model])
    if chosen.dtype == "bfloat16":
        raise ConfigError("an edge export is in float32 or float16: onnxruntime has no bfloat16")
    if (args.out / "config.json").exists():
        raise ConfigError(f"{args.out} holds a checkpoint: give another folder for the export")
    vlm = open_vlm(args.model, chosen.model_copy(update={"device": "cpu"}), chosen.dtype)

    from projector.serving.edge_export import export_edge

    with tables.doing(f"exporting {args.model}"):
        made = export_edge(vlm, args.out)
    size = sum(file.bytes for file in made.files.values())
    print(
        f"wrote {args.out}: {size / 1e6:.1f} MB, layout {vlm.layout.fingerprint[:12]}…, opset "
        f"{made.opset}; against torch a token's cache differs by at most {made.parity.cache:.1e} "
        f"of a usual one, {made.parity.same_tokens} of {made.parity.tokens} answer tokens are the "
        "same"
    )
    return 0
