"""`projector train`: fit a map to the pairs of a corpus, holding some of them out."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projector.commands.arguments import (
    add_pair_command,
    add_text_tokens,
    count,
    rate,
    seed,
    weight,
    whole,
)
from projector.commands.inputs import corpus_size, open_corpus, open_data
from projector.commands.models import open_models
from projector.report import tables
from projector.training import preflight
from projector.training.map_folder import DESCRIPTION, MAP_FILE, SEEN, map_bytes
from protos.errors import ConfigError, CorpusError, FitError

if TYPE_CHECKING:
    from projector.maps import Family
    from projector.training.dataset import Dataset

SETTINGS: dict[str, tuple[str, ...]] = {
    "linear": ("weight",),
    "mlp": ("hidden",),
    "low_rank": ("r", "start", "weight", "spread", "choose", "metric"),
    "ridge": ("weight", "layers", "best_layers", "spread", "choose"),
    "procrustes": ("softness", "weight"),
    "shared": ("weight",),
    "bidirectional": ("weight", "returned"),
    "mix": ("inner", "config", "width", "depth", "heads"),
    "truncate": (),
    "zero_pad": (),
    "interpolate": (),
    "autoencoder": (),
}
"""What `--set` takes of each family, for `--help`, which loads no torch; a test holds it true."""


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    train = add_pair_command(
        commands,
        "train",
        "fit a map to the pairs of a corpus",
        _train,
        "projector train photos/ corpus/ map/ --source models/edge-a --target models/cloud "
        "--family mix --set width=128 --task-steps 500",
    )
    train.add_argument("data", type=Path, metavar="DATA", help="the corpus's pictures")
    train.add_argument("corpus", type=Path, metavar="CORPUS", help="what `corpus` made of them")
    train.add_argument("out", type=Path, metavar="OUT", help="folder of the map; resumes")
    train.add_argument("--family", default="low_rank", help="see below; default: %(default)s")
    listed = "\n".join(f"  {name:<14}{', '.join(of)}".rstrip() for name, of in SETTINGS.items())
    train.epilog = f"families, and what --set takes of each:\n{listed}\n\n{train.epilog}"
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the family, such as r=32; may be repeated",
    )
    train.add_argument("--reconstruct-steps", type=count, default=0, help="default: %(default)s")
    train.add_argument("--task-steps", type=count, default=0, help="default: %(default)s")
    train.add_argument("--task", choices=("kl", "ce", "both"), default="kl", help="task loss")
    train.add_argument(
        "--task-weight",
        type=weight,
        default=0.0,
        metavar="L",
        help="task steps lower MSE + 0.5 (1 - cosine) + L * task loss; 0: the task loss alone",
    )
    train.add_argument(
        "--directions",
        type=count,
        default=0,
        metavar="K",
        help="steps move a `ridge` or `low_rank` only in the source's K directions that tell most "
        "of the target, for wide caches; 0: every weight",
    )
    train.add_argument("--batch", type=whole, default=16, help="pictures; default: %(default)s")
    train.add_argument("--rate", type=rate, default=1e-3, help="default: %(default)s")
    train.add_argument(
        "--focus",
        action="store_true",
        help="closed forms weigh each token by what the large model's answers depend on; needs "
        "questions to every input",
    )
    train.add_argument(
        "--patience",
        type=count,
        default=0,
        help="held-out reports (five in all) without gain after which it ends early; 0: never",
    )
    train.add_argument("--held-out", type=rate, default=0.1, help="share of pictures held out")
    train.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    add_text_tokens(train)


def _train(args: argparse.Namespace) -> int:
    from projector.training import distributed

    distributed.start()
    try:
        return _train_one(args)
    finally:
        distributed.stop()


def _train_one(args: argparse.Namespace) -> int:
    import torch

    from projector.maps import base, family
    from projector.maps.bidirectional import BidirectionalMap
    from projector.maps.metric import Metric
    from projector.maps.tuned import Tuned, best_directions, require_count
    from projector.models.decoder import key_norm_weights
    from projector.training import distributed, way_back
    from projector.training.dataset import Texts
    from projector.training.fit import held_out_accuracy, held_out_controls, moments_of, split
    from projector.training.sensitivity import measure, token_weights
    from projector.training.train import Trainer, TrainSettings, plot_losses
    from protos.process.files import write_files

    cls = family(args.family)
    member = configured(cls, args.set)
    if args.directions and cls.name not in ("low_rank", "ridge"):
        raise ConfigError(f"--directions goes with --family low_rank or ridge, not '{cls.name}'")
    data = open_data(args.data, args.max_picture_pixels)
    if isinstance(data, Texts) and not cls.per_token:
        raise FitError(f"'{cls.name}' looks across a grid of tokens, and texts have none")
    _require_for_training(args, data, member.asks_answers)
    source, target = open_models(args, data)
    whole = open_corpus(data, source, target, args.corpus)
    if args.directions:
        widths = source.layout.state_dim, target.layout.state_dim
        require_count(args.directions, getattr(member, "r", 1), widths)
    training, held = split(whole, args.held_out)
    settings = TrainSettings(
        reconstruct_steps=args.reconstruct_steps,
        task_steps=args.task_steps,
        task=args.task,
        task_weight=args.task_weight,
        batch=args.batch,
        rate=args.rate,
        patience=args.patience,
        seed=args.seed,
    )
    seen = sorted(data.contents[: len(whole)])  # now, while every one of them is there
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "state"
    judge: Trainer[Any] | None = None
    if args.focus or member.asks_answers:
        judge = Trainer(None, training, target, data.questions, settings, kept)
    weights = token_weights(judge) if judge is not None and args.focus else None
    with tables.doing(f"moments of {len(training)} pairs"):
        moments = moments_of(training, source, target, weights=weights)
        if held:
            moments = replace(moments, held=moments_of(held, source, target, target_gram=False))
    about = [member.name, asdict(member), source.layout.fingerprint, target.layout.fingerprint]
    if args.directions:
        about.append(args.directions)
    if args.focus:
        about.append("focus")
    told = json.dumps([*about, data.digest, data.questions_digest, len(training)], sort_keys=True)
    details = {
        "family": member.name,
        **{f"{member.name}'s {name}": value for name, value in asdict(member).items()},
        "edge model": source.layout.fingerprint[:12],
        "cloud model": target.layout.fingerprint[:12],
        "directions": args.directions,
        "focus": args.focus,
        f"digest of the {data.unit}s": data.digest[:12],
        "digest of the questions": data.questions_digest[:12],
        f"training {data.unit}s": len(training),
    }
    if judge is not None and member.asks_answers:
        metric = Metric.of(measure(judge), moments.y_stats.scale)
        moments = replace(moments, metric=metric)
    torch.manual_seed(args.seed)  # what has no closed form starts from it
    with tables.doing(f"the closed form of '{member.name}'"):
        made = member.build(source.layout, target.layout, moments)
    norm = key_norm_weights(target.decoder, target.layout)
    if norm is not None:
        made.take_key_norm(norm, moments)
    moved: Any = made
    if args.directions:
        moved = Tuned(made, best_directions(made, moments, args.directions))
    trainer = Trainer(
        moved, training, target, data.questions, settings, kept, about=told, details=details
    )
    first = len(training)
    asks = bool(held) and all(data.asked(i) for i in range(first, first + len(held)))

    def report() -> dict[str, float]:
        return {"accuracy": held_out_accuracy(trainer, held, data, first)}

    trainer.run(report if asks else None)
    with tables.doing(f"judging {len(held)} held-out {data.unit}s"):
        held_out = report() | held_out_controls(trainer, held, data, first) if asks else {}
    for module in (moved, source.model, target.model):
        module.to("cpu")  # the way back and the files need no GPU
    made = moved.merged() if isinstance(moved, Tuned) else made
    back: dict[str, float] | None = None
    if isinstance(made, BidirectionalMap) and not whole.ragged:
        made.fit_back(moments)  # to the way there as training left it
        kept = args.out / "state-back"
        back = way_back.train(
            made, training, held, source, data, settings, kept, trainer.about, details
        )
    if distributed.rank():
        return 0
    base.write(args.out / MAP_FILE, made)
    figures = {
        "family": made.family.name,
        "config": asdict(made.family),
        "source": source.layout.fingerprint,
        "target": target.layout.fingerprint,
        "parameters": made.parameters_count(),
        "directions": args.directions,
        "focus": args.focus,
        "operator_norm": made.operator_norm(),
        "ridge_weight": made.ridge_weight,
        "pictures": len(training),
        "held_out_pictures": len(held),
        "settings": asdict(settings),
        "held_out": held_out,
    } | ({} if back is None else {"held_out_back": back})
    of = hashlib.sha256(map_bytes(args.out)).hexdigest()
    story = (json.dumps(figures, indent=1) + "\n").encode()
    write_files(args.out, {DESCRIPTION: story, SEEN: "\n".join([of, *seen, ""]).encode()})
    plot_losses(args.out / "state" / "log.jsonl", args.out / "loss.png")
    if back is not None:
        plot_losses(args.out / "state-back" / "log.jsonl", args.out / "loss-back.png")
        print("the way back: " + json.dumps(back))
    print(json.dumps(figures["held_out"]))
    print(f"wrote {args.out / MAP_FILE}")
    return 0


def _require_for_training(args: argparse.Namespace, data: Dataset, asks_answers: bool) -> None:
    """Everything that training would stumble over later; no model is loaded yet.

    Raises:
        ConfigError, CorpusError, SourceError: what lacks, by name, and what to do.
    """
    preflight.models(args)
    preflight.writable(args.out)
    count = corpus_size(args.corpus, len(data))
    held = round(count * args.held_out)
    training = range(count - held)
    if not training:
        raise CorpusError(f"{count} inputs, {held} of them held out: none to train on")
    steps = args.reconstruct_steps + args.task_steps
    if 2 * args.batch > len(training) and steps:
        raise CorpusError(
            f"{len(training)} training {data.unit}s: too few for batches of {args.batch} (twice as "
            "many in steps of reconstruction): make more, or a smaller --batch"
        )
    if args.task_steps:
        preflight.asked(data, training, "--task-steps")
    if args.focus or asks_answers:
        what = "--focus" if args.focus else "metric 'answers'"
        preflight.asked(data, training, what)
    if args.patience:
        if not held:
            raise ConfigError(
                f"--patience needs held-out {data.unit}s with questions: --held-out above 0"
            )
        preflight.asked(data, range(len(training), count), "--patience, which asks those held out,")
    if not steps and (args.patience or args.task_weight):
        raise ConfigError(
            "--patience and --task-weight are of training steps, and there are none: give "
            "--task-steps"
        )


def configured(cls: type[Family], given: list[str]) -> Family:
    """A family's configuration from `NAME=VALUE` texts.

    Raises:
        ConfigError: no such setting (the message lists them), or a value of another type.
    """
    defaults = asdict(cls())
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in defaults:
            known = ", ".join(f"{field.name}={defaults[field.name]}" for field in fields(cls))
            raise ConfigError(f"--set {text}: '{cls.name}' has the settings {known or 'none'}")
        kind = type(defaults[name])
        try:
            plain = value.lower() if kind is bool else value
            values[name] = json.loads(plain) if kind in (dict, bool) else kind(value)
        except ValueError as error:
            raise ConfigError(f"--set {text}: expected a value of type {kind.__name__}") from error
        if not isinstance(values[name], kind):
            raise ConfigError(f"--set {text}: expected a value of type {kind.__name__}")
    return cls(**values)
