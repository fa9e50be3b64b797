"""The rate bench's own arithmetic: lists of things, what a file is without its container."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.rate import __main__ as rate
from benchmarks.rate import page
from benchmarks.rate.describe import MOST, PLACES, Reader, Thing, pack, radix, unpack
from benchmarks.rate.pictures import Rival, bare_bytes, worn
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
    report = {"rows": rows, "cloud_image": 0.95, "questions": 6, "pictures": 1, "command": "x <y>"}
    made = page.render(report)
    assert "x &lt;y&gt;" in made and "base64," in made


def test_sequences_have_a_figure_and_a_table_of_their_own() -> None:
    report = {"rows": [row("ours", "edge-a", 100, 0.9)], "cloud_image": 0.95, "questions": 6}
    report |= {"pictures": 1, "command": "x"}
    alone = page.render(report)
    film = [{**row("video", "", 200, 0.9), "name": "h264 crf 38"}, row("ours", "edge-a", 60, 0.9)]
    both = page.render({**report, "sequences": film, "sequences_cloud_image": 0.95})
    assert (alone.count("<img"), both.count("<img")) == (1, 2)
    assert "h264 crf 38" in both and "h264" not in alone
