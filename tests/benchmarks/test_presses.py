"""Presses choose tokens: equal budgets, and a word about what is missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.rate import presses
from protos.errors import BridgeError


def test_the_highest_scores_are_kept_and_of_equals_the_first() -> None:
    some = np.array([[0.1, 0.9, 0.5, 0.9], [1.0, 1.0, 1.0, 1.0]], dtype=np.float32)
    assert presses.highest(some, 2).tolist() == [
        [False, True, False, True],
        [True, True, False, False],
    ]
    rng = np.random.default_rng(0)
    assert (presses.highest(rng.random((9, 36), dtype=np.float32), 6).sum(axis=1) == 6).all()


def test_without_the_environment_the_reason_names_the_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(presses, "RIVALS_PYTHON", tmp_path / "python")
    with pytest.raises(BridgeError, match="make rivals"):
        presses.scores(cast(Any, SimpleNamespace()), [])
