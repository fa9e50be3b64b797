"""`projector calibrate`: the rate ladder of a bundle, measured on held-out pictures or texts.

`projector/calibration/ladder.py` measures the points and chooses among them. Models are loaded (and
torch imported) only when the command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from projector.bundle.certificate import CANNOT_BE_JUDGED
from projector.commands.arguments import add_pair_command, add_text_tokens, count, whole
from projector.commands.inputs import corpus_size, open_corpus, open_data
from projector.commands.models import open_models
from projector.report import bundle_page, tables
from projector.training import preflight
from protos.errors import ConfigError
from protos.process.progress import note

if TYPE_CHECKING:
    from projector.bundle.load import Bundle
    from projector.calibration.ladder import Calibrated

T = TypeVar("T", int, float, str)

_SAMPLE_PICTURES = 1024


def register(commands: Any) -> None:
    """Add the command to `projector`'s sub-parsers."""
    parser = add_pair_command(
        commands,
        "calibrate",
        "sweep tokens, rank and rounding, and keep the best ladder in a bundle",
        _calibrate,
        "projector calibrate bundles/mine photos/ corpus/ held-out/ held-out-corpus/ "
        "bundles/calibrated --source models/edge-a --target models/cloud",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("data", type=Path, metavar="DATA", help="training pictures, or texts")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="what `corpus` made of them")
    parser.add_argument("held", type=Path, metavar="HELD", help="held-out pictures and questions")
    parser.add_argument("held_corpus", type=Path, metavar="HELD_CORPUS", help="their pairs")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the calibrated bundle")
    parser.add_argument(
        "--questions",
        type=whole,
        default=6,
        help="per picture; default: %(default)s",
    )
    swept = parser.add_argument_group("what is swept: every combination of these lists")
    swept.add_argument(
        "--coarseness", type=_numbers, metavar="LIST", help="steps, in multiples of the finest"
    )
    swept.add_argument(
        "--quiet", type=_numbers, metavar="LIST", help="a token nearer than this to the mean at "
        "its position (squared, in steps) is sent as zeros"
    )  # fmt: skip
    swept.add_argument(
        "--dead-zones", type=_numbers, metavar="LIST", help="steps rounded further towards 0"
    )
    swept.add_argument("--tokens", type=_wholes, metavar="LIST", help="tokens kept; 0 for all")
    swept.add_argument("--ranks", type=_wholes, metavar="LIST", help="latents sent; 0 for all")
    parser.add_argument(
        "--sweep",
        action="append",
        type=lists,
        metavar="LISTS",
        help="instead of these flags: several lists in one, such as 'coarseness=2,4 quiet=4,8'; "
        "may be repeated: every sweep is tried",
    )
    fixed = parser.add_argument_group("points beside the sweep, with frames of one size")
    fixed.add_argument(
        "--fixed",
        type=_names,
        metavar="LIST",
        help="points to keep: fp8 (a scale per latent), fp8-tensor, fp8-token, int8, int4, float; "
        "default: the bundle's own",
    )
    fixed.add_argument(
        "--raw-scale",
        choices=("tensor", "head", "channel", "token"),
        help="what shares one FP8 scale in the raw cache (scales of tokens are sent); default: the "
        "bundle's",
    )
    parser.add_argument(
        "--within",
        type=float,
        default=0.016,
        help="accuracy that the default point may lose against the cloud model's own caches; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--selector-pictures",
        type=count,
        default=128,
        help="training pictures with questions that the selector task_aware learns from; 0: do "
        "not learn it (texts never do); default: %(default)s",
    )
    add_text_tokens(parser)
    parser.add_argument("--selector", help="selector of token budgets (default: the bundle's own)")


def _calibrate(args: argparse.Namespace) -> int:
    import torch

    from projector.bundle.load import Bundle
    from projector.bundle.write import write_next
    from projector.calibration import ladder
    from projector.calibration.calibrate import FIXED, with_fixed
    from projector.calibration.canary_frames import canary_set
    from projector.codec import select
    from projector.codec.select.task_aware import TaskAware
    from projector.models.lm import LM
    from projector.training.corpus import Corpus
    from projector.training.dataset import Dataset, Texts
    from projector.training.texts import fresh_of

    if not 0 <= args.within <= 1:
        raise ConfigError(f"--within {args.within}: a share of right answers lies in 0..1")
    for name in args.fixed or ():
        if name not in FIXED:  # before anything is run
            raise ConfigError(f"--fixed {name}: expected some of {', '.join(FIXED)}")
    learns = bool(args.selector_pictures)
    if args.selector and select.require(args.selector) is TaskAware and not learns:
        raise ConfigError("--selector task_aware learns from pictures: --selector-pictures above 0")
    data, held = (open_data(folder, args.max_picture_pixels) for folder in (args.data, args.held))
    sweeps = [ladder.Sweep(**lists) for lists in _swept(args, isinstance(data, Texts))]
    info = Bundle.peek(args.bundle)
    for sweep in sweeps:
        ladder.grid(sweep, info.rank)  # refuses bad lists before anything is run
    preflight.writable(args.out)
    sizes = [
        corpus_size(folder, len(inputs))
        for folder, inputs in ((args.corpus, data), (args.held_corpus, held))
    ]
    held.require_questions(args.questions, range(sizes[1]))
    preflight.asked(held, range(sizes[1]), "calibrating")
    if learns and not isinstance(data, Texts):
        few = range(min(args.selector_pictures, sizes[0]))
        preflight.asked(data, few, "--selector-pictures above 0")
    source, target = open_models(args, data)
    bundle = Bundle.load(args.bundle, source.layout, target.layout)
    corpora = [
        open_corpus(pictures, source, target, folder)
        for pictures, folder in ((data, args.corpus), (held, args.held_corpus))
    ]
    backend = bundle.backend("onnxruntime", threads=torch.get_num_threads())

    def judge(pictures: Dataset, corpus: Corpus) -> ladder.Judge:
        sent = None
        if isinstance(source, LM) and isinstance(target, LM) and isinstance(pictures, Texts):
            sent = fresh_of(source, target, pictures.text, len(corpus))
        asks = pictures.questions, args.questions
        return ladder.Judge(source, target, backend, corpus, *asks, fresh=sent)

    trained = set(data.contents[: len(corpora[0])])
    again = sum(content in trained for content in held.contents[: len(corpora[1])])
    if again:
        print(f"not held out: {again} of the {len(corpora[1])} held-out inputs are in DATA too")
    encoder = bundle.encoder
    if args.selector_pictures and not isinstance(data, Texts):
        learnt_from = corpora[0].part(slice(args.selector_pictures))
        with tables.doing("learning the selector task_aware"):
            weights = ladder.learn_task_weights(judge(data, learnt_from), encoder)
        encoder = replace(encoder, task_weights=weights)
    encoder = replace(encoder, selector=args.selector or encoder.selector)
    sample = ladder.states_of(source, corpora[0].part(slice(_SAMPLE_PICTURES)))
    flat = [state.flat() for state in sample]
    encoder = with_fixed(encoder, flat, args.fixed, args.raw_scale, source.layout.head_dim)
    made = ladder.calibrate(encoder, judge(held, corpora[1]), sample, sweeps, args.within)
    info = write_next(
        bundle,
        args.out,
        encoder=made.encoder,
        certificate=_certificate(bundle, made, len(corpora[1]), args.questions, again),
        default_point=made.default_point,
        ladder=made.ladder,
        canary=canary_set(source, target, made.encoder, backend, held, made.default_point),
    )
    bundle_page.show_bundle(Bundle.load(args.out, source.layout, target.layout))
    print(f"wrote bundle {info.id} version {info.version} to {args.out}")
    if not made.judged:
        note(
            f"projector: the ladder {CANNOT_BE_JUDGED}: the cloud model is right in "
            f"{made.native:.1%} from its own caches and in {made.blind:.1%} without any input"
        )
    if bundle.encoder.risk is not None:
        print("its guard was learnt for the old points: learn it again with `projector guard`")
    return 0


def _certificate(
    bundle: Bundle, made: Calibrated, pictures: int, questions: int, again: int
) -> dict[str, Any]:
    """The bundle's certificate with this calibration; figures of points now gone are dropped.

    It holds the accuracy of the default point, all that was tried, and `again`: how many held-out
    inputs are training data too.
    """
    gone = {point.name for point in bundle.info.points} - {p.name for p in made.encoder.points}
    kept: dict[str, Any] = {
        k: v for k, v in bundle.certificate.items() if k not in ("guard", "service_guard")
    }
    for name in ("accuracy", "payload_bytes"):
        section = kept.get(name)
        if isinstance(section, dict):
            kept[name] = {key: value for key, value in section.items() if key not in gone}
    default = made.encoder.point(made.default_point)
    if isinstance(kept.get("accuracy"), dict) and default.measured is not None:
        kept["accuracy"][default.name] = default.measured.accuracy
    kept["calibration"] = {
        "pictures": pictures,
        "questions": questions * pictures,
        "native": made.native,
        "blind": made.blind,
        "judged": made.judged,
        "seen_in_training": again,
        "tried": {name: asdict(one) for name, one in made.tried.items()},
    }
    return kept


def _list(kind: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def read(text: str) -> tuple[T, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected numbers with commas between them"
            ) from error

    return read


def _swept(args: argparse.Namespace, texts: bool) -> list[dict[str, Any]]:
    """The lists of each sweep that were given.

    Raises:
        ConfigError: `--sweep` beside lists of its own, or lists that texts cannot have.
    """
    given = {name: getattr(args, name) for name in _LISTS}
    given = {name: values for name, values in given.items() if values is not None}
    if args.sweep and given:
        raise ConfigError(f"--sweep goes without --{next(iter(given)).replace('_', '-')}")
    every = [dict(one) for one in args.sweep or [given]]
    for one in every if texts else ():
        one.setdefault("quiet", (0.0,))
        if any(one["quiet"]) or any(one.get("tokens", ())) or args.selector:
            raise ConfigError("texts travel whole: no --quiet, no --tokens and no --selector")
    return every


def lists(text: str) -> dict[str, tuple[float, ...]]:
    """`coarseness=2,4 quiet=4,8` by name."""
    found: dict[str, tuple[float, ...]] = {}
    for part in text.split():
        name, equals, values = part.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in _LISTS or name in found:
            raise argparse.ArgumentTypeError(
                f"{part!r}: expected NAME=LIST, each name once: {', '.join(_LISTS)}"
            )
        found[name] = _LISTS[name](values)
    return found


_numbers, _wholes, _names = _list(float), _list(int), _list(str)
_LISTS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "coarseness": _numbers,
    "quiet": _numbers,
    "dead_zones": _numbers,
    "tokens": _wholes,
    "ranks": _wholes,
}
"""The lists of a sweep."""
