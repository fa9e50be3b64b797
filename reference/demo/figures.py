"""Figures from an agent's records: answers, latencies, bytes, distortion. No file, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from projector.validation.estimate import by_group, clustered, spread
from reference.demo.testset import TestSet

Records = Sequence[Mapping[str, Any]]


def agent_texts(records: Records, test: TestSet) -> tuple[list[str], list[str]]:
    """The agent's answer to every question (empty where it gave none), and what is wrong."""
    problems = [
        f"{r['capture']}: {r['question']!r}: {r['error']}" for r in records if r.get("error")
    ][:5]
    found = {
        (r["capture"], r["question"]): r["answer"] for r in records if r.get("answer") is not None
    }
    answers = [found.get((test.names[q.picture], q.text)) for q in test.asked]
    if missing := answers.count(None):
        problems.append(f"{missing} of {len(answers)} questions have no answer from the agent")
    if fallbacks := sum(1 for r in records if r.get("fallback")):
        problems.append(f"{fallbacks} answers are not from the projected frame")
    return [answer or "" for answer in answers], problems


def accuracies(test: TestSet, answers: Mapping[str, list[str]]) -> dict[str, Any]:
    """Right answers by arm, with intervals that resample pictures, and by kind of question.

    Args:
        test: pictures and questions.
        answers: by arm, one per question.
    """
    right = {arm: test.right(given) for arm, given in answers.items()}
    found = {arm: clustered([float(r) for r in each], test.clusters) for arm, each in right.items()}
    kinds = [q.kind for q in test.asked]
    return {
        "pictures": len(test.pictures),
        "questions": len(test.asked),
        "accuracy": {arm: round(one.mean, 5) for arm, one in found.items()},
        "accuracy_interval": {
            arm: [round(one.low, 5), round(one.high, 5)] for arm, one in found.items()
        },
        "accuracy_by_kind": {arm: by_group(each, kinds) for arm, each in right.items()},
        "questions_by_kind": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def sequential(records: Records, test: TestSet) -> Records:
    """The records sent one at a time, without the first picture's (every cache is cold there)."""
    alone = [r for r in records if r["_in_flight"] == 1 and r.get("answer") is not None]
    later = [r for r in alone if r["capture"] != test.names[0]]
    return later or alone


def latencies(records: Records) -> dict[str, dict[str, float]]:
    """Latency per stage, ms; `uplink` is the round trip minus the server's own total."""
    edge = [r["edge_ms"] for r in records]
    server = [r["server_ms"] for r in records]
    made = [e["prefill"] + e["select"] + e["encode"] for e in edge]
    # A picture is prefilled, selected and encoded once, however many questions it gets.
    once = list({r["capture"]: r["edge_ms"] for r in records}.values())
    stages = {
        "edge_prefill": [e["prefill"] for e in once],
        "select": [e["select"] for e in once],
        "encode": [e["encode"] for e in once],
        "uplink": [max(0.0, e["uplink"] - s["total"]) for e, s in zip(edge, server, strict=True)],
        **{
            name: [s[name] for s in server]
            for name in ("queue", "decode", "project", "inject", "prefill", "generate", "ttft")
        },
        "total": [a + e["uplink"] for a, e in zip(made, edge, strict=True)],
    }
    return {name: spread(values) for name, values in stages.items()}


def distortions(records: Records) -> dict[str, float]:
    """Distortion of each step, means over the agent's frames."""
    figures = [r["distortion"] for r in records if r.get("distortion")]

    def mean(name: str) -> float:
        values = [f[name] for f in figures if f.get(name) is not None]
        return round(float(np.mean(values)), 5) if values else float("nan")

    return {
        "quantize": mean("quantize"),
        "select": mean("dropped_attention"),
        "latent": mean("latent_residual"),
        "unfamiliarity": mean("unfamiliarity"),
    }


def first_questions(
    test: TestSet, answers: Mapping[str, list[str]], most: int
) -> list[dict[str, Any]]:
    """The first question of each of the first pictures, and so on until there are `most`."""
    seen: dict[int, int] = {}
    turns = []
    for i, question in enumerate(test.asked):
        seen[question.picture] = seen.get(question.picture, 0) + 1
        turns.append((seen[question.picture], question.picture, i))
    return [
        {
            "picture": test.asked[i].picture,
            "name": test.names[test.asked[i].picture],
            "question": test.asked[i].text,
            "truth": test.asked[i].truth,
            **{arm: given[i] for arm, given in answers.items()},
        }
        for _, _, i in sorted(turns)[:most]
    ]
