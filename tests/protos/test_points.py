"""Operating points survive JSON, and lying ones are refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from protos.errors import FrameMalformedError
from protos.points import (
    PICTURE,
    PICTURE_POINT,
    RAW_KV_FP8,
    Measured,
    OperatingPoint,
    points_from_json,
    points_to_json,
)

POINTS = (
    OperatingPoint(0, "fp8_all", quantizer="fp8_e4m3", rank=16, steps="fp8_all"),
    OperatingPoint(1, "coarse_20", quantizer="uniform", tokens=20, rank=16, steps="coarse_20"),
    OperatingPoint(
        2,
        "coarse_10",
        quantizer="uniform",
        tokens=10,
        rank=16,
        steps="coarse_20",
        dead_zone=0.2,
        quiet=8.0,
        measured=Measured(40.5, 90, 0.93, 0.12, 0.3),
    ),
    RAW_KV_FP8,
    PICTURE,
)
MEASURED = asdict(Measured(40.5, 90, 0.93, 0.12, 0.3))


def test_operating_points_survive_json() -> None:
    assert points_from_json(points_to_json(POINTS)) == POINTS
    assert all(OperatingPoint.from_json(point.to_json()) == point for point in POINTS)


def test_a_point_that_was_never_measured_is_written_as_before_there_were_measurements() -> None:
    assert set(json.loads(POINTS[0].to_json())) == {
        "index", "name", "kind", "quantizer", "tokens", "rank", "steps",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"index": 256},
        {"index": -1},
        {"index": True},
        {"index": "1"},
        {"name": ""},
        {"name": "n" * 65},
        {"kind": "video"},
        {"kind": "picture"},
        {"index": PICTURE_POINT},
        {"tokens": 70000},
        {"rank": 1.5},
        {"quantizer": None},
        {"extra": 1},
        {"dead_zone": -0.1},
        {"dead_zone": 0.6},
        {"dead_zone": True},
        {"dead_zone": "0.1"},
        {"quiet": -1},
        {"quiet": None},
        {"quiet": 1e10},
        {"measured": {}},
        {"measured": [1]},
        {"measured": {**MEASURED, "accuracy": 1.5}},
        {"measured": {**MEASURED, "payload_bytes": -1}},
        {"measured": {**MEASURED, "wire_bytes": "90"}},
        {"measured": {**MEASURED, "quantize": 1e300}},
        {"measured": {**MEASURED, "extra": 1}},
    ],
)
def test_lying_operating_points_are_refused(change: dict[str, Any]) -> None:
    plain = {**json.loads(POINTS[1].to_json()), **change}
    with pytest.raises(FrameMalformedError):
        points_from_json(json.dumps([plain]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[{}]",
        points_to_json([POINTS[0], replace(POINTS[1], index=0)]),
        points_to_json([POINTS[0], replace(POINTS[1], name="fp8_all")]),
        "[" + ",".join(["1"] * 300) + "]",
    ],
)
def test_json_that_is_no_list_of_distinct_points_is_refused(text: str) -> None:
    with pytest.raises(FrameMalformedError):
        points_from_json(text)
