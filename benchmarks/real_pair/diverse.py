"""Short texts of many different words, for learning a map between two language models.

There are three kinds: facts about words of two vocabularies, lists of such words, and pieces of the
standard library's docstrings. None holds a word that the benchmark holds out. Each comes with
questions. About facts they are the benchmark's; about the others: which words come next?
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from zlib import crc32

from benchmarks.real_pair import facts
from benchmarks.real_pair.facts import NAMES, RELATIONS, Context, held_out

_WORD = re.compile(r"[A-Za-z]+")
_LONGEST_PIECE = 160  # characters, some 35 tokens
_TOKEN = re.compile("[\u0120\u2581]([A-Za-z]{3,})")
_MOST_FACTS = 6
_TARGET_SHARE = 0.2
_HELD = 16  # one word in so many is kept for validation
_SHARED = 0.2  # share of contexts of facts that state one relation of several people
_TRAINING_NAMES = 0.3
_FULL = 3  # one step in so many asks full questions
_LEAD, _REPEATED, _REPEATS = 3, 4, 8  # words before the first question, in it; questions of a text


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
    return tuple(p for p in found if clean(p) and p.count(" ") > _LEAD + 1)


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


Asked = tuple[str, str]
"""A question, and the words that come next."""


@dataclass(frozen=True)
class Lesson:
    """A text to learn from.

    Attributes:
        text: what both models read.
        brief: questions of a few tokens: the beginning of something that the text says.
        full: questions of the benchmark's kind, if the text answers any.
    """

    text: str
    brief: tuple[Asked, ...]
    full: tuple[Asked, ...] = ()

    def questions(self, count: int, seed: int) -> list[Asked]:
        """Exactly `count` of one kind, the same for the same seed; every third seed asks in full.

        Kinds are not mixed, since a batch pads all questions to its longest.
        """
        asked = self.full if self.full and seed % _FULL == 0 else self.brief
        rng = Random(f"{seed} {self.text}")
        most = min(count, len(asked))
        return rng.sample(asked, most) + rng.choices(asked, k=count - most)


def whole_words(vocabulary: Iterable[str]) -> frozenset[str]:
    """The words that a tokenizer reads as one token, without those held out."""
    found = (match[1] for token in vocabulary if (match := _TOKEN.fullmatch(token)))
    return frozenset(word for word in found if word.lower() not in held_out())


@dataclass(frozen=True)
class Words:
    """Words to draw from.

    Attributes:
        source: words that the source reads as one token, in alphabetical order.
        target: words that only the target reads as one token.
        held: words that both read as one token and that no training text holds: choices are made
            on contexts of these.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    held: tuple[str, ...]

    @classmethod
    def of(cls, source: Iterable[str], target: Iterable[str]) -> Words:
        """From the vocabularies of both tokenizers."""
        mine, theirs = whole_words(source), whole_words(target)
        common = {word.lower() for piece in prose() for word in _WORD.findall(piece)}
        common |= {form for word in facts.words("train") for form in facts.forms(word)}
        apart = {
            word.lower()
            for word in mine & theirs
            if crc32(word.lower().encode()) % _HELD == 0 and word.lower() not in common
        }
        first, second = (
            tuple(sorted(w for w in some if not facts.forms(w.lower()) & apart))
            for some in (mine, theirs - mine)
        )
        return cls(first, second, tuple(sorted(w for w in mine & theirs if w.lower() in apart)))

    def draw(self, rng: Random, count: int) -> list[str]:
        """Draw `count` training words, rarely one twice; four in five are the source's."""
        pools = [self.target if rng.random() < _TARGET_SHARE else self.source for _ in range(count)]
        return [rng.choice(pool or self.source) for pool in pools]


def validation(count: int, seed: int, words: Words) -> list[Context]:
    """Contexts like the benchmark's, in words that neither training nor its splits hold."""
    names = [word for word in words.held if word.istitle()]
    values = [word for word in words.held if word.islower()]
    return [_validation(Random(f"validation {seed} {i}"), names, values) for i in range(count)]


def _validation(rng: Random, names: Sequence[str], values: Sequence[str]) -> Context:
    size = rng.choice(facts.FACTS)
    kinds = rng.sample(sorted(RELATIONS), size)
    people, told = rng.sample(names, size), rng.sample(values, size)
    said, questions = [], []
    for kind, name, value in zip(kinds, people, told, strict=True):
        said.append(RELATIONS[kind].fact.format(name=name, value=value))
        wrong = rng.sample([v for v in values if v not in told], facts.CANDIDATES - 1)
        question = RELATIONS[kind].question.format(name=name)
        questions.append(facts.Question(question, (value, *wrong), kind))
    return Context(" ".join(said), tuple(rng.sample(questions, facts.ASKED)))


def make(count: int, seed: int, words: Words) -> list[Lesson]:
    """Make `count` lessons, the same for the same seed, words and version of Python.

    Five in ten are facts about drawn words, one is facts about training's own words, two are lists
    and two prose.
    """
    return [_KINDS[i % len(_KINDS)](Random(f"diverse {seed} {i}"), words) for i in range(count)]


def of_context(context: Context) -> Lesson:
    """The benchmark's own kind of context, to learn from."""
    full = tuple((q.text, q.candidates[0]) for q in context.questions)
    return Lesson(context.text, _brief(full), full)


def _brief(full: Iterable[Asked]) -> tuple[Asked, ...]:
    return tuple((question.rpartition("Answer: ")[2], answer) for question, answer in full)


def _facts(rng: Random, words: Words) -> Lesson:
    kinds = rng.sample(sorted(RELATIONS), rng.randint(3, _MOST_FACTS))
    if rng.random() < _SHARED:
        kinds = [rng.choice(kinds[:2]) for _ in kinds]  # several people share a relation
    drawn = words.draw(rng, 2 * len(kinds))
    names = [
        rng.choice(NAMES["train"]) if rng.random() < _TRAINING_NAMES else word.capitalize()
        for word in drawn[: len(kinds)]
    ]
    said, full = [], []
    for kind, name, value in zip(kinds, names, drawn[len(kinds) :], strict=True):
        said.append(RELATIONS[kind].fact.format(name=name, value=value))
        if names.count(name) == 1:
            full.append((RELATIONS[kind].question.format(name=name), value))
    text = " ".join(said)
    if not full:
        return Lesson(text, _repeats(rng, text))
    return Lesson(text, _brief(full), tuple(full))


def _own_facts(rng: Random, _words: Words) -> Lesson:
    return of_context(facts.make("train", 1, rng.getrandbits(32), rng.random() < _SHARED)[0])


def _list(rng: Random, words: Words) -> Lesson:
    text = ", ".join(words.draw(rng, rng.randint(8, 14))) + "."
    return Lesson(text, _repeats(rng, text))


def _prose(rng: Random, _words: Words) -> Lesson:
    text = rng.choice(prose())
    return Lesson(text, _repeats(rng, text))


def _repeats(rng: Random, text: str) -> tuple[tuple[str, str], ...]:
    """The text's beginning, and the words that come next, at some places."""
    said = text.split(" ")
    places = range(_LEAD, len(said) - 1)
    chosen = rng.sample(places, min(_REPEATS, len(places)))
    return tuple((" ".join(said[max(0, at - _REPEATED) : at]), said[at]) for at in chosen)


_KINDS = (_facts, _list, _facts, _prose, _facts, _own_facts, _list, _facts, _prose, _facts)
