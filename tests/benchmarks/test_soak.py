"""A short soak of the real service and a real agent, and what a soak calls a failure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.soak import Sample, Soak, soak

MB = 1_000_000


def samples(engine: list[int], front_end: list[int], agent: list[int]) -> list[Sample]:
    return [
        Sample(float(i), 10 * i, e * MB, f * MB, a * MB, 9, 9, 0)
        for i, (e, f, a) in enumerate(zip(engine, front_end, agent, strict=True))
    ]


FLAT = [100] * 6


@pytest.mark.parametrize(
    ("engine", "front_end", "agent", "blamed"),
    [
        ([500, 600, 700, 800, 800, 800], FLAT, FLAT, []),
        ([500, 600, 700, 800, 947, 900], FLAT, FLAT, ["engine"]),
        ([500, 990, 700, 800, 800, 800], FLAT, FLAT, ["engine"]),
        (FLAT, [90, 100, 100, 100, 100, 116], FLAT, ["front_end"]),
        (FLAT, FLAT, [90, 100, 100, 100, 120, 100], ["agent"]),
        (FLAT, [50, 100, 100, 100, 110, 110], [50, 100, 100, 90, 90, 90], []),
        ([0, 0, 0, 0, 0, 0], FLAT, FLAT, ["engine"]),
    ],
)
def test_a_soak_blames_the_process_that_outgrows_its_limit(
    engine: list[int], front_end: list[int], agent: list[int], blamed: list[str]
) -> None:
    problems = str(Soak(320 * MB, samples(engine, front_end, agent)).figures()["problems"])
    assert [name for name in ("engine", "front_end", "agent") if name in problems] == blamed


def test_a_pool_above_the_caps_is_a_failure() -> None:
    made = samples(FLAT, FLAT, FLAT)
    made[-1] = dataclasses.replace(made[-1], pool_bytes=500 * MB)
    assert "pool" in str(Soak(320 * MB, made).figures()["problems"])


def test_an_engine_that_was_started_again_is_a_failure_however_small_it_is_now() -> None:
    made = samples(FLAT, FLAT, FLAT)
    made[-1] = dataclasses.replace(made[-1], restarts=1)
    assert "started again" in str(Soak(320 * MB, made).figures()["problems"])


def test_a_run_that_is_too_short_to_tell_is_a_failure() -> None:
    made = samples(FLAT, FLAT, FLAT)[:3]
    assert "too few" in str(Soak(320 * MB, made).figures()["problems"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_stays_within_base_and_caps_over_a_thousand_answers(tmp_path: Path) -> None:
    """Without the pool an engine is 200 MB above its limit by then."""
    report = soak(tmp_path, answers=1600)
    assert report["problems"] == []
    last = report["samples"][-1]
    assert last["answers"] >= 1600 and last["scenes"] > 400, "the cap was reached"
    assert report["caps_bytes"] - (72 << 20) < last["scene_bytes"] <= report["caps_bytes"]
