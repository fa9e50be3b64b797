"""The speed report counts what it says: both ways, all points, the same bytes as the rival."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from benchmarks import codec_speed
from tests.fakes.fake_edge import make_encoder, state_of


def test_the_report_has_every_point_and_the_rivals_coder_at_the_same_size() -> None:
    encoder = make_encoder()
    encoder = replace(encoder, points=tuple(replace(p, tokens=0) for p in encoder.points))
    states = [state_of(Image.new("RGB", (8, 8), (shade, 0, 0))) for shade in range(6)]
    default = next(point for point in encoder.points if point.quantizer == "uniform")
    report = codec_speed.measure(encoder, default.index, states, rounds=1)
    assert [row["point"] for row in report["points"]] == [point.name for point in encoder.points]
    sent = {row["point"]: row for row in report["points"]}[default.name]
    assert report["frames_per_second_one_core"] == sent["encoded_per_second"] > 0
    ours, theirs = report["coder"]["ours"], report["coder"]["constriction"]
    assert sent["payload_bytes"] == ours["bytes"]
    # constriction writes whole words of four bytes.
    assert ours["bytes"] - 2 <= theirs["bytes"] <= ours["bytes"] + 5


def test_still_cameras_are_reported_with_what_deltas_save() -> None:
    encoder = make_encoder()
    still = [state_of(Image.new("RGB", (8, 8), (9, 0, 0)))] * 5
    row = codec_speed.measure_deltas(encoder, encoder.point(1), [still, still])
    assert (row["frames"], row["key_frames"], row["tokens"]) == (10, 2, 1)
    assert row["bytes"] < row["key_bytes"] and row["error"] <= row["key_error"]
