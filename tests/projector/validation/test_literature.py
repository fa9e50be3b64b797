"""Published statements: whether they hold here."""

from __future__ import annotations

import pytest

from projector.validation import literature
from projector.validation.answers import Validator
from projector.validation.validate import validate


@pytest.mark.slow
def test_what_does_not_hold_is_said(judge: Validator) -> None:
    report = validate(judge)
    report["attention_amplification"] = {
        "hazard": {"d_task": 0.02, "c_attn": 0.1, "within_0.1": True},
        "scene": {"d_task": 0.25, "c_attn": 1.2, "within_0.1": False},
        "counting": {"d_task": 0.01, "c_attn": 0.1, "within_0.1": None},
    }
    report["bound"] = {"coverage": 0.98, "bound_over_actual": 4.0, "estimate_over_actual": 1.1}
    found = literature.beside(report)
    tasks = {row["kind"]: row["measured"] for row in found["tasks"]}
    assert tasks["hazard"]["within"] and not tasks["scene"]["within"]
    assert set(tasks) == {"hazard", "scene", None} and tasks[None] is None, "nobody tracks here"
    said = {row["claim"]: row for row in found["statements"]}
    limit = said["every task's distortion is about 0.1 or less"]
    assert limit["holds"] is False and "scene 0.250; 1 cannot be judged" in limit["measured"]
    bound = next(row for claim, row in said.items() if claim.startswith("99 % of frames"))
    assert bound["holds"] is False and bound["measured"] == "98.00%"
