"""`projector head train`: train a head on a corpus and its labels, the map frozen."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from projector.commands.arguments import add_pair_command, count, rate, seed, whole
from projector.commands.head.inputs import add_inputs, in_a_line, open_inputs
from projector.commands.inputs import corpus_size, open_data
from projector.report import tables
from projector.training import preflight
from protos.errors import ConfigError

DESCRIPTION = "head.json"


def register(commands: Any) -> None:
    """Add the command to those of `projector head`."""
    train = add_pair_command(
        commands,
        "train",
        "train a head on a corpus and its labels, the map frozen",
        _run,
        "projector head train map/ photos/ corpus/ heads/fire --task fire "
        "--source models/edge-a --target models/cloud",
        "projector head train bundles/mine photos/ corpus/ heads/fire-native --task fire "
        "--view native --source models/edge-a --target models/cloud",
    )
    add_inputs(train)
    train.add_argument(
        "out", type=Path, metavar="OUT", help="folder of the head; a run that was stopped goes on"
    )
    train.add_argument("--task", required=True, help="name of the labels to learn (labels.jsonl)")
    train.add_argument(
        "--view", default="projected", help="projected, native, edge or latents; default: projected"
    )
    train.add_argument(
        "--components",
        type=whole,
        default=128,
        help="numbers per token that the head sees; default: %(default)s",
    )
    train.add_argument(
        "--width", type=whole, default=64, help="hidden layer's size; default: %(default)s"
    )
    train.add_argument("--steps", type=whole, default=600, help="most steps; default: %(default)s")
    train.add_argument(
        "--batch", type=whole, default=64, help="samples per step; default: %(default)s"
    )
    train.add_argument("--rate", type=rate, default=2e-3, help="default: %(default)s")
    train.add_argument(
        "--patience",
        type=count,
        default=8,
        help="end after this many of the 20 reports without gain; 0: never; default: %(default)s",
    )
    train.add_argument(
        "--held-out",
        type=rate,
        default=0.1,
        help="share of the samples held out to decide when to end; default: %(default)s",
    )
    train.add_argument("--seed", type=seed, default=0, help="default: %(default)s")


def _run(args: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from projector.heads.head import HEAD_FILE, Head, HeadConfig
    from projector.heads.judge import judge
    from projector.heads.labels import read_labels
    from projector.heads.lens import fit_lens, through_lens
    from projector.heads.samples import Samples
    from projector.heads.train import HeadSettings, train
    from projector.heads.views import VIEWS
    from protos.process.files import write_files

    if args.view not in VIEWS:
        raise ConfigError(f"there is no view '{args.view}': expected one of {', '.join(VIEWS)}")
    preflight.writable(args.out)
    data = open_data(args.data, args.max_picture_pixels)
    labels = read_labels(data, args.task).within(corpus_size(args.corpus, len(data)))
    training, held = labels.split(args.held_out)
    corpus, frozen = open_inputs(args, data)
    tracks = bool(labels.objects)
    names = map(str, range(1, labels.objects + 1)) if tracks else sorted(set(training.labels))
    dim = next(frozen.look(args.view, corpus, np.arange(1))).shape[2]
    config = HeadConfig(
        task=args.task,
        classes=tuple(names),
        tracks=tracks,
        view=args.view,
        owner=frozen.owner(args.view),
        dim=dim,
        grid=frozen.grid(args.view),
        components=min(args.components, dim),
        width=args.width,
    )
    settings = HeadSettings(
        args.steps, args.batch, args.rate, patience=args.patience, seed=args.seed
    )
    torch.manual_seed(args.seed)
    head = Head(config)
    with tables.doing("fitting the lens"):
        fit_lens(head, frozen, corpus, training.pictures)
    with tables.doing(f"the {args.view} states", len(corpus)) as told:
        states = through_lens(head, frozen, args.view, corpus, told)
    samples, decides = (Samples.of(states, part, config.classes) for part in (training, held))
    train(head, samples, decides, settings, args.out / "state")
    head.eval()
    figures = {
        **asdict(config),
        "settings": asdict(settings),
        "point": args.point,
        "samples": len(samples),
        "held_out": judge(head, decides),
    }
    text = json.dumps(figures, indent=1) + "\n"
    write_files(args.out, {HEAD_FILE: head.to_bytes(), DESCRIPTION: text.encode()})
    print(f"wrote {args.out / HEAD_FILE}: {in_a_line(figures['held_out'])}, held out")
    return 0
