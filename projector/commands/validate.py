"""`projector validate`: judge a map on pairs that it never saw, and write the report."""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from projector.commands.arguments import (
    add_feedback_rank,
    add_pair_command,
    add_text_tokens,
    power,
    whole,
)
from projector.commands.inputs import corpus_size, open_corpus, open_data
from projector.commands.models import open_models
from projector.report import tables
from projector.training import preflight
from projector.training.map_folder import identity_of, map_bytes, read_map, seen_of


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    validate = add_pair_command(
        commands,
        "validate",
        "judge a map on pairs that it never saw",
        _run,
        "projector validate map/ held-out/ held-out-corpus/ report/ "
        "--source models/edge-a --target models/cloud",
    )
    validate.add_argument("map", type=Path, metavar="MAP", help="what `train` wrote")
    validate.add_argument("data", type=Path, metavar="DATA", help="held-out pictures and questions")
    validate.add_argument("corpus", type=Path, metavar="CORPUS", help="what `corpus` made of them")
    validate.add_argument("out", type=Path, metavar="OUT", help="folder of the report")
    validate.add_argument(
        "--questions", type=whole, default=6, help="questions per picture; default: %(default)s"
    )
    validate.add_argument(
        "--watts",
        type=power,
        default=15.0,
        help="watts of one busy core, for the energy figures: stated, not measured; default: "
        "%(default)s",
    )
    add_feedback_rank(validate)
    add_text_tokens(validate)
    validate.add_argument("--json", action="store_true", help="print the report instead of tables")


def _run(args: argparse.Namespace) -> int:
    from projector.codec.answers import same_answer
    from projector.maps.bidirectional import BidirectionalMap
    from projector.report import validate_page, validate_tables
    from projector.training import feedback
    from projector.training.dataset import Texts
    from projector.training.fit import edge_answers, untrained_edge_states
    from projector.training.settings import TrainSettings
    from projector.training.train import Trainer
    from projector.validation.answers import Validator
    from projector.validation.cost import costs
    from projector.validation.validate import arm_count, validate
    from protos.process.files import write_files

    data = open_data(args.data, args.max_picture_pixels)
    map_bytes(args.map)
    preflight.models(args)
    preflight.writable(args.out)
    data.require_questions(args.questions, range(corpus_size(args.corpus, len(data))))
    source, target = open_models(args, data)
    made = read_map(args.map, source, target).eval()
    corpus = open_corpus(data, source, target, args.corpus)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(made, corpus, target, data.questions, TrainSettings(), args.out / "state")
    judge = Validator(trainer, corpus, data, args.questions)
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
    arms = arm_count(judge, floor)
    with tables.doing(f"{count} questions, {arms} arms", arms * len(corpus)) as judge.told:
        report = validate(judge, floor, right, spent)
    report["map"] = identity_of(args.map, made)
    report["judged_at"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    report["seen_in_training"] = seen_of(args.map, data, len(corpus))
    if isinstance(made, BidirectionalMap) and not corpus.ragged:
        args.device = "cpu"  # the way back needs no GPU
        reader, _ = open_models(args, data)
        with tables.doing("the edge model's answers from what comes back"):
            report["way_back"] = feedback.judge(
                judge.map,
                corpus,
                reader,
                data,
                args.questions,
                args.out / "state",
                args.feedback_rank,
            )
    page = validate_page.html(report, data)
    text = json.dumps(report, indent=1) + "\n"
    write_files(args.out, {"report.json": text.encode(), "report.html": page.encode()})
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        validate_tables.show(report)
        print(f"wrote {args.out / 'report.json'} and {args.out / 'report.html'}")
    return 0
