"""The rate bench's own arithmetic: lists of things, what a file is without its container."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks.command import ROOT
from benchmarks.compare.arms import Frame
from benchmarks.compare.wire import Shot
from benchmarks.rate import __main__ as rate
from benchmarks.rate import keep as keeping
from benchmarks.rate.arms import Guarded
from benchmarks.rate.describe import MOST, PLACES, Reader, Thing, pack, radix, unpack
from benchmarks.rate.keep import Keep, TakenError
from benchmarks.rate.pictures import Rival, bare_bytes, worn
from projector.codec.encoder import Encoder
from projector.codec.risk import RiskModel, losses_of
from protos.distortion import Distortion
from reference.yard import COLOURS, KINDS, PICTURE_PX, ask, sample_scenes

CELLS = 36


def random_things(rng: np.random.Generator, count: int) -> list[Thing]:
    most = (CELLS, len(KINDS), len(COLOURS) + 1, 2, PLACES, PLACES)
    return [Thing(*(int(rng.integers(m)) for m in most)) for _ in range(count)]


@pytest.mark.parametrize("count", range(MOST + 1))
def test_a_list_of_things_comes_back_from_its_bytes(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(50):
        things = random_things(rng, count)
        assert unpack(pack(things, CELLS), CELLS) == things


def test_a_full_list_fits_in_what_its_number_needs() -> None:
    last = Thing(CELLS - 1, len(KINDS) - 1, len(COLOURS), 1, PLACES - 1, PLACES - 1)
    bits = MOST * np.log2(radix(CELLS)) + np.log2(MOST + 1)
    assert len(pack([last] * MOST, CELLS)) == int(np.ceil(bits / 8))


def test_a_perfect_list_answers_the_questions_that_it_foresees() -> None:
    """Places are rounded to an eighth of a cell, so a few relations at their threshold differ."""
    scenes = sample_scenes("test", 0, 48)
    lists, asked, truths = [], [], []
    for index in range(48):
        things = []
        for slot in range(int(scenes.n_objects[index])):
            x, y = (float(a[index, slot]) / PICTURE_PX * 6 for a in (scenes.x, scenes.y))
            things.append(
                Thing(
                    int(y) * 6 + int(x),
                    int(scenes.kind[index, slot]),
                    int(scenes.colour[index, slot]) + 1,
                    int(scenes.large[index, slot]),
                    int(x % 1 * PLACES),
                    int(y % 1 * PLACES),
                )
            )
        lists.append(things)
        for question in ask(scenes, index, 6, 0):
            asked.append((index, question.text))
            truths.append(question.answer)
    reader = Reader((6, 6), pictures=64)
    right = [a == b for a, b in zip(reader.answers(lists, asked), truths, strict=True)]
    assert np.mean(right) > 0.97
    empty = [[] for _ in lists]
    blind = [a == b for a, b in zip(reader.answers(empty, asked), truths, strict=True)]
    assert np.mean(blind) < 0.6


@pytest.mark.parametrize("codec", ["jpeg", "webp", "avif", "png"])
def test_a_file_without_its_container_is_smaller_and_the_picture_is_the_same_size(
    codec: str,
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (144, 144, 3), dtype=np.uint8)
    file = Rival(codec, 30, 48).encode(Image.fromarray(noise))
    assert 0 < bare_bytes(file) <= len(file)
    assert (bare_bytes(file) < len(file)) == (codec != "png")
    (seen,) = worn([file])
    assert seen.size == (48, 48) and seen.mode == "RGB"


def row(kind: str, edge: str, wire: float, accuracy: float) -> dict[str, object]:
    difference = {"mean": accuracy - 0.95, "low": -0.1, "high": 0.1}
    plain = {"seed": 0, "payload_bytes": wire - 80, "bare_bytes": wire - 100}
    return {
        "name": f"{kind} {wire}",
        "kind": kind,
        "edge_model": edge,
        "wire_bytes": wire,
        "accuracy": accuracy,
        "minus_cloud_image": difference,
        **plain,
    }


def test_the_summary_takes_the_smallest_within_two_points() -> None:
    rows = [
        row("ours", "edge-a", 100, 0.90),
        row("ours", "edge-a", 120, 0.94),
        row("ours", "edge-a", 300, 0.95),
        row("ours", "edge-b", 100, 0.60),
        row("image", "", 480, 0.935),
        row("image", "", 300, 0.92),
    ]
    found = rate.summary(rows, 0.95)
    assert found["image_wire_bytes"] == {"name": "image 480", "wire_bytes": 480}
    assert found["edge-a"]["wire_bytes"] == 120
    assert found["edge-a"]["image_over_ours"] == 4.0
    assert found["edge-b"] is None


def test_what_a_stage_found_is_kept_and_time_inside_another_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    used = [0.0]
    monkeypatch.setattr(keeping, "_cpu", lambda: used[0])
    keep = Keep(tmp_path, "64", said.append)

    def burn(seconds: float) -> float:
        used[0] += seconds
        return used[0]

    found = keep("outer", "x", lambda: [keep("inner", "x", lambda: burn(8.0)), burn(3.0)])
    assert found == [8.0, 11.0]
    outer = keep.spent["outer"]
    assert (keep.spent["inner"]["cpu_seconds"], outer["cpu_seconds"]) == (8.0, 3.0)

    def never() -> None:
        raise AssertionError("made twice")

    again = Keep(tmp_path, "64", said.append)
    assert again("outer", "x", never) == found and again.spent["outer"] == outer
    assert keep("outer", "another bundle", lambda: 7) == 7
    assert Keep(tmp_path, "32", said.append)("outer", "x", lambda: 8) == 8


def test_a_stage_that_another_process_is_at_is_refused_without_waiting(tmp_path: Path) -> None:
    keep = Keep(tmp_path, "64", lambda _: None)
    keep("one", "x", lambda: 1)
    (made,) = tmp_path.glob("one-*.json")
    made.unlink()
    keep.waits = False
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TakenError):
            keep("one", "x", lambda: 2)
    assert keep("one", "x", lambda: 2) == 2
    assert json.loads(made.read_text())["found"] == 2


def test_the_guard_sends_the_picture_where_the_risk_is_over_the_limit() -> None:
    """Two pictures, two questions each; the risk is the frame's quantization error alone."""
    weights = np.zeros(4, dtype=np.float32)
    weights[0] = 10.0
    risk = RiskModel(np.zeros(4, dtype=np.float32), weights, bias=-5.0, limit=0.5)
    frames = [
        Frame(Shot(0, b"", np.ones(1, bool), Distortion(quantize=q)), None, None)  # type: ignore[arg-type]
        for q in (0.1, 0.9)
    ]
    guarded = Guarded(
        risk,
        np.array([0, 0, 1, 1]),
        np.stack([losses_of(Distortion())] * 4),
        np.array([True, True, True, False]),
        np.array([1000.0, 2000.0]),
    )
    found = guarded.figures(frames, np.array([True, False, False, True]), 100.0)
    assert found == {
        "accuracy_guarded": 0.5,  # right, wrong as it stands; right, wrong from the picture
        "wire_bytes_guarded": 1050.0,
        "pictures_sent_share": 0.5,
    }
    none = Guarded(None, guarded.rows, guarded.found, guarded.right_sent, guarded.sent_bytes)
    assert none.figures(frames, np.array([True] * 4), 100.0) == {}


def test_the_transport_is_added_once_and_only_to_bytes_on_the_wire() -> None:
    sent = rate.carried({"payload_bytes": 50.0, "wire_bytes": 80.0, "bytes_per_frame": 80.0}, 14.0)
    assert sent == {"payload_bytes": 50.0, "wire_bytes": 94.0, "bytes_per_frame": 94.0}


def test_what_a_halving_costs_is_counted_between_neighbours_of_one_edge_model() -> None:
    points = [
        {**row("ours", "edge-a", 280, 0.94), "quantizer": "uniform"},
        {**row("ours", "edge-a", 130, 0.90), "quantizer": "uniform"},
        {**row("ours", "edge-a", 9000, 0.95), "quantizer": "fp8_e4m3"},
        {**row("rival", "edge-a", 150, 0.95), "quantizer": "uniform"},
    ]
    (step,) = rate.halvings(cast(Any, points))["edge-a"]
    assert (step["from_bytes"], step["to_bytes"]) == (200, 50)
    assert step["points_lost_per_halving"] == pytest.approx(2.0)


def test_a_helper_leaves_what_is_taken_and_does_the_rest_from_the_end() -> None:
    done: list[str] = []

    def taken() -> None:
        raise TakenError("second")

    jobs = [lambda: done.append("first"), taken, lambda: done.append("third")]
    bench = SimpleNamespace(keep=SimpleNamespace(waits=True), jobs=lambda: jobs)
    assert rate.help_out(cast(Any, bench)) == 0
    assert done == ["third", "first"] and bench.keep.waits is False


def test_a_guard_learnt_anew_costs_no_new_answers(tmp_path: Path) -> None:
    shipped = ROOT / "reference" / "bundles" / "edge-a-cloud"
    info = json.loads((shipped / "bundle.json").read_text())
    half = Encoder.from_bytes((shipped / "edge.safetensors").read_bytes())
    assert half.risk is not None
    changed = replace(half.risk, limit=half.risk.limit / 2)
    bundles = {"as it is": (half, 23), "guard": (replace(half, risk=changed), 23)}
    bundles |= {"no guard": (replace(half, risk=None), 23), "starts lower": (half, 20)}
    bench: Any = rate.Stages.__new__(rate.Stages)
    bench.edges = {}
    for name, (one, start) in bundles.items():
        bench.edges[name] = tmp_path / name
        bench.edges[name].mkdir()
        (tmp_path / name / "edge.safetensors").write_bytes(one.to_bytes())
        (tmp_path / name / "bundle.json").write_text(json.dumps({**info, "default_point": start}))
    coded = bench.coded
    assert coded["as it is"] == coded["guard"] == coded["no guard"] != coded["starts lower"]


def test_rows_of_a_point_get_what_its_guard_makes_of_them(tmp_path: Path) -> None:
    bench: Any = rate.Stages.__new__(rate.Stages)
    bench.keep, bench.digests = Keep(tmp_path, "", lambda _: None), {"edge-a": "a digest"}
    bench.points = lambda _: [{"name": "x1", "right": "01"}, {"name": "edge alone", "right": "11"}]
    bench._guarded = lambda name, rows: [{"accuracy_guarded": 0.5}, {}]
    assert bench.ours("edge-a") == [
        {"name": "x1", "accuracy_guarded": 0.5},
        {"name": "edge alone"},
    ]
