"""`projector canary`: adds a canary set to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from projector.commands.arguments import add_pair_command, whole
from projector.commands.inputs import open_data
from projector.commands.models import open_models
from projector.training import preflight
from protos.errors import ConfigError
from protos.process.console import printable


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = add_pair_command(
        commands,
        "canary",
        "add a canary set to a bundle: frames with the large model's recorded answers",
        _canary,
        "projector canary bundles/mine held-out/ --source models/edge-a --target models/cloud",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument(
        "pictures", type=Path, metavar="PICTURES", help="pictures with questions, best held out"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the new bundle (default: BUNDLE itself; a signature is removed)",
    )
    parser.add_argument(
        "--frames", type=whole, default=48, help="pictures, one question each; default: %(default)s"
    )
    parser.add_argument(
        "--answer-tokens",
        type=whole,
        default=16,
        help="longest answer in tokens; default: %(default)s",
    )


def _canary(args: argparse.Namespace) -> int:
    import torch

    from projector.bundle.load import Bundle
    from projector.bundle.write import write_next
    from projector.calibration.canary_frames import canary_frames
    from projector.models.vlm import VLM
    from projector.training.dataset import Texts

    data = open_data(args.pictures, args.max_picture_pixels)
    if isinstance(data, Texts):
        raise ConfigError("a canary set is made of pictures; a bundle between texts has none")
    Bundle.peek(args.bundle)
    out = args.out or args.bundle
    preflight.writable(out)
    source, target = open_models(args, data)
    if not isinstance(source, VLM) or not isinstance(target, VLM):
        raise ConfigError("a canary set is made of pictures, and these models read texts")
    bundle = Bundle.load(args.bundle, source.layout, target.layout)
    made = canary_frames(
        source,
        target,
        bundle.encoder,
        bundle.backend("onnxruntime", threads=torch.get_num_threads()),
        data,
        bundle.info.default_point,
        args.frames,
        args.answer_tokens,
    )
    info = write_next(
        bundle,
        out,
        encoder=bundle.encoder,
        service_risk=bundle.service_risk,
        canary=made.frames,
    )
    size, _ = info.files["canary.json"]
    print(
        f"wrote bundle {printable(info.id)} version {info.version} to {out}: a canary set of "
        f"{len(made.frames.frames)} frames, {size:,} bytes; from {made.agreement:.1%} of them the "
        "large model answers as from the picture"
    )
    if bundle.key is not None:
        print("it is not signed any more: sign it again with `projector sign`")
    return 0
