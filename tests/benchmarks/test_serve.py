"""The ledger of a service under load, its latencies, and the figures made from its parts."""

from __future__ import annotations

import pytest

from benchmarks.serve.figures import figures, goodput_share, memory_growth
from benchmarks.serve.ledger import Entry, judge
from benchmarks.serve.load import Stretch
from benchmarks.serve.stub_engine import StubEngine

CALM = ["yes", "no"]


def entry(number: int = 1, **fields: object) -> Entry:
    made = Entry(bytes([number] * 8), "device-1", item=0, due=10.0, sent=[12.0])
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_request_that_was_answered_once_or_refused_with_a_cause_is_in_order() -> None:
    verdict = judge([entry(answers=["yes"]), entry(2, cause="overloaded")], CALM)
    assert verdict.holds
    assert (verdict.answered, verdict.refused) == (1, {"overloaded": 1})


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "lost"),
        ({"accepted": 12.5}, "lost"),
        ({"answers": ["yes", "yes"]}, "doubled"),
        ({"answers": ["yes"], "surplus": 1}, "doubled"),
        ({"answers": ["no"]}, "wrong"),
    ],
)
def test_the_ledger_names_what_was_lost_doubled_or_wrong(
    fields: dict[str, object], what: str
) -> None:
    verdict = judge([entry(**fields)], CALM)
    assert not verdict.holds
    assert {name for name in ("lost", "doubled", "wrong") if getattr(verdict, name)} == {what}


def test_latency_counts_from_when_a_request_was_due_not_from_when_it_was_sent() -> None:
    stretch = Stretch(1.0, 1.0, [entry(answers=["yes"], first_token=12.1, ended=12.5)])
    assert stretch.latency_ms(0.5) == pytest.approx(2500)
    assert stretch.latency_ms(0.5, "first_token") == pytest.approx(2100)
    assert (stretch.rate(within_s=2.0), stretch.rate(within_s=3.0)) == (0.0, 1.0)


def test_a_figure_without_its_part_is_neither_met_nor_missed() -> None:
    found = figures({}, None)
    assert len(found) == 11 and {(row["value"], row["met"]) for row in found} == {(None, None)}


def test_figures_are_measured_against_their_targets() -> None:
    parts = {
        "throughput": {"stages": {"outside_share": 0.2}},
        "all_cores": {"one": {"answers_per_s": 50.0}, "many": {"answers_per_s": 350.0}},
        "transformers": {"answers_per_s": 35.0},
        "offered": {"rows": [{"goodput_per_s": 100.0}, {"goodput_per_s": 80.0}]},
    }
    kind = {"lost": 0, "doubled": 0, "wrong": 1, "seen_by_a_stranger": 0}
    faults = {"faults": 2100, "kinds": {"SIGTERM under load": kind, "rolling restart": kind}}
    met = {row["name"].split(" ")[0]: row["met"] for row in figures(parts, faults)}
    assert met["throughput"] is True
    assert met["answers"] is False
    assert met["time"] is False
    assert met["SIGTERM"] is True
    assert met["faults:"] is False
    assert goodput_share(parts) == pytest.approx(0.8)


def test_memory_is_compared_between_a_sixth_of_the_soak_and_its_end() -> None:
    engine = [100] * 20 + [200] * 20 + [300] * 80
    samples = [{"seconds": i, "front_end": 50, "engine": held} for i, held in enumerate(engine)]
    assert memory_growth({"soak": {"memory": samples}}) == pytest.approx(0.5)
    flat = [{"seconds": i, "front_end": 50, "engine": 300} for i in range(120)]
    assert memory_growth({"soak": {"memory": flat}}) == 0.0


def test_the_engine_that_answers_at_once_is_a_whole_engine() -> None:
    assert not StubEngine.__abstractmethods__
