"""The parts of `make bench-memory`: each measures some rows of the report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.edge.figures import at_least, at_most
from benchmarks.memory import phrases
from benchmarks.memory.phrases import RELATIONS, ToldFact
from benchmarks.memory.reading import ValueReader
from benchmarks.memory.setting import PROMPT, Choice, RealPair
from projector.memory import Fact, make
from projector.memory.base import STATE_BYTES, Memory

SEEDS = (0, 1, 2)
COUNTS = (10, 100, 400, 1000)
ROOM = 1 << 20
"""For more facts than 128 KiB hold: how well they are told apart, whatever they take."""


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return 100 * float(np.mean([row[name] for row in rows]))


def told(pair: RealPair, choice: Choice, quick: bool) -> dict[str, Any]:
    """Facts told once, asked as told, in five other phrasings and in free wording."""
    rows: list[dict[str, Any]] = []
    for seed in SEEDS[:1] if quick else SEEDS:
        basis = pair.basis(seed, choice)
        for count in COUNTS[1:2] if quick else COUNTS:
            facts = phrases.told(count, "test", seed)
            memory = pair.told(basis, facts, limit=STATE_BYTES if count <= 400 else ROOM)
            values = [one.value for one in facts]
            asked = {"as told": [one.question for one in facts]}
            asked |= {f"phrasing {i}": [one.held_out()[i] for one in facts] for i in range(5)}
            asked["free"] = [one.free for one in facts]
            for gate in (False, True):
                for name, questions in asked.items():
                    right = pair.exact(memory, questions, values, gate)
                    rows.append(
                        {"seed": seed, "facts": count, "gate": gate, "asked": name}
                        | {"bytes": memory.bytes, "exact": float(np.mean(right))}
                    )
                    print(f"memory: {rows[-1]}", flush=True)

    def at(asked: str, gate: bool) -> float:
        return _mean(
            [r for r in rows if r["facts"] in (400, 100 if quick else 400)
             and r["asked"].startswith(asked) and r["gate"] is gate], "exact",
        )  # fmt: skip

    return {
        "rows": rows,
        "figures": [
            at_least("400 facts, as told, exact", at("as told", False), 95, "%"),
            at_least("400 facts, held-out paraphrases, gate off", at("phr", False), 92, "%"),
            at_least("400 facts, held-out paraphrases, gate on", at("phr", True), 85, "%"),
            at_least("400 facts, free wording, gate on", at("free", True), 60, "%"),
        ],
    }


def many_tokens(pair: RealPair, choice: Choice, quick: bool) -> dict[str, Any]:
    """Values of two tokens or more, read token by token; the whole answer must be the value."""
    rows: list[dict[str, Any]] = []
    for seed in SEEDS[:1] if quick else SEEDS:
        basis = pair.basis(seed, choice)
        facts = phrases.told(20 if quick else 100, "test", seed, phrases.MANY_TOKENS)
        memory = pair.told(basis, facts)
        reader = ValueReader(pair.large, basis.reading.gain)
        questions = [one.question for one in facts]
        recalled = [one.recalled for one in pair.readings(memory, questions, False)]
        made = reader.answers([PROMPT.format(text) for text in questions], recalled, 12)
        right = [a == one.value for a, one in zip(made, facts, strict=True)]
        rows.append({"seed": seed, "exact": float(np.mean(right))})
    return {
        "rows": rows,
        "figures": [at_least("values of several tokens, whole", _mean(rows, "exact"), 90, "%")],
    }


def newest(pair: RealPair, choice: Choice, quick: bool) -> dict[str, Any]:
    """A second value for every fact: the newest counts, and no fact is held twice."""
    rows: list[dict[str, Any]] = []
    for seed in SEEDS[:1] if quick else SEEDS:
        basis = pair.basis(seed, choice)
        facts = phrases.told(50 if quick else 200, "test", seed)
        memory = pair.told(basis, facts)
        again = [ToldFact(one.name, one.relation, _other(one, at)) for at, one in enumerate(facts)]
        for fact in pair.facts(basis, again, when=1 << 20):
            memory.write(fact)
        right = pair.exact(
            memory, [one.question for one in again], [one.value for one in again], False
        )
        rows.append({"seed": seed, "exact": float(np.mean(right))})
    return {
        "rows": rows,
        "figures": [at_least("newest fact wins", _mean(rows, "exact"), 98, "%")],
    }


def _other(one: ToldFact, at: int) -> str:
    words = [word for word in RELATIONS[one.relation].values if word != one.value]
    return words[at % len(words)]


def gate(pair: RealPair, choice: Choice, quick: bool) -> dict[str, Any]:
    """How well the gate tells questions about facts from others (AUROC), at 400 facts."""
    rows: list[dict[str, Any]] = []
    for seed in SEEDS[:1] if quick else SEEDS:
        basis = pair.basis(seed, choice)
        facts = phrases.told(400, "test", seed)
        memory = pair.told(basis, facts)
        known = {(one.name, one.relation) for one in facts}
        untold = [
            RELATIONS[relation].question.format(n=name)
            for name in phrases.names("test")
            for relation in RELATIONS
            if (name, relation) not in known
        ][:400]
        strangers = phrases.invented(400, 1000 + seed)
        others = {
            "prose": list(phrases.PROSE),
            "unknown names": [
                RELATIONS[one.relation].question.format(n=name)
                for one, name in zip(facts, strangers, strict=True)
            ],
            "untold relation": untold,
            **{
                f"near miss: {kind}": [phrases.near_misses(one)[kind] for one in facts]
                for kind in phrases.near_misses(facts[0])
            },
        }
        opens = np.array(
            [_gate(pair, memory, [one.held_out()[i] for one in facts]) for i in range(5)]
        ).ravel()
        for kind, texts in others.items():
            stays = np.array(_gate(pair, memory, texts))
            rows.append(
                {"seed": seed, "kind": kind, "auroc": _auroc(opens, stays)}
                | {"opened": float(np.mean(stays >= basis.reading.threshold))}
            )
            print(f"memory: {rows[-1]}", flush=True)

    def least(kind: str) -> float:
        kinds = sorted({row["kind"] for row in rows if row["kind"].startswith(kind)})
        return min(
            float(np.mean([row["auroc"] for row in rows if row["kind"] == one])) for one in kinds
        )

    return {
        "rows": rows,
        "figures": [
            at_least("gate, AUROC against prose", least("prose"), 0.99, ""),
            at_least("gate, AUROC against unknown names", least("unknown"), 0.97, ""),
            at_least("gate, AUROC against near misses, worst kind", least("near"), 0.90, ""),
        ],
    }


def _gate(pair: RealPair, memory: Memory, texts: Sequence[str]) -> list[float]:
    return [memory.gate(key) for key in pair.keys(memory.basis, texts)]


def _auroc(opens: np.ndarray, stays: np.ndarray) -> float:
    order = np.concatenate([opens, stays]).argsort(kind="stable").argsort(kind="stable") + 1
    ranks = order[: len(opens)].sum()
    return float((ranks - len(opens) * (len(opens) + 1) / 2) / (len(opens) * len(stays)))


def locality(pair: RealPair, choice: Choice, quick: bool) -> dict[str, Any]:
    """What 400 facts change in texts that have nothing to do with them, gate on."""
    rows: list[dict[str, Any]] = []
    for seed in SEEDS[:1] if quick else SEEDS:
        basis = pair.basis(seed, choice)
        memory = pair.told(basis, phrases.told(400, "test", seed))
        texts = list(phrases.PROSE)
        readings = pair.readings(memory, texts, True)
        reader = ValueReader(pair.large, basis.reading.gain)
        states = pair.states(texts)
        frozen = reader.logits(states, [()] * len(texts), 0)
        read = reader.logits(states, [one.recalled for one in readings], 0)
        shut = [at for at, one in enumerate(readings) if not one.open]
        rows.append(
            {
                "seed": seed,
                "opened": len(texts) - len(shut),
                "exact": bool((frozen[shut] == read[shut]).all()),
                "kl_nats": float(sum(_kl(a, b) for a, b in zip(frozen, read, strict=True))),
            }
        )
    return {
        "rows": rows,
        "figures": [
            at_least("gate shut, logits are the frozen model's bit for bit",
                     float(all(row["exact"] for row in rows)), 1, ""),
            at_most("KL over prose, in all", max(row["kl_nats"] for row in rows), 0.01, "nat"),
        ],
    }  # fmt: skip


def _kl(one: np.ndarray, other: np.ndarray) -> float:
    p, q = (row - row.max() - math.log(np.exp(row - row.max()).sum()) for row in (one, other))
    return float((np.exp(p) * (p - q)).sum())


def cost(pair: RealPair, choice: Choice, quick: bool) -> dict[str, Any]:
    """Time to write a fact, the small model's two passes included, and to read; one thread."""
    basis = pair.basis(0, choice)
    facts = phrases.told(400, "test", 0)
    memory = pair.told(basis, facts)
    fresh = phrases.told(10 if quick else 40, "validation", 7)
    make_features = pair.fresh_features(basis.layers)
    write_s = []
    for at, one in enumerate(fresh):
        began = time.perf_counter()
        keys = basis.key(make_features([one.statement, one.question]))
        memory.write(Fact(keys, one.value, 1 << 24, (1 << 40 | at).to_bytes(8, "big")))
        write_s.append(time.perf_counter() - began)
    keys = pair.keys(basis, [one.question for one in facts])
    memory.read(keys[0])
    began = time.perf_counter()
    for key in keys:
        memory.read(key)
    read_ms = 1000 * (time.perf_counter() - began) / len(keys)
    return {
        "figures": [
            at_most("write, small model included, median", 1000 * float(np.median(write_s)), 100,
                    "ms"),
            at_most("read", read_ms, 0.1, "ms"),
        ],
    }  # fmt: skip


def stream(pair: RealPair, choice: Choice, quick: bool) -> dict[str, Any]:
    """An endless stream of facts with random keys: constant bytes, constant time, what is left."""
    basis = pair.basis(0, choice)
    memory = make("slots", basis)
    rng = np.random.default_rng(0)
    events, ages = 5_000 if quick else 100_000, (1, 10, 100, 300, 1000)
    sizes, seconds, kept = [], [], {age: [0, 0] for age in ages}
    recent: list[Fact] = []
    for at in range(events):
        keys = rng.integers(-127, 128, (2, basis.rank)).astype(np.int8)
        fact = Fact(keys, f"value {at % 97}", at, at.to_bytes(8, "big"))
        began = time.perf_counter()
        memory.write(fact)
        seconds.append(time.perf_counter() - began)
        sizes.append(memory.bytes)
        recent = [*recent[-max(ages) :], fact]
        if at % 500 == 499:
            for age in ages:
                if age < len(recent):
                    asked = recent[-age]
                    told_ids = [one.id for one in memory.read(asked.keys[1]).recalled[:1]]
                    kept[age][0] += told_ids == [asked.id]
                    kept[age][1] += 1
    tenth = len(seconds) // 10
    return {
        "recalled_by_age": {str(a): right / max(1, of) for a, (right, of) in kept.items()},
        "write_ms_first_tenth": 1000 * float(np.median(seconds[tenth : 2 * tenth])),
        "write_ms_last_tenth": 1000 * float(np.median(seconds[-tenth:])),
        "figures": [
            at_most(f"state over {events:,} events, largest", max(sizes) / 1024, 128, "KiB"),
        ],
    }


def sites(pair: RealPair, choice: Choice, quick: bool) -> dict[str, Any]:
    """Ten sites told one after another: what of each is lost until the last was told."""
    rows: list[dict[str, Any]] = []
    count, each = 10, 10 if quick else 40
    for seed in SEEDS[:1] if quick else SEEDS:
        basis = pair.basis(seed, choice)
        facts = phrases.told(count * each, "test", seed)
        parts = [facts[at : at + each] for at in range(0, len(facts), each)]
        memory = make("slots", basis)
        after = []
        for number, part in enumerate(parts):
            for fact in pair.facts(basis, part, when=number * each):
                memory.write(fact)
            after.append(_right(pair, memory, part))
        last = [_right(pair, memory, part) for part in parts]
        transfer = float(np.mean([b - a for a, b in zip(after[:-1], last[:-1], strict=True)]))
        rows.append({"seed": seed, "after": after, "last": last, "transfer": transfer})
    figure = at_least(
        "ten sites in sequence, backward transfer", _mean(rows, "transfer"), -2, "points"
    )
    return {"rows": rows, "figures": [figure]}


def _right(pair: RealPair, memory: Memory, facts: Sequence[ToldFact]) -> float:
    questions = [one.held_out()[0] for one in facts]
    return float(np.mean(pair.exact(memory, questions, [one.value for one in facts], False)))
