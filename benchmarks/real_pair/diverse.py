"""Short texts of many different words, to learn a map between two language models from.

Knows words, sentences and the prose that comes with Python. Knows no model. Three kinds in turn:
facts about random words, lists of random words, and pieces of the standard library's docstrings.
None holds a word that the benchmark holds out.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random

from benchmarks.real_pair.facts import NAMES, RELATIONS, held_out

_WORD = re.compile(r"[A-Za-z]+")
_LONGEST_PIECE = 160  # characters, some 35 tokens
_MOST_FACTS = 5


def clean(text: str) -> bool:
    """Whether a text holds no word that is held out."""
    return not {word.lower() for word in _WORD.findall(text)} & held_out()


@cache
def prose() -> tuple[str, ...]:
    """Pieces of the standard library's docstrings, in a fixed order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found |= dict.fromkeys(_pieces(ast.get_docstring(node) or ""))
    return tuple(piece for piece in found if clean(piece))


def _pieces(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        piece = ""
        for sentence in re.split(r"(?<=[.?!])\s+", " ".join(paragraph.split())):
            if piece and len(piece) + len(sentence) > _LONGEST_PIECE:
                yield piece
                piece = ""
            piece = f"{piece} {sentence}".strip()
            if len(piece) > _LONGEST_PIECE:
                piece = ""
        if len(piece) > _LONGEST_PIECE // 4:
            yield piece


@cache
def vocabulary() -> tuple[str, ...]:
    """Words of the prose and of training, in alphabetical order."""
    found = {word.lower() for piece in prose() for word in _WORD.findall(piece) if len(word) > 2}
    for relation in RELATIONS.values():
        found |= set(relation.values["train"])
    return tuple(sorted(found - held_out()))


def make(count: int, seed: int) -> list[str]:
    """So many texts, the same for the same seed and Python's version."""
    rng = Random(f"diverse {seed}")
    kinds = (_facts, _list, _prose)
    return [kinds[i % len(kinds)](rng, vocabulary()) for i in range(count)]


def _facts(rng: Random, words: Sequence[str]) -> str:
    said = []
    for relation in rng.sample(sorted(RELATIONS), rng.randint(2, _MOST_FACTS)):
        name = rng.choice([rng.choice(words).capitalize(), rng.choice(NAMES["train"])])
        said.append(RELATIONS[relation].fact.format(name=name, value=rng.choice(words)))
    return " ".join(said)


def _list(rng: Random, words: Sequence[str]) -> str:
    chosen = rng.sample(words, rng.randint(8, 16))
    return ", ".join(w.capitalize() if rng.random() < 0.2 else w for w in chosen) + "."


def _prose(rng: Random, _words: Sequence[str]) -> str:
    return rng.choice(prose())
