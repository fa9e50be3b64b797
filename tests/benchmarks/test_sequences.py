"""Sequences against video: what is counted, and that delta frames are coded as the agent does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks.compare.arms import Pair
from benchmarks.rate import sequences, video
from benchmarks.rate.sequences import EVERY, Film, code, message_bytes, summary, transport_bytes
from benchmarks.rate.video import VIDEOS, Video, picture_bytes
from protos.errors import BridgeError
from protos.header import Header
from protos.points import PICTURE_POINT
from protos.state import KVState
from tests.fakes.fake_edge import LAYOUT, make_encoder

NEEDS_FFMPEG = pytest.mark.skipif(not video.available(), reason="no ffmpeg (Debian: ffmpeg)")


def states(frames: int) -> list[KVState]:
    """One scene in which token 4 alone moves."""
    rng = np.random.default_rng(0)
    still = rng.standard_normal((LAYOUT.tokens, LAYOUT.state_dim)).astype(np.float32)
    made = []
    for frame in range(frames):
        x = still.copy()
        x[4] += 3 * frame
        made.append(KVState.from_flat(x, LAYOUT, np.arange(LAYOUT.tokens)))
    return made


def test_a_sequence_begins_with_a_key_frame_and_goes_on_with_what_moved() -> None:
    pair = cast(Pair, SimpleNamespace(bundle=SimpleNamespace(encoder=make_encoder())))
    point = next(p for p in pair.bundle.encoder.points if p.quantizer == "uniform")
    coded = list(code(pair, states(6), 3, point, delta=True))
    assert [each.base is None for each in coded] == [True, False, False, True, False, False]
    assert all(each.kept.sum() <= 2 for each in coded if each.base is not None)
    keys = list(code(pair, states(6), 3, point, delta=False))
    assert all(each.base is None for each in keys)
    assert sum(len(e.payload) for e in coded) < sum(len(e.payload) for e in keys)


def test_what_the_transport_adds_is_the_overhead_less_the_message() -> None:
    file = bytes(500)
    message = message_bytes(Header(PICTURE_POINT, 500, np.zeros(0, dtype=np.bool_), 100), file)
    assert transport_bytes(message - len(file) + 14.0) == pytest.approx(14.0)


def test_questions_are_about_every_eighth_frame_and_true_of_it() -> None:
    film = Film.load("validation", 2, 2 * EVERY, 2)
    assert len(film.pictures) == 4 * EVERY
    assert {q.picture for q in film.asked} == {EVERY * n - 1 for n in range(1, 5)}
    truths = [q.truth for q in film.asked]
    assert all(film.right(truths))
    row = film.row("x", "video", ["?"] * len(truths), [True] * len(truths), wire_bytes=1.0)
    assert row["accuracy"] == 0 and row["minus_cloud_image"]["mean"] == -1
    assert row["accuracy_by_frame"] == {EVERY - 1: 0.0, 2 * EVERY - 1: 0.0}
    half = film.row("x", "video", [*truths[:4], *["?"] * 4], [True] * 8)
    assert len(truths) == 8 and half["accuracy_by_frame"] == {EVERY - 1: 0.5, 2 * EVERY - 1: 0.5}


def test_the_best_video_is_compared_with_our_best() -> None:
    def row(kind: str, edge: str, size: float, accuracy: float) -> dict[str, Any]:
        return {
            "name": f"{kind} {size}",
            "kind": kind,
            "edge_model": edge,
            "bytes_per_frame": size,
            "payload_bytes": size - 40,
            "accuracy": accuracy,
        }

    rows = [
        row("ours", "edge-a", 50, 0.90),
        row("ours", "edge-a", 60, 0.93),
        row("ours", "edge-b", 60, 0.80),
        row("video", "", 90, 0.92),
        row("video", "", 120, 0.94),
    ]
    found = summary(rows, 0.945)
    assert found["video"]["bytes_per_frame"] == 120
    assert found["edge-a"]["video_over_ours"] == 2.0
    assert found["edge-a"]["video_over_ours_payload"] == 4.0
    assert found["edge-b"] is None
    assert summary(rows[:3], 0.945)["edge-a"]["video_over_ours"] is None


def nal(kind: int, size: int) -> bytes:
    return b"\0\0\0\1" + bytes([kind]) + b"\x11" * (size - 1)


def test_only_coded_pictures_count() -> None:
    stream = nal(7, 20) + nal(8, 5) + nal(6, 600) + nal(5, 40) + nal(1, 9)
    assert picture_bytes("h264", stream) == 49
    hevc = (
        nal(32 << 1, 20) + nal(33 << 1, 30) + nal(39 << 1, 90) + nal(19 << 1, 40) + nal(1 << 1, 9)
    )
    assert picture_bytes("h265", hevc) == 49
    delimiter, header = bytes([2 << 3 | 2, 0]), bytes([1 << 3 | 2, 10]) + bytes(10)
    frame = bytes([6 << 3 | 2, 200, 1]) + bytes(200)
    assert picture_bytes("av1", delimiter + header + frame + delimiter + frame) == 2 * 203


@pytest.mark.quick(1)
@NEEDS_FFMPEG
@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
def test_a_stream_comes_back_frame_by_frame(codec: str) -> None:
    """Two sequences of four frames; the second begins anew, so nothing of the first is left."""
    levels = [20, 30, 40, 50, 220, 210, 200, 190]
    pictures = [Image.new("RGB", (96, 96), (level,) * 3) for level in levels]
    made = next(v for v in VIDEOS if (v.codec, v.px, v.group) == (codec, 48, "reordered"))
    stream = made.encode(pictures, 4)
    assert 0 < picture_bytes(codec, stream) < len(stream)
    seen = made.decode(stream, len(pictures))
    assert [p.size for p in seen] == [(48, 48)] * 8
    got = [float(np.asarray(p).mean()) for p in seen]
    assert np.abs(np.array(got) - levels).max() < 12
    with pytest.raises(BridgeError, match="others came back"):
        made.decode(stream, 9)


def test_settings_have_names_of_their_own() -> None:
    assert len({v.name for v in VIDEOS}) == len(VIDEOS)
    assert Video("h264", 38, 48, "long").name == "h264 crf 38 48 px long"
    assert sequences.FRONTIER < len(VIDEOS)
