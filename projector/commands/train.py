"""The commands of a model engineer: `projector corpus`, `train`, `validate`, `export`.

Knows flags, files and what is printed. Does not know: how anything is fitted or judged. Models are
loaded (and torch imported) only when a command runs.

The calls, in order: `corpus` runs both models over a folder of pictures or texts; `train`
fits a map to the pairs, holding some out; `validate` judges it on pairs that it never saw; `export`
writes it, with that judgement, as a bundle to serve.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projector.commands.arguments import (
    add_models,
    count,
    power,
    rate,
    seed,
    text_tokens,
    weight,
    whole,
)
from projector.models.foreign import importing, in_words
from projector.report import tables
from projector.training import preflight
from protos.errors import BridgeError, ConfigError, CorpusError, FitError, UselessMapError
from protos.process import console
from protos.process.files import without_mark
from protos.process.folders import said
from protos.process.progress import note

if TYPE_CHECKING:
    from projector.maps import Family, Map
    from projector.models.lm import LM
    from projector.models.vlm import VLM
    from projector.training.corpus import Corpus
    from projector.training.dataset import Dataset

    Model = VLM | LM

MAP_FILE = "map.safetensors"
DESCRIPTION = "training.json"
SEEN = "seen.txt"
"""SHA-256 of a map, then digests of all that it was trained on or chosen by, one a line."""
_MAX_REPORT_BYTES = 1 << 24
_CONTROLS = ("native", "blind", "other_picture", "mean_state", "untrained_map", "untrained_edge")

_EXAMPLES = {
    "corpus": "projector corpus photos/ corpus/ --source models/edge-a --target models/cloud",
    "train": "projector train photos/ corpus/ map/ --source models/edge-a --target models/cloud "
    "--family mix --set width=128 --task-steps 500",
    "validate": "projector validate map/ held-out/ held-out-corpus/ report/ "
    "--source models/edge-a --target models/cloud",
    "calibrate": "projector calibrate bundles/mine photos/ corpus/ held-out/ held-out-corpus/ "
    "bundles/calibrated --source models/edge-a --target models/cloud",
    "guard": "projector guard bundles/calibrated held-out/ bundles/guarded "
    "--source models/edge-a --target models/cloud",
    "export": "projector export map/ photos/ corpus/ bundles/mine --report report/report.json "
    "--source models/edge-a --target models/cloud",
}

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
    """Add the four commands to the program's parser."""
    corpus = _command(
        commands, "corpus", "run both models over pictures or texts and keep the pairs", _make
    )
    corpus.add_argument("data", type=Path, metavar="DATA", help="folder of pictures, or of texts")
    corpus.add_argument("corpus", type=Path, metavar="CORPUS", help="folder of the shards; resumes")
    corpus.add_argument("--count", type=whole, help="first so many of them (default: all)")
    _add_device(corpus)

    train = _command(commands, "train", "fit a map to the pairs of a corpus", _train)
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
    _add_device(train)

    validate = _command(commands, "validate", "judge a map on pairs that it never saw", _validate)
    validate.add_argument("map", type=Path, metavar="MAP", help="what `train` wrote")
    validate.add_argument("data", type=Path, metavar="DATA", help="held-out pictures and questions")
    validate.add_argument("corpus", type=Path, metavar="CORPUS", help="what `corpus` made of them")
    validate.add_argument("out", type=Path, metavar="OUT", help="folder of the report")
    validate.add_argument("--questions", type=whole, default=6, help="per picture")
    validate.add_argument(
        "--watts",
        type=power,
        default=15.0,
        help="of one busy core, for the energy figures: stated, not measured; default: %(default)s",
    )
    _add_reverse_rank(validate)
    _add_device(validate)
    export = _command(commands, "export", "write a judged map as a bundle to serve", _export)
    export.add_argument("map", type=Path, metavar="MAP", help="what `train` wrote")
    export.add_argument("data", type=Path, metavar="DATA", help="the corpus's pictures")
    export.add_argument("corpus", type=Path, metavar="CORPUS", help="training pairs, to calibrate")
    export.add_argument("out", type=Path, metavar="BUNDLE", help="folder of the bundle")
    export.add_argument(
        "--report", type=Path, required=True, metavar="FILE", help="report.json of `validate`"
    )
    _add_reverse_rank(export)
    export.add_argument(
        "--force",
        action="store_true",
        help="write it although the report says that the map is no better than its controls, or "
        "that this cannot be judged; the bundle says so for ever",
    )
    export.add_argument("--id", help="name of the bundle (default: its folder's)")
    export.add_argument("--bundle-version", type=whole, default=1, help="default: %(default)s")
    export.add_argument(
        "--precision",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the stored weights (the report says what each loses); default: %(default)s",
    )
    validate.add_argument("--json", action="store_true", help="print the report instead of tables")


# ---------------------------------------------------------------------- the commands


def _make(args: argparse.Namespace) -> int:
    data = open_data(args.data, args.max_picture_pixels)
    preflight.writable(args.corpus)
    corpus = _collect(data, *_models(args, data), args.corpus, args.count)
    print(
        f"{len(corpus)} {data.unit}s, {corpus.x.shape[1]} -> {corpus.y.shape[1]} tokens, "
        f"{corpus.x.shape[2]} -> {corpus.y.shape[2]} numbers each, in {args.corpus}"
    )
    return 0


def _train(args: argparse.Namespace) -> int:
    from projector.training import distributed

    distributed.start()
    try:
        return _train_one(args)
    finally:
        distributed.stop()


def _train_one(args: argparse.Namespace) -> int:
    import torch

    from projector.bundle.bundle import write_files
    from projector.maps import base, family
    from projector.maps.bidirectional import BidirectionalMap
    from projector.maps.metric import Metric
    from projector.maps.tuned import Tuned, best_directions, require_count
    from projector.models.cache import key_norm_weights
    from projector.training import distributed, way_back
    from projector.training.dataset import Texts
    from projector.training.fit import held_out_accuracy, held_out_controls, moments_of, split
    from projector.training.sensitivity import measure, token_weights
    from projector.training.train import Trainer, TrainSettings, plot_losses

    cls = family(args.family)
    member = configured(cls, args.set)
    if args.directions and cls.name not in ("low_rank", "ridge"):
        raise ConfigError(f"--directions goes with --family low_rank or ridge, not '{cls.name}'")
    data = open_data(args.data, args.max_picture_pixels)
    if isinstance(data, Texts) and not cls.per_token:
        raise FitError(f"'{cls.name}' looks across a grid of tokens, and texts have none")
    _require_for_training(args, data, member.asks_answers)
    source, target = _models(args, data)
    whole = _collect(data, source, target, args.corpus, None, make=False)
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
    of = hashlib.sha256(_map_bytes(args.out)).hexdigest()
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


def _validate(args: argparse.Namespace) -> int:
    from projector.bundle.bundle import write_files
    from projector.maps.bidirectional import BidirectionalMap
    from projector.report import validate_page
    from projector.training import way_back
    from projector.training.dataset import Texts
    from projector.training.fit import edge_answers, untrained_edge_states
    from projector.training.train import Trainer, TrainSettings
    from projector.validation import validate
    from projector.validation.cost import costs
    from projector.validation.estimate import same_answer

    data = open_data(args.data, args.max_picture_pixels)
    _map_bytes(args.map)
    preflight.models(args)
    preflight.writable(args.out)
    data.require_questions(args.questions, range(corpus_size(args.corpus, len(data))))
    source, target = _models(args, data)
    made = _map(args.map, source, target).eval()
    corpus = _collect(data, source, target, args.corpus, None, make=False)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(made, corpus, target, data.questions, TrainSettings(), args.out / "state")
    judge = validate.Validator(trainer, corpus, data, args.questions)
    with tables.doing("a map from an untrained edge model"):
        floor = untrained_edge_states(args.source, judge.map, corpus, data, target)
    count = len(judge.asked)
    with tables.doing("the edge model alone", count, "question") as told:
        own = edge_answers(source, data, [(q.picture, q.text) for q in judge.asked], told=told)
        right = [same_answer(a, q.answer) for a, q in zip(own, judge.asked, strict=True)]
    asked = judge.asked[0]
    with tables.doing("what an answer costs"):
        x = corpus.x[asked.picture : asked.picture + 1]
        seen = (data.text if isinstance(data, Texts) else data.picture)(asked.picture)
        spent = costs(trainer, x, seen, asked.text, args.watts)
    arms = judge.arms(floor)
    with tables.doing(f"{count} questions, {arms} arms", arms * len(corpus)) as judge.told:
        report = judge.report(floor, right, spent)
    report["map"] = _identity(args.map, made)
    report["judged_at"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    report["seen_in_training"] = _seen(args.map, data, len(corpus))
    if isinstance(made, BidirectionalMap) and not corpus.ragged:
        args.device = "cpu"  # the way back needs no GPU
        reader, _ = _models(args, data)
        with tables.doing("the edge model's answers from what comes back"):
            report["way_back"] = way_back.judge(
                judge.map,
                corpus,
                reader,
                data,
                args.questions,
                args.out / "state",
                args.reverse_rank,
            )
    page = validate_page.html(report, data)
    text = json.dumps(report, indent=1) + "\n"
    write_files(args.out, {"report.json": text.encode(), "report.html": page.encode()})
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        validate_page.show(report)
        print(f"wrote {args.out / 'report.json'} and {args.out / 'report.html'}")
    return 0


def _export(args: argparse.Namespace) -> int:
    import torch

    from projector.bundle.bundle import write_bundle
    from projector.bundle.grades import verdict_of
    from projector.calibration.calibrate import COARSENESS, FP8_POINT, encoder_of, reverse_of
    from projector.maps import ServedMap
    from projector.serving.backends import CloudFiles
    from projector.serving.export import export
    from projector.validation.validate import PRECISIONS

    data = open_data(args.data, args.max_picture_pixels)
    preflight.models(args)
    preflight.writable(args.out)
    corpus_size(args.corpus)
    report = _read_report(args.report, args.map)
    certificate, verdict = _certificate(report), verdict_of(report, "mapped")
    if not verdict.good:
        if not args.force:
            raise UselessMapError(
                f"{args.report}: {verdict}. A bundle of this map is not worth serving: train "
                "another, or judge it by other questions; --force writes it and records that"
            )
        certificate["forced"] = {"verdict": verdict.state, "why": verdict.why}
        note(f"projector: written by force: {verdict}")
    source, target = _models(args, data)
    made = _map(args.map, source, target).eval()
    if not _same_map(report["map"], _identity(args.map, made), made):
        raise ConfigError(f"{args.report} judges {args.map} between other models: judge it again")
    dtype = {"float32": torch.float32, **PRECISIONS}[args.precision]
    corpus = _collect(data, source, target, args.corpus, None, make=False)
    made = made.in_precision(dtype)  # the graph holds the numbers that the weights are stored as
    with tables.doing("calibrating the edge half, exporting the cloud half"):
        encoder = encoder_of(made, corpus.x)
        reverse = reverse_of(made, corpus.y, args.reverse_rank)
        exported = export(ServedMap(made))
    info = write_bundle(
        args.out,
        id=args.id or args.out.name,
        version=args.bundle_version,
        source=source.layout,
        target=target.layout,
        encoder=encoder,
        cloud=CloudFiles(weights=made.to_bytes(dtype), graph=exported.graph),
        certificate={**certificate, "stored_in": args.precision},
        default_point=FP8_POINT,
        ladder=[*range(1, len(COARSENESS) + 1), *(p.index for p in encoder.points if p.index > 9)],
        reverse=reverse,
    )
    print(
        f"wrote bundle {info.id} version {info.version} to {args.out}: rank {info.rank}, graph "
        f"parity {exported.parity:.1e}, tier {certificate['tier_by_answers'] or verdict.state}"
        + (f", way back of rank {reverse.decoder.rank - 1}" if reverse else "")
    )
    return 0


def _read_report(path: Path, map_path: Path) -> dict[str, Any]:
    """A report of `validate` on one map, with every control.

    Raises:
        FitError: there is no map.
        ConfigError: it is no such report.
    """
    from protos.layout import read_json

    of = hashlib.sha256(_map_bytes(map_path)).hexdigest()
    try:
        raw = without_mark(path.read_bytes(), path)
        report: dict[str, Any] = read_json(raw, _MAX_REPORT_BYTES, str(path))
        same, controls = report["map"]["sha256"] == of, report["accuracy"]
        controlled = all("mean" in controls[name] for name in _CONTROLS)
        _certificate(report)["tier_by_answers"]
    except (OSError, BridgeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no report of `projector validate` ({in_words(error)})"
        ) from error
    if not same or not controlled:
        raise ConfigError(
            f"{path} judges another map than {map_path}, or without its controls: run "
            "`projector validate` on this one"
        )
    return report


def _certificate(report: dict[str, Any]) -> dict[str, Any]:
    """What a bundle carries of a report: no single pictures and no single frames."""
    kept = {key: value for key, value in report.items() if key != "worst_pictures"}
    bound = {key: value for key, value in report["bound"].items() if key != "frames"}
    return {**kept, "bound": bound}


# ---------------------------------------------------------------------- what they share


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


def open_data(folder: Path, max_pixels: int) -> Dataset:
    """The pictures or texts of a folder; what is passed over in it is said.

    Raises:
        SourceError: as `open_folder`.
    """
    from projector.training.dataset import open_folder

    data = open_folder(folder, max_pixels)
    if data.skipped:
        note(f"projector: {folder}: {len(data)} {data.unit}s; passed over: {said(data.skipped)}")
    return data


def _models(args: argparse.Namespace, data: Dataset) -> tuple[Model, Model]:
    """Both models, as readers of what the folder holds."""
    preflight.models(args)
    with importing("running a model"):
        import torch
        from transformers.utils import logging

        from projector.models.lm import LM
        from projector.models.vlm import VLM
        from projector.training import distributed
        from projector.training.dataset import Texts

    logging.disable_progress_bar()
    tables.threads(args.threads, torch.set_num_threads)
    with tables.doing(f"loading {args.source} and {args.target}"):
        device = distributed.device(args.device)
        models: list[Model] = []
        for path in (args.source, args.target):
            if isinstance(data, Texts):
                models.append(LM.load(path, device, text_tokens=args.text_tokens))
            else:
                models.append(VLM.load(path, device))
        return models[0], models[1]


def _collect(
    data: Dataset, source: Model, target: Model, folder: Path, count: int | None, make: bool = True
) -> Corpus:
    from projector.models.lm import LM
    from projector.models.vlm import VLM
    from projector.training import corpus, texts
    from projector.training.dataset import Texts

    size = min(count or len(data), len(data))
    if not make:
        size = min(size, corpus_size(folder))
    with tables.doing(f"reading {len(data)} {data.unit}s"):
        inputs = data.digest
    if isinstance(data, Texts) and isinstance(source, LM) and isinstance(target, LM):
        return texts.collect(
            source,
            target,
            data.text,
            size,
            folder,
            inputs=inputs,
            named=lambda index: data.files[index].name,
        )
    if isinstance(source, VLM) and isinstance(target, VLM):
        return corpus.collect(source, target, data.picture, size, folder, inputs=inputs)
    raise CorpusError(f"{data.folder} holds {data.unit}s, which these two models do not both read")


def corpus_size(folder: Path, most: int | None = None) -> int:
    """Pictures or texts in a corpus, as its last shard says; at most `most`.

    Raises:
        CorpusError: there is no shard, or the last cannot be read.
    """
    from projector.training.corpus import rows_of

    shards = list(folder.glob("*.safetensors"))
    if not shards:
        raise CorpusError(f"{folder} holds no shard: make them with `projector corpus` first")
    last = max(shards)
    try:
        size = int(last.stem) + rows_of(last)
        return size if most is None else min(size, most)
    except ValueError as error:
        raise CorpusError(f"{last} is no shard of a corpus: remove it") from error


def _map(path: Path, source: Model, target: Model) -> Map:
    from projector.maps import load

    return load(_map_bytes(path), source.layout, target.layout)


def _map_bytes(path: Path) -> bytes:
    file = path / MAP_FILE if path.is_dir() else path
    try:
        return file.read_bytes()
    except OSError as error:
        raise FitError(f"no map at {file}: {error.strerror}") from error


def _seen(path: Path, data: Dataset, count: int) -> int | None:
    """How many of the first inputs a map was trained on or chosen by; None where nothing says."""
    folder = path if path.is_dir() else path.parent
    try:
        of, *known = (folder / SEEN).read_text().split()
    except (OSError, ValueError):
        return None
    if of != hashlib.sha256(_map_bytes(path)).hexdigest():
        return None
    seen = set(known)
    return sum(content in seen for content in data.contents[:count])


def _identity(path: Path, made: Map) -> dict[str, Any]:
    """What ties a report to the one map that it judges."""
    return {
        "family": made.family.name,
        "config": asdict(made.family),
        "sha256": hashlib.sha256(_map_bytes(path)).hexdigest(),
        "source": made.source.fingerprint,
        "target": made.target.fingerprint,
    }


def _same_map(judged: dict[str, Any], now: dict[str, Any], made: Map) -> bool:
    """Whether a report's map is this one; reports name fingerprints of earlier versions too."""
    fits = all(
        judged.get(side) in layout.fingerprints
        for side, layout in (("source", made.source), ("target", made.target))
    )
    return fits and judged | {side: now[side] for side in ("source", "target")} == now


def _command(
    commands: Any, name: str, text: str, function: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {_EXAMPLES[name]}\n\nexit codes: 0 where all is well, otherwise:\n"
        f"{console.exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_models(parser)
    parser.add_argument(
        "--text-tokens",
        type=text_tokens,
        default=128,
        help="of texts: the longest that is taken, at most 1024; part of both layouts; default: "
        "%(default)s",
    )
    parser.set_defaults(command=function)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default=argparse.SUPPRESS,
        help="where both models run, and a map that is trained, such as cuda (under torchrun each "
        "process takes the GPU of its number); default: cpu",
    )


def _add_reverse_rank(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reverse-rank",
        type=count,
        default=0,
        help="numbers per token of the way back of a map that goes both ways; 0 for all it has",
    )


if __name__ == "__main__":
    sys.exit("run `projector` instead")
