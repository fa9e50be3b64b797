"""`projector train`: fit a map to the pairs of a corpus, holding some of them out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, fields
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
from projector.models.foreign import importing
from projector.training import preflight
from projector.training.map_folder import MAP_FILE
from projector.training.settings import TASKS, TrainSettings
from protos.errors import ConfigError, CorpusError, FitError

if TYPE_CHECKING:
    from projector.maps import Family
    from projector.training.dataset import Dataset


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
    train.add_argument(
        "out", type=Path, metavar="OUT", help="folder of the map; a run that was stopped goes on"
    )
    train.add_argument("--family", default="low_rank", help="family of map; default: %(default)s")
    train.add_argument(
        "--families", action=_ListFamilies, help="list the families and their settings for --set"
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the family, such as r=32; may be repeated",
    )
    train.add_argument(
        "--directions",
        type=count,
        default=0,
        metavar="K",
        help="steps train a `ridge` or `low_rank` only in the K source directions that explain the "
        "target best, for wide caches; 0: every weight",
    )
    train.add_argument(
        "--focus",
        action="store_true",
        help="closed forms weigh each token by how much the cloud model's answers depend on it; "
        "needs questions to every input",
    )
    train.add_argument("--held-out", type=rate, default=0.1, help="share of pictures held out")
    _add_settings(train)
    add_text_tokens(train)


class _ListFamilies(argparse.Action):
    """Prints each family with its settings and their defaults, and ends; imports torch for it."""

    def __init__(self, **given: Any) -> None:
        super().__init__(nargs=0, **given)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        with importing("listing the families"):
            from projector.maps import FAMILIES
        for name, cls in FAMILIES.items():
            settings = (f"{setting}={value}" for setting, value in asdict(cls()).items())
            print(f"{name:<14}{' '.join(settings)}".rstrip())
        parser.exit()


def _train(args: argparse.Namespace) -> int:
    from projector.training import distributed

    distributed.start()
    try:
        return _train_one(args)
    finally:
        distributed.stop()


def _train_one(args: argparse.Namespace) -> int:
    from projector.maps import family
    from projector.maps.tuned import require_count
    from projector.models.autocast import quick_kernels
    from projector.training import distributed
    from projector.training.dataset import Texts
    from projector.training.run import Run

    cls = family(args.family)
    member = configured(cls, args.set)
    settings = TrainSettings(**{one.name: getattr(args, one.name) for one in fields(TrainSettings)})
    if args.directions and cls.name not in ("low_rank", "ridge"):
        raise ConfigError(f"--directions goes with --family low_rank or ridge, not '{cls.name}'")
    data = open_data(args.data, args.max_picture_pixels)
    if isinstance(data, Texts) and not cls.per_token:
        raise FitError(f"'{cls.name}' looks across a grid of tokens, and texts have none")
    if settings.rounds and (isinstance(data, Texts) or args.directions):
        raise ConfigError("steps that round latents are for pictures, and without --directions")
    _require_for_training(args, settings, data, member.asks_answers)
    source, target = open_models(args, data)
    if target.device.type == "cpu":
        quick_kernels()
    pairs = open_corpus(data, source, target, args.corpus)
    if args.directions:
        widths = source.layout.state_dim, target.layout.state_dim
        require_count(args.directions, getattr(member, "r", 1), widths)
    run = Run(
        *(member, settings, data, source, target, pairs, args.held_out, args.out),
        directions=args.directions,
        focus=args.focus,
    )
    held_out = run.go()
    if not distributed.rank():
        print(json.dumps(held_out))
        print(f"wrote {args.out / MAP_FILE}")
    return 0


def _require_for_training(
    args: argparse.Namespace, settings: TrainSettings, data: Dataset, asks_answers: bool
) -> None:
    """Check all that training needs, before any model is loaded.

    Raises:
        ConfigError, CorpusError, SourceError: names what is missing and what to do.
    """
    preflight.models(args)
    preflight.writable(args.out)
    count = corpus_size(args.corpus, len(data))
    held = round(count * args.held_out)
    training = range(count - held)
    if not training:
        raise CorpusError(f"{count} inputs, {held} of them held out: none to train on")
    if 2 * settings.batch > len(training) and settings.steps:
        raise CorpusError(
            f"{len(training)} training {data.unit}s: too few for batches of {settings.batch} "
            "(twice as many in steps of reconstruction): make more, or a smaller --batch"
        )
    if settings.task_steps or settings.finish_steps:
        preflight.asked(data, training, "--task-steps")
    if args.focus or asks_answers:
        what = "--focus" if args.focus else "metric 'answers'"
        preflight.asked(data, training, what)
    if settings.patience:
        if not held:
            raise ConfigError(
                f"--patience needs held-out {data.unit}s with questions: --held-out above 0"
            )
        preflight.asked(data, range(len(training), count), "--patience, which asks those held out,")
    if not settings.steps and (settings.patience or settings.task_weight):
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


_KINDS: dict[str, Callable[[str], Any]] = {
    "count": count,
    "whole": whole,
    "weight": weight,
    "rate": rate,
    "seed": seed,
}


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each training setting."""
    groups: dict[str, Any] = {"": parser.add_argument_group("steps")}
    for one in fields(TrainSettings):
        said = one.metadata
        if said["group"] not in groups:
            groups[said["group"]] = parser.add_argument_group(said["group"])
        flag = "--" + one.name.replace("_", "-")
        kind = said["kind"]
        options: dict[str, Any] = {"type": _KINDS[kind]} if kind in _KINDS else {"choices": TASKS}
        if one.name == "task_weight":
            options["metavar"] = "L"
        groups[said["group"]].add_argument(
            flag, default=one.default, help=f"{said['help']}; default: %(default)s", **options
        )
