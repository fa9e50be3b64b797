"""`projector head test`: judge a head on pictures that it never saw."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from projector.commands.arguments import add_pair_command
from projector.commands.head.inputs import add_inputs, in_a_line, open_inputs
from projector.commands.inputs import corpus_size, open_data
from projector.report import tables
from projector.training import preflight
from protos.errors import ConfigError, FitError


def register(commands: Any) -> None:
    """Add the command to those of `projector head`."""
    test = add_pair_command(
        commands,
        "test",
        "judge a head on pictures that it never saw",
        _run,
        "projector head test map/ held-out/ held-out-corpus/ heads/fire "
        "--source models/edge-a --target models/cloud",
    )
    add_inputs(test)
    test.add_argument("head", type=Path, metavar="HEAD", help="what `head train` wrote")
    test.add_argument(
        "--view",
        help="states to judge on; default: those it was trained on; a head trained on native "
        "states may be judged on projected ones",
    )
    test.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    test.add_argument("--json", action="store_true", help="print the figures as JSON")


def _run(args: argparse.Namespace) -> int:
    from projector.heads.head import read
    from projector.heads.judge import judge
    from projector.heads.labels import read_labels
    from projector.heads.lens import through_lens
    from projector.heads.samples import Samples
    from protos.process.files import write_files

    head = read(args.head)
    view = args.view or head.config.view
    if args.out:
        preflight.writable(args.out.parent)
    data = open_data(args.data, args.max_picture_pixels)
    size = corpus_size(args.corpus, len(data))
    labels = read_labels(data, head.config.task).within(size)
    corpus, frozen = open_inputs(args, data)
    if (head.config.view, view) == ("native", "projected"):
        head.require(frozen.owners("native"), "the map's large model")
    elif view != head.config.view:
        raise ConfigError(
            f"--view {view}: this head looks at {head.config.view} states; only a head of native "
            "states can look at projected ones"
        )
    else:
        head.require(frozen.owners(view), f"the owner of these {view} states")
    if labels.objects != (len(head.config.classes) if head.config.tracks else 0):
        raise FitError(
            f"the labels of '{head.config.task}' track {labels.objects} objects, the head "
            f"{len(head.config.classes) if head.config.tracks else 0}"
        )
    with tables.doing(f"the {view} states", len(corpus)) as told:
        states = through_lens(head, frozen, view, corpus, told)
    figures = judge(head, Samples.of(states, labels, head.config.classes))
    figures |= {"view": view, "point": args.point}
    if args.out:
        write_files(
            args.out.parent, {args.out.name: (json.dumps(figures, indent=1) + "\n").encode()}
        )
    print(json.dumps(figures, indent=1) if args.json else in_a_line(figures))
    return 0
