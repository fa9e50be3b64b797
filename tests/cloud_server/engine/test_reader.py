"""Pictures are read beside the engine's steps, each session in turn."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from cloud_server.engine import reader
from cloud_server.engine.jobs import Accepted, Dropped, Failed, TokenMade
from projector.models.pixels import Prepared
from projector.models.vlm import VLM
from protos.errors import OverloadedError, PictureError
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import Bench, picture


def solid(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


class Gate:
    """Holds the reader's thread before it opens a picture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        opening = reader.open_picture

        def wait(file: bytes, max_px: int) -> Any:
            self.reached.set()
            assert self.open.wait(60)
            return opening(file, max_px)

        monkeypatch.setattr(reader, "open_picture", wait)


class Wakes:
    """Waits for the reader instead of for a message."""

    def __init__(self, bench: Bench) -> None:
        self._woken = threading.Semaphore(0)
        bench.engine.wake = lambda: self._woken.release()
        self._bench = bench

    def drain(self, pictures: int) -> None:
        for _ in range(pictures):
            assert self._woken.acquire(timeout=60)
            self._bench.drain()


def test_answers_go_on_while_a_huge_picture_is_being_decoded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes, gate = Wakes(bench), Gate(monkeypatch)
    bench.engine.submit(picture(bench, 1, solid(2048)))
    assert gate.reached.wait(60)
    assert not bench.engine.busy, "the engine waits for messages, not for the picture"
    for id in (2, 3):
        bench.engine.submit(bench.job(id))
    bench.drain()
    assert set(bench.answers()) == {2, 3}
    gate.open.set()
    wakes.drain(1)
    assert set(bench.answers()) == {1, 2, 3}


def test_a_sessions_pictures_beyond_its_pixels_are_refused_before_they_are_decoded(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    opening = reader.open_picture

    def count(file: bytes, max_px: int) -> Any:
        opened.append(len(file))
        return opening(file, max_px)

    bench = Bench(files, picture_px_per_s=1.0, picture_burst_px=2 * 512.0**2)
    monkeypatch.setattr(reader, "open_picture", count)
    wakes, file = Wakes(bench), solid(512)
    for id in range(16):
        bench.engine.submit(picture(bench, id, file))
    bench.engine.submit(picture(bench, 16, file, session="another"))
    wakes.drain(3)
    assert set(bench.answers()) == {0, 1, 16} and len(opened) == 3
    refusals = [event for event in bench.said if isinstance(event, Failed)]
    assert {event.job for event in refusals} == set(range(2, 16))
    error = refusals[0].error
    assert isinstance(error, OverloadedError) and error.cause == "pictures" and error.retryable
    assert error.retry_after_s > 100_000


def test_a_picture_that_a_library_trips_over_is_refused_and_the_next_is_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = reader.open_picture
    faults = [RuntimeError("shape '[0]' is invalid"), MemoryError()]

    def trip(file: bytes, max_px: int) -> Any:
        if faults:
            raise faults.pop(0)
        return opening(file, max_px)

    monkeypatch.setattr(reader, "open_picture", trip)
    wakes = Wakes(bench)
    for id in range(3):
        bench.engine.submit(picture(bench, id, solid(64)))
    wakes.drain(3)
    refusals = [event for event in bench.said if isinstance(event, Failed)]
    assert {(event.job, event.code) for event in refusals} == {
        (0, PictureError.code),
        (1, PictureError.code),
    }
    assert set(bench.answers()) == {2}


def test_one_picture_may_be_larger_than_what_a_session_has_at_once(files: Files) -> None:
    bench = Bench(files, picture_px_per_s=1.0, picture_burst_px=100.0)
    wakes = Wakes(bench)
    bench.engine.submit(picture(bench, 1, solid(64)))
    bench.engine.submit(picture(bench, 2, solid(64)))
    wakes.drain(1)
    assert set(bench.answers()) == {1}


def test_a_sessions_picture_waits_for_no_more_than_one_of_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes, gate = Wakes(bench), Gate(monkeypatch)
    for id in range(1, 6):
        bench.engine.submit(picture(bench, id, stage.picture_file(id)))
    assert gate.reached.wait(60)
    bench.engine.submit(picture(bench, 9, stage.picture_file(9), session="another"))
    gate.open.set()
    wakes.drain(6)
    order = [event.job for event in bench.said if isinstance(event, Accepted)]
    assert order.index(9) <= 2 and len(order) == 6
    bench.engine.forget("another")


def test_pictures_read_beforehand_are_seen_as_the_model_sees_them(
    files: Files, bench: Bench
) -> None:
    vlm = VLM.load(files.model)
    pictures = [reader.open_picture(stage.picture_file(seed), 4096) for seed in range(3)]
    prepared = [vlm.prepare(picture) for picture in pictures]
    assert all(isinstance(made, Prepared) for made in prepared)
    want, got = vlm.prefill(pictures, attention=False), vlm.prefill(prepared, attention=False)
    for (key, value), (other_key, other_value) in zip(want.layers(), got.layers(), strict=True):
        np.testing.assert_array_equal(key.numpy(), other_key.numpy())
        np.testing.assert_array_equal(value.numpy(), other_value.numpy())
    ids = vlm.question_ids(stage.QUESTION)
    texts = [vlm.text(row) for row in vlm.answer_pictures(pictures, [ids] * 3, 6)]
    wakes = Wakes(bench)
    for seed in range(3):
        bench.engine.submit(picture(bench, seed, stage.picture_file(seed)))
    wakes.drain(3)
    assert [bench.answers()[seed].text for seed in range(3)] == texts


def test_a_damaged_picture_spoils_no_other(bench: Bench) -> None:
    wakes, good = Wakes(bench), stage.picture_file(1)
    for id, file in enumerate((good, good[: len(good) // 2], b"nothing", good)):
        bench.engine.submit(picture(bench, id, file))
    wakes.drain(3)
    assert set(bench.answers()) == {0, 3}
    failures = [event for event in bench.said if isinstance(event, Failed)]
    assert {event.job for event in failures} == {1, 2}
    assert all(isinstance(event.error, PictureError) for event in failures)


@pytest.mark.parametrize("begun", [False, True])
def test_a_picture_is_dropped_while_it_waits_and_if_wanted_while_it_is_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    wakes, gate = Wakes(bench), Gate(monkeypatch)
    for id in (1, 2, 3):
        bench.engine.submit(picture(bench, id, stage.picture_file(id)))
    assert gate.reached.wait(60)
    bench.engine.cancel(1, begun)  # it is being read
    bench.engine.cancel(2, begun)  # it waits
    gate.open.set()
    wakes.drain(1 if begun else 2)
    answered = {3} if begun else {1, 3}
    assert set(bench.answers()) == answered
    dropped = {event.job for event in bench.said if isinstance(event, Dropped)}
    assert dropped == {1, 2, 3} - answered
    tokens = {event.job for event in bench.said if isinstance(event, TokenMade | Accepted)}
    assert tokens == answered


def test_two_pictures_of_one_number_that_wait_together_are_one_scene_and_one_refusal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes, gate = Wakes(bench), Gate(monkeypatch)
    bench.engine.submit(picture(bench, 1, stage.picture_file(1)))
    bench.engine.submit(structs.replace(picture(bench, 2, stage.picture_file(2)), frame_number=1))
    gate.open.set()
    wakes.drain(2)
    (failed,) = [event for event in bench.said if isinstance(event, Failed)]
    assert (failed.job, failed.code) == (2, 308)
    assert set(bench.answers()) == {1}
