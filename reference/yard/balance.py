"""Fits `assets/question_weights.json`: `python -m reference.yard.balance`.

`questions.ask` draws from cells (sort of question, answer) by weight. This fits the weights on
pictures of the training split: it raises the weight of a cell that is asked too rarely and lowers
that of a cell asked too often (proportional fitting), until each sort has its share and its answers
are as even as possible.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np

from reference.yard.questions import WEIGHTS_FILE, list_questions
from reference.yard.scene import sample_scenes

SHARES = {
    "fire": 0.070, "smoke": 0.070, "burning": 0.070, "near_fire": 0.040,
    "count_vehicles": 0.035, "count_animals": 0.030, "count_people": 0.025,
    "count_kind": 0.060, "count_colour": 0.050,
    "colour": 0.110, "size": 0.060, "where": 0.080, "corner": 0.060, "what_is_colour": 0.060,
    "closest": 0.040, "left_of": 0.050, "above": 0.050, "exists": 0.040,
}  # fmt: skip
_SCENES = 6000
_COUNT = 6
_ROUNDS = 60
_BOUNDS = (1e-3, 100.0)  # a cell that is too rare takes what it can get


def fit() -> dict[str, dict[str, float]]:
    """Weights by sort of question and answer."""
    scenes = sample_scenes("train", 0, _SCENES)
    pictures = [{(q.subkind, q.answer) for q in list_questions(scenes, i)} for i in range(_SCENES)]
    cells = sorted(set().union(*pictures))
    column = {cell: i for i, cell in enumerate(cells)}
    available = np.zeros((_SCENES, len(cells)), dtype=np.bool_)
    for row, picture in enumerate(pictures):
        available[row, [column[cell] for cell in picture]] = True
    answers = Counter(subkind for subkind, _ in cells)
    target = np.array([SHARES[s] / answers[s] for s, _ in cells])
    weights = target.copy() / available.mean(axis=0)
    rng = np.random.default_rng(0)
    for number in range(_ROUNDS):
        keys = np.log(rng.random(available.shape)) / weights
        keys[~available] = -np.inf
        asked = np.argpartition(-keys, _COUNT, axis=1)[:, :_COUNT]
        share = np.bincount(asked.ravel(), minlength=len(cells)) / asked.size
        step = 0.7 if number < _ROUNDS // 2 else 0.3
        weights *= (target / np.maximum(share, 1e-5)) ** step
        weights = np.clip(weights / np.median(weights), *_BOUNDS)
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for (subkind, answer), weight in zip(cells, weights, strict=True):
        table[subkind][answer] = float(f"{weight:.4g}")
    return dict(table)


def main() -> None:
    """Writes the weights."""
    WEIGHTS_FILE.write_text(json.dumps(fit(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
