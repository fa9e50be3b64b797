"""`projector label`: the large model answers questions about unlabelled pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from projector.commands.arguments import rate, whole
from projector.commands.hub.pair import add_hub_command, open_vlms, target_of
from projector.commands.inputs import open_data
from projector.training import preflight
from protos.errors import ConfigError
from protos.process.progress import Progress


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = add_hub_command(
        commands,
        "label",
        "let the large model answer questions about unlabelled pictures, to judge maps by",
        _run,
        "projector label photos/ --target models/cloud --ask questions.txt",
        edge=False,
    )
    parser.add_argument("data", type=Path, metavar="PHOTOS", help="pictures")
    parser.add_argument(
        "--ask",
        type=Path,
        required=True,
        metavar="FILE",
        help="questions, one a line; {a|b} stands for each of its parts, as in "
        "'is there a {dog|cat} ?'",
    )
    parser.add_argument(
        "--questions", type=whole, default=6, help="per picture, drawn; default: %(default)s"
    )
    parser.add_argument(
        "--least",
        type=rate,
        default=0.0,
        help="leave out answers of less confidence, 0 to 1; default: %(default)s",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace PHOTOS/questions.jsonl if it is there"
    )


def _run(args: argparse.Namespace) -> int:
    from projector.training.dataset import QUESTIONS, Texts, write_questions
    from projector.training.labelling import label, read_questions

    data = open_data(args.data, args.max_picture_pixels)
    if isinstance(data, Texts):
        raise ConfigError(f"{args.data} holds texts: only pictures are labelled")
    path = args.data / QUESTIONS
    if path.exists() and not args.force:
        raise ConfigError(f"{path} is there already: --force replaces it")
    questions, target_path = read_questions(args.ask), target_of(args)
    preflight.writable(args.data)
    (target,) = open_vlms(args, target_path)
    with Progress("asking", len(data), "picture") as bar:
        made = label(target, data, range(len(data)), questions, args.questions, bar.advance)
    kept = [one for one in made if one.confidence >= args.least]
    if not kept:
        raise ConfigError("no answer is as confident as --least asks: nothing was written")
    rows: list[dict[str, object]] = [
        {
            "picture": data.files[one.picture].name,
            "question": one.question,
            "answer": one.answer,
            "kind": "labelled",
            "confidence": round(one.confidence, 4),
            "by": target.layout.model_id,
        }
        for one in kept
    ]
    write_questions(args.data, rows)
    print(
        f"wrote {len(kept)} answers about {len({one.picture for one in kept})} pictures to {path}"
        + (f"; {len(made) - len(kept)} were not confident enough" if len(made) > len(kept) else "")
    )
    return 0
