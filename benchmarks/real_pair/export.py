"""Writes the real pair's texts and questions as folders that `projector` reads.

`python -m benchmarks.real_pair.export lessons/ --lessons 1500` writes training texts, and
`… held/ --facts unseen --count 100` writes contexts in words that no training text holds.
`projector` also reads your own files beside `texts.jsonl`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.real_pair import diverse, facts
from benchmarks.real_pair.diverse import Words
from benchmarks.real_pair.install import FOLDER, GEMMA3, SMOLLM2
from projector.training.dataset import write_questions, write_texts
from protos.errors import BridgeError, ModelError

Row = tuple[str, list[tuple[str, str]]]


def write(folder: Path, rows: Iterable[Row]) -> int:
    """Write texts with their questions into a folder; returns their number."""
    texts: dict[str, str] = {}
    asked: list[dict[str, object]] = []
    for index, (text, pairs) in enumerate(rows):
        name = f"{index:06d}"
        texts[name] = text
        asked += [{"text": name, "question": q, "answer": a} for q, a in pairs]
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(folder, texts)
    write_questions(folder, asked)
    return len(texts)


def lessons(count: int, words: Words) -> list[Row]:
    """The training texts: diverse facts, lists, prose."""
    return [(one.text, [*one.brief, *one.full]) for one in diverse.make(count, 0, words)]


def contexts(split: str, count: int, binding: bool = False) -> list[Row]:
    """The benchmark's contexts of facts."""
    made = facts.make(split, count, 1, binding)
    return [(one.text, [(q.text, q.candidates[0]) for q in one.questions]) for one in made]


def vocabularies(folder: Path) -> Words:
    """The words that both installed tokenizers read as one token.

    Raises:
        ModelError: they are not installed.
    """
    from transformers import AutoTokenizer

    found = []
    for name in (SMOLLM2.name, GEMMA3.name):
        if not (folder / name / "tokenizer.json").is_file():
            raise ModelError(f"{folder / name} is not there: run `make real-pair` first")
        found.append(AutoTokenizer.from_pretrained(folder / name).get_vocab())
    return Words.of(*found)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_pair.export")
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--lessons", type=int, metavar="N", help="write N training texts")
    kind.add_argument("--facts", choices=facts.SPLITS, help="contexts of a split")
    parser.add_argument("--count", type=int, default=100, help="contexts; default: %(default)s")
    parser.add_argument("--binding", action="store_true", help="several people share a relation")
    parser.add_argument("--pair", type=Path, default=FOLDER, help="where `make real-pair` wrote")
    args = parser.parse_args(arguments)
    if min(args.count, 1 if args.lessons is None else args.lessons) < 1:
        parser.error("nothing to write: give a number above 0")
    try:
        if args.lessons is not None:
            rows = lessons(args.lessons, vocabularies(args.pair))
        else:
            rows = contexts(args.facts, args.count, args.binding)
        print(f"{write(args.folder, rows)} texts in {args.folder}")
    except BridgeError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
