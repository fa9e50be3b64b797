"""`projector head train` and `projector head test`: task heads on top of a frozen map.

Knows flags, files and what is printed. Does not know: how a head learns or is judged
(`projector/heads/heads.py`). Models are loaded only to say whose caches a corpus holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projector.commands.arguments import add_models, count, rate, seed, whole
from projector.commands.inputs import corpus_size, open_corpus, open_data, open_models
from projector.report import tables
from projector.training import preflight
from protos.errors import ConfigError, FitError
from protos.process import console

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from projector.heads.heads import Head
    from projector.heads.views import FrozenMap
    from projector.training.corpus import Corpus
    from projector.training.dataset import Dataset

HEAD_FILE = "head.safetensors"
DESCRIPTION = "head.json"
_LENS_PICTURES = 256

_SUMMARY = "train and test a small classifier on top of a frozen map"
_PAIR = "--source models/edge-a --target models/cloud"
_EXAMPLES = (
    f"projector head train map/ photos/ corpus/ heads/fire --task fire {_PAIR}",
    f"projector head train bundles/mine photos/ corpus/ heads/fire-native --task fire "
    f"--view native {_PAIR}",
    f"projector head test map/ held-out/ held-out-corpus/ heads/fire {_PAIR}",
)


def register(commands: Any) -> None:
    """Add `head` and its two commands to the program's parser."""
    parser = _command(commands, "head", _SUMMARY)
    parser.set_defaults(command=_none)
    inner = parser.add_subparsers(title="commands", metavar="train | test")

    train = _command(inner, "train", "train a head on a corpus and its labels, the map frozen")
    train.set_defaults(command=_train)
    _add_inputs(train)
    train.add_argument("out", type=Path, metavar="OUT", help="folder of the head; resumes")
    train.add_argument("--task", required=True, help="name of the labels to learn (labels.jsonl)")
    train.add_argument(
        "--view", default="projected", help="projected, native, edge or latents; default: projected"
    )
    train.add_argument(
        "--components", type=whole, default=128, help="of a token's state; default: %(default)s"
    )
    train.add_argument("--width", type=whole, default=64, help="hidden; default: %(default)s")
    train.add_argument("--steps", type=whole, default=600, help="at most; default: %(default)s")
    train.add_argument("--batch", type=whole, default=64, help="samples; default: %(default)s")
    train.add_argument("--rate", type=rate, default=2e-3, help="default: %(default)s")
    train.add_argument("--patience", type=count, default=8, help="reports of 20; 0: never")
    train.add_argument("--held-out", type=rate, default=0.1, help="share that decides when to end")
    train.add_argument("--seed", type=seed, default=0, help="default: %(default)s")

    test = _command(inner, "test", "judge a head on pictures that it never saw")
    test.set_defaults(command=_test)
    _add_inputs(test)
    test.add_argument("head", type=Path, metavar="HEAD", help="what `head train` wrote")
    test.add_argument(
        "--view",
        help="let a head of the large model's own state look at the projected one (default: what "
        "it was trained on)",
    )
    test.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    test.add_argument("--json", action="store_true", help="print the figures as JSON")


# ---------------------------------------------------------------------- the commands


def _none(_args: argparse.Namespace) -> int:
    raise ConfigError("no command: train or test (see projector head --help)")


def _train(args: argparse.Namespace) -> int:
    import torch

    from projector.bundle.files import write_files
    from projector.heads.heads import Head, HeadConfig, HeadSettings, Samples, judge, train
    from projector.heads.labels import read_labels
    from projector.heads.views import VIEWS

    if args.view not in VIEWS:
        raise ConfigError(f"there is no view '{args.view}': expected one of {', '.join(VIEWS)}")
    preflight.writable(args.out)
    data = open_data(args.data, args.max_picture_pixels)
    labels = read_labels(data, args.task).within(corpus_size(args.corpus, len(data)))
    training, held = labels.split(args.held_out)
    corpus, frozen = _inputs(args, data)
    tracks = bool(labels.objects)
    names = map(str, range(1, labels.objects + 1)) if tracks else sorted(set(training.labels))
    dim = next(frozen.look(args.view, corpus, _first(1))).shape[2]
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
    print(f"wrote {args.out / HEAD_FILE}: {_shown(figures['held_out'])}, held out")
    return 0


def _test(args: argparse.Namespace) -> int:
    from projector.bundle.files import write_files
    from projector.heads.heads import Samples, judge
    from projector.heads.labels import read_labels

    head = read_head(args.head)
    view = args.view or head.config.view
    if args.out:
        preflight.writable(args.out.parent)
    data = open_data(args.data, args.max_picture_pixels)
    size = corpus_size(args.corpus, len(data))
    labels = read_labels(data, head.config.task).within(size)
    corpus, frozen = _inputs(args, data)
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
        raise FitError(f"'{head.config.task}' here is about {labels.objects} objects, the head not")
    with tables.doing(f"the {view} states", len(corpus)) as told:
        states = through_lens(head, frozen, view, corpus, told)
    figures = judge(head, Samples.of(states, labels, head.config.classes))
    figures |= {"view": view, "point": args.point}
    if args.out:
        write_files(
            args.out.parent, {args.out.name: (json.dumps(figures, indent=1) + "\n").encode()}
        )
    print(json.dumps(figures, indent=1) if args.json else _shown(figures))
    return 0


# ---------------------------------------------------------------------- what they share


def fit_lens(
    head: Head, frozen: FrozenMap, corpus: Corpus, pictures: npt.NDArray[np.int64]
) -> None:
    """Fit a head's lens to at most 256 of the pictures it is trained on."""
    import numpy as np

    distinct = np.unique(pictures)
    chosen = distinct[:: -(-len(distinct) // _LENS_PICTURES)]
    head.fit_lens(np.concatenate(list(frozen.look(head.config.view, corpus, chosen))))


def through_lens(
    head: Head,
    frozen: FrozenMap,
    view: str,
    corpus: Corpus,
    told: Callable[[int], None] = lambda _: None,
) -> npt.NDArray[np.float32]:
    """Every picture of a corpus as a head sees it, `[n, N, p]`."""
    import numpy as np

    seen = []
    for part in frozen.look(view, corpus):
        seen.append(head.through_lens(part))
        told(len(part))
    return np.concatenate(seen)


def read_head(path: Path) -> Head:
    """Read a head from its file or folder.

    Raises:
        FitError: there is none.
        BundleFormatError: it is not one.
    """
    from projector.heads.heads import Head

    file = path / HEAD_FILE if path.is_dir() else path
    try:
        blob = file.read_bytes()
    except OSError as error:
        raise FitError(f"no head at {file}: {error.strerror}") from error
    return Head.from_bytes(blob)


def _inputs(args: argparse.Namespace, data: Dataset) -> tuple[Corpus, FrozenMap]:
    from projector.heads.views import FrozenMap
    from projector.training.dataset import Texts

    if isinstance(data, Texts):
        raise ConfigError(f"a head is of pictures, and {args.data} holds texts")
    source, target = open_models(args, data)
    frozen = FrozenMap.open(args.map, source.layout, target.layout, args.point)
    return open_corpus(data, source, target, args.corpus), frozen


def _first(count: int) -> npt.NDArray[np.int64]:
    import numpy as np

    return np.arange(count)


def _shown(figures: dict[str, Any]) -> str:
    """One line: the accuracy, its interval, and what needs no head."""
    from projector.training.dataset import LEAST_QUESTIONS

    def percent(name: str) -> str:
        return f"{100 * figures[name]['mean']:.1f} %"

    low, high = (100 * figures["accuracy"][end] for end in ("low", "high"))
    names = ("majority", "nearest", "other_picture")
    floors = [f"{name.replace('_', ' ')} {percent(name)}" for name in names if name in figures]
    few = figures["samples"] < LEAST_QUESTIONS
    return (
        f"{figures['task']} from {figures['view']} states: {percent('accuracy')} right "
        f"({low:.1f} to {high:.1f}) of {figures['samples']}; {', '.join(floors)}"
        + (f"; {figures['verdict']}: {figures['why']}" if figures["why"] else "")
        + (f"; too few to go by: a report wants {LEAST_QUESTIONS}" if few else "")
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("map", type=Path, metavar="MAP", help="what `train` wrote, or a bundle")
    parser.add_argument("data", type=Path, metavar="DATA", help="pictures and labels.jsonl")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="what `corpus` made of them")
    add_models(parser)
    parser.add_argument("--point", help="operating point of a bundle; default: not quantized")


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    examples = "\n  ".join(_EXAMPLES)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"examples:\n  {examples}\n\nexit codes: 0 where all is well, otherwise:\n"
        f"{console.exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser
