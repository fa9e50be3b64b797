"""Running means: the interval holds at all times at once, and shrinks."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from cloud_server.frontend.shadowing.intervals import Running

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]


@pytest.mark.parametrize(
    ("mean", "draw"),
    [
        (0.1, lambda rng, n: (rng.random(n) < 0.1).astype(float)),
        (0.5, lambda rng, n: rng.random(n)),
        (0.2, lambda rng, n: rng.beta(2, 8, n)),
    ],
)
def test_the_mean_is_inside_whenever_one_looks(mean: float, draw: Draw) -> None:
    rng, missed, sequences = np.random.default_rng(1), 0, 200
    for _ in range(sequences):
        running = Running()
        outside = False
        for figure in draw(rng, 300):
            running.add(float(figure))
            low, high = running.interval
            outside = outside or not low <= mean <= high
        missed += outside
    assert missed <= 0.05 * sequences + 3 * np.sqrt(0.05 * 0.95 * sequences)


def test_figures_that_spread_less_give_a_narrower_interval() -> None:
    rng, wide, narrow = np.random.default_rng(2), Running(), Running()
    for _ in range(1000):
        wide.add(float(rng.random() < 0.5))
        narrow.add(float(rng.uniform(0.45, 0.55)))
    widths = [high - low for low, high in (wide.interval, narrow.interval)]
    assert widths[1] < 0.5 * widths[0] < 0.1


def test_figures_are_counted_up_to_the_most_and_survive_json() -> None:
    running = Running(most=4.0)
    assert running.mean is None and running.interval == (0.0, 4.0)
    for figure in (1.0, 3.0, 100.0, -1.0):
        running.add(figure)
    assert running.mean == pytest.approx(2.0) and running.count == 4
    low, high = running.interval
    assert 0.0 <= low <= 2.0 <= high <= 4.0
    assert Running.from_json(json.loads(json.dumps(running.to_json()))) == running
