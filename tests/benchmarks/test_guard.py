"""The guard's bench: what it says of each operating point, from rows whose figures are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.guard import GuardRows, by_point, outcome
from projector.codec.risk import RiskModel


def rows(points: list[int], disagree: list[bool], losses: list[float]) -> GuardRows:
    count = len(points)
    found = np.zeros((count, 3), np.float32)
    found[:, 0] = losses
    differs, every = np.array(disagree), np.ones(count, np.bool_)
    numbers = np.arange(count)
    return GuardRows(
        found=found,
        received=found,
        picture=numbers,
        question=0 * numbers,
        point=np.array(points),
        unusual=~every,
        disagree=differs,
        right_frame=~differs,
        right_picture=every,
        frame_bytes=np.full(count, 30),
        right_sent=every,
        right_edge=~every,
        sent_bytes=np.full(count, 900),
    )


def test_a_risk_stands_beside_what_came_of_it_at_each_point_in_the_order_of_the_ladder() -> None:
    weights = np.array([4.0, 0.0, 0.0], np.float32)
    risk = RiskModel(np.zeros(3, np.float32), weights, bias=-2.0, limit=0.5)
    names = {4: "coarse", 2: "fine"}
    bundle: Any = SimpleNamespace(
        info=SimpleNamespace(ladder=[4, 2, 9]),
        encoder=SimpleNamespace(point=lambda index: SimpleNamespace(name=names[index])),
    )
    made = rows([2, 4, 2, 4], [False, True, False, False], [0.0, 1.0, 0.0, 1.0])
    found = by_point(risk, bundle, made)
    assert list(found) == ["coarse", "fine"], "a point that nothing was sent at is left out"
    assert found["coarse"] == {"questions": 2, "disagree_share": 0.5, "risk_mean": 0.8808}
    assert found["fine"] == {"questions": 2, "disagree_share": 0.0, "risk_mean": 0.1192}


def test_what_is_over_the_limit_is_paid_for_and_answered_as_a_picture() -> None:
    made = rows([2, 2, 2, 2], [True, True, False, False], [0.0] * 4)
    over = np.array([True, False, False, False])
    assert outcome(made, over) == {
        "pictures_sent_share": 0.25,
        "accuracy": 0.75,
        "payload_bytes": (900 + 3 * 30) / 4,
        "accuracy_edge_only": 0.5,
    }
