"""Chooses layers, rank, gate and gain on validation prompts: other names, a phrasing left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from random import Random
from typing import Any

import numpy as np

from benchmarks.memory import phrases
from benchmarks.memory.phrases import RELATIONS, RELATIVES
from benchmarks.memory.setting import Choice, RealPair
from projector.memory.basis import ReadSettings

LAYERS = (
    (4, 8, 16),
    (5, 9, 17),
    (3, 6, 9, 12),
    (2, 5, 8, 11, 14, 17),
    (4, 8, 12, 16, 20, 24),
    tuple(range(0, 30, 3)),
)
RANKS = (64, 96, 128)
GAINS = (0.05, 0.1, 0.2, 0.4, 0.8)
FACTS = 400
_SHUT = 0.05
"""Share of near misses that may open the gate."""


def choose(pair: RealPair, quick: bool) -> dict[str, Any]:
    """Try every choice; returns the best one and the rows that it was chosen from."""
    facts = phrases.told(FACTS, "validation", 99)
    asked = [RELATIONS[one.relation].seen[-1].format(n=one.name) for one in facts]
    rng = Random(5)
    near = [
        RELATIONS[one.relation].question.format(n=f"the {rng.choice(RELATIVES)} of {one.name}")
        for one in facts
    ]
    strangers = phrases.invented(FACTS, 777)
    near += [
        RELATIONS[one.relation].question.format(n=name)
        for one, name in zip(facts, strangers, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    for layers in LAYERS[:1] if quick else LAYERS:
        for rank in RANKS[-1:] if quick else RANKS:
            choice = Choice(layers, rank, ReadSettings())
            basis = pair.basis(99, choice, choosing=True)
            told = [f.statement for f in facts] + [f.question for f in facts]
            store, near_keys, keys = (
                basis.unit(pair.keys(basis, texts)) for texts in (told, near, asked)
            )
            similar = basis.similarity(keys, store)
            right = similar.argmax(axis=1) % FACTS == np.arange(FACTS)
            opens = similar.max(axis=1)
            shut = basis.similarity(near_keys, store).max(axis=1)
            threshold = float(np.quantile(shut, 1 - _SHUT))
            rows.append(
                {
                    "layers": layers,
                    "rank": rank,
                    "found": float(right.mean()),
                    "found_gated": float((right & (opens >= threshold)).mean()),
                    "threshold": round(min(0.99, max(0.05, threshold)), 3),
                }
            )
            print(f"memory: {rows[-1]}", flush=True)
    best = max(rows, key=lambda row: row["found"] + row["found_gated"])
    choice = Choice(tuple(best["layers"]), best["rank"], ReadSettings(threshold=best["threshold"]))
    choice, gains = _gain(pair, choice, asked[:100], facts[:100])
    return {"choice": asdict(choice), "rows": rows, "gains": gains}


def _gain(
    pair: RealPair, choice: Choice, asked: Sequence[str], facts: Sequence[phrases.ToldFact]
) -> tuple[Choice, list[dict[str, float]]]:
    """The smallest gain within half a point of the best, and what each gives."""
    rows = []
    for gain in GAINS:
        one = replace(choice, reading=replace(choice.reading, gain=gain))
        memory = pair.told(pair.basis(99, one, choosing=True), facts)
        right = pair.exact(memory, asked, [fact.value for fact in facts], False)
        rows.append({"gain": gain, "exact": float(np.mean(right))})
        print(f"memory: {rows[-1]}", flush=True)
    most = max(row["exact"] for row in rows)
    gain = next(row["gain"] for row in rows if row["exact"] >= most - 0.005)
    return replace(choice, reading=replace(choice.reading, gain=gain)), rows


def read_choice(kept: dict[str, Any]) -> Choice:
    """A choice from its JSON."""
    return Choice(tuple(kept["layers"]), kept["rank"], ReadSettings(**kept["reading"]))
