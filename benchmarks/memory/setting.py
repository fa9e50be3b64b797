"""The pair of models, bases fitted for it, and memories that were told facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.memory import phrases
from benchmarks.memory.passes import Kept, features, last_states
from benchmarks.memory.phrases import RELATIONS, RELATIVES, ToldFact
from benchmarks.memory.reading import ValueReader
from benchmarks.real_pair.install import GEMMA3, SMOLLM2
from projector.codec.arrays import Floats
from projector.memory import Fact, Memory, MemoryBasis, Remembered, make
from projector.memory.base import STATE_BYTES
from projector.memory.basis import ReadSettings
from projector.memory.fit import key_parts
from projector.models.lm import LM
from protos.errors import ModelError

FIT_NAMES, NEAR_SHARE = 60, 0.5
PROMPT = "Question: {}\nAnswer:"
"""How the large model is asked; the small one reads the question alone."""


@dataclass(frozen=True)
class Choice:
    """What is chosen on validation prompts."""

    layers: tuple[int, ...]
    rank: int
    reading: ReadSettings


class RealPair:
    """Both models; what they make of a text is kept in a folder.

    Args:
        models: folder of the checkpoints, from `make real-pair`.
        work: folder of what is kept.
    """

    def __init__(self, models: Path, work: Path) -> None:
        for weights in (SMOLLM2, GEMMA3):
            if not (models / weights.name / "config.json").is_file():
                raise ModelError(f"{models} lacks {weights.name}: `make real-pair` installs both")
        self._models, self._work = models, work
        self._bases: dict[tuple[int, Choice, bool], MemoryBasis] = {}

    @cached_property
    def small(self) -> LM:
        """SmolLM2-135M."""
        return LM.load(self._models / SMOLLM2.name)

    @cached_property
    def large(self) -> LM:
        """Gemma 3 270M, frozen."""
        return LM.load(self._models / GEMMA3.name)

    @cached_property
    def _features(self) -> Kept:
        file = self._work / f"features-{SMOLLM2.name}.npz"
        return Kept(file, lambda texts: features(self.small)(texts), "small model")

    @cached_property
    def states(self) -> Kept:
        """The large model's last hidden states of prompts."""
        file = self._work / f"states-{GEMMA3.name}.npz"
        return Kept(file, lambda texts: last_states(self.large)(texts), "large model")

    def features(self, texts: Sequence[str], layers: Sequence[int]) -> Floats:
        """The small model's features of some layers, [n, F]."""
        rows = self._features(texts)
        count = self.small.layout.layers
        made: Floats = rows.reshape(len(rows), count, -1)[:, list(layers)].reshape(len(rows), -1)
        return made

    def fresh_features(self, layers: Sequence[int]) -> Callable[[Sequence[str]], Floats]:
        """As `features`, by a run of the small model for each call."""
        run, chosen = features(self.small), list(layers)

        def made(texts: Sequence[str]) -> Floats:
            rows = run(texts).reshape(len(texts), self.small.layout.layers, -1)
            picked: Floats = rows[:, chosen].reshape(len(texts), -1)
            return picked

        return made

    def basis(self, seed: int, choice: Choice, choosing: bool = False) -> MemoryBasis:
        """A basis of names drawn by a seed.

        Args:
            seed: of the draw.
            choice: layers, rank, and how it is read.
            choosing: leave the last of the phrasings out, so that it can be chosen by.
        """
        known = (seed, choice, choosing)
        if known not in self._bases:
            texts, about, asks = lesson(seed, choosing)
            rows = self.features(texts, choice.layers)
            self._bases[known] = MemoryBasis(
                self.small.layout.fingerprint,
                self.large.layout.fingerprint,
                choice.layers,
                *key_parts(rows, about, asks, choice.rank),
                choice.reading,
            )
        return self._bases[known]

    def keys(self, basis: MemoryBasis, texts: Sequence[str]) -> np.ndarray:
        """Keys of texts, int8 [n, r]."""
        return basis.key(self.features(texts, basis.layers))

    def told(
        self,
        basis: MemoryBasis,
        facts: Sequence[ToldFact],
        member: str = "slots",
        limit: int = STATE_BYTES,
    ) -> Memory:
        """A memory that was told facts one after the other, each with two linked keys."""
        memory = make(member, basis, limit)
        for fact in self.facts(basis, facts):
            memory.write(fact)
        return memory

    def facts(self, basis: MemoryBasis, facts: Sequence[ToldFact], when: int = 0) -> list[Fact]:
        """Facts as a device writes them."""
        statements = self.keys(basis, [one.statement for one in facts])
        questions = self.keys(basis, [one.question for one in facts])
        return [
            Fact(
                np.stack([statement, question]),
                one.value,
                when + at,
                (when + at).to_bytes(8, "big"),
            )
            for at, (one, statement, question) in enumerate(
                zip(facts, statements, questions, strict=True)
            )
        ]

    def readings(self, memory: Memory, questions: Sequence[str], gate: bool) -> list[Remembered]:
        """What the memory says to each question; without the gate it always says something."""
        given = memory.basis
        keys = self.keys(given, questions)
        if not gate:
            memory.basis = replace(given, reading=replace(given.reading, threshold=-1.0))
        try:
            return [memory.read(key) for key in keys]
        finally:
            memory.basis = given

    def exact(
        self, memory: Memory, questions: Sequence[str], values: Sequence[str], gate: bool
    ) -> list[bool]:
        """Whether the first word of each answer is the value, for values of one token."""
        readings = self.readings(memory, questions, gate)
        reader = ValueReader(self.large, memory.basis.reading.gain)
        states = self.states([PROMPT.format(text) for text in questions])
        made = reader.first_tokens(states, [one.recalled for one in readings])
        return [token == reader.ids(value)[0] for token, value in zip(made, values, strict=True)]


def lesson(seed: int, choosing: bool) -> tuple[list[str], list[str], list[str]]:
    """What a basis is fitted on: texts, whom each is about, and what it asks."""
    rng = Random(seed)
    texts: list[str] = []
    about: list[str] = []
    asks: list[str] = []
    for name in rng.sample(phrases.names("fit"), FIT_NAMES):
        for kind, relation in RELATIONS.items():
            seen = relation.seen[:-1] if choosing else relation.seen
            wordings = (relation.statement, relation.question, *seen)
            whom = [(name, wordings)]
            if rng.random() < NEAR_SHARE:
                near = f"the {rng.choice(RELATIVES)} of {name}"
                whom.append((near, (relation.statement, relation.question, seen[0])))
            for who, forms in whom:
                texts += [form.format(n=who) for form in forms]
                about += [who] * len(forms)
                asks += [kind] * len(forms)
    return texts, about, asks
