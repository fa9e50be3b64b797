"""The selectors' bench says what its rows say, and never leaves the controls out."""

from __future__ import annotations

import re
from typing import Any

from benchmarks import selectors
from projector.codec.select import DEFAULT, SELECTORS


def row(selector: str, budget: int, accuracy: float, quiet: float = 0.0) -> dict[str, Any]:
    return {
        "selector": selector,
        "budget": budget,
        "quiet": quiet,
        "payload_bytes": 10.0 + budget,
        "wire_bytes": 60.0 + budget,
        "accuracy": accuracy,
        "dropped_attention": 0.1,
    }


MADE = [
    row("none", 0, 0.94),
    row("none", 0, 0.93, quiet=8.0),
    *(row(name, 6, 0.5 + 0.01 * at) for at, name in enumerate(SELECTORS)),
    *(row(name, 12, 0.9 - 0.01 * at) for at, name in enumerate(SELECTORS)),
]


def test_the_winner_of_each_budget_stands_beside_the_default_and_the_controls() -> None:
    first, last = next(iter(SELECTORS)), list(SELECTORS)[-1]
    best = selectors.winners(MADE)
    assert (best["6"]["best"], best["12"]["best"]) == (last, first)
    for here in best.values():
        assert {DEFAULT, "uniform", "random"} <= set(here)


def test_random_and_uniform_are_in_every_plot_and_the_page_escapes_what_it_shows() -> None:
    report = {
        "rows": MADE,
        "native": 0.95,
        "command": "python -m benchmarks.selectors --out <x>",
        "pictures": 8,
        "questions": 48,
    }
    page = selectors.page(report)
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(plots) == 2
    for plot in plots:
        names = re.findall(r">([^<>]+)</text>", plot)
        assert set(SELECTORS) <= set(names)
    assert "&lt;x&gt;" in page and "<x>" not in page
