"""What a stranger sends to the engine: huge pictures, numbers that are taken, jobs nobody wants."""

from __future__ import annotations

import dataclasses
import io
import struct
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloud_server.engine import reader
from cloud_server.engine.frame_numbers import FrameNumbers
from cloud_server.engine.jobs import Accepted, Answered, Dropped, Failed, Job, TokenMade
from cloud_server.engine.picture import charge_of
from projector.models.vlm import VLM, Prepared
from protos.errors import FrameNumberError, OverloadedError, PictureError
from protos.points import PICTURE_POINT
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.test_engine import Bench


@pytest.fixture(scope="module")
def shared(files: Files) -> Bench:
    return Bench(files)


@pytest.fixture
def bench(shared: Bench) -> Bench:
    """An engine that holds nothing and has said nothing."""
    shared.engine.forget("s")
    shared.said.clear()
    return shared


def solid(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(bench: Bench, id: int, file: bytes, session: str = "s") -> Job:
    plain = bench.job(id)
    return dataclasses.replace(plain, session=session, point=PICTURE_POINT, kept=b"", body=file)


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


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(chunks: bytes) -> bytes:
    file = stage.picture_file()
    return file[:33] + chunks + file[33:]


def with_scans(scans: int, side: int) -> bytes:
    """A grey JPEG file that passes over its pixels so often; each pass says that all are zero."""
    blocks = (side // 8) ** 2
    nothing = "".join("0" + "1" * 14 for _ in range(-(-blocks // 32767)))  # runs of empty blocks
    nothing += "1" * (-len(nothing) % 8)
    scan = int(nothing, 2).to_bytes(len(nothing) // 8, "big").replace(b"\xff", b"\xff\0")
    table = struct.pack(">H", 20), b"\x01" + bytes(15)
    return b"".join(
        (
            b"\xff\xd8\xff\xdb" + struct.pack(">HB", 67, 0) + b"\x01" * 64,
            b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0),
            b"\xff\xc4" + table[0] + b"\x10" + table[1] + b"\xe0",
            b"\xff\xc4" + table[0] + b"\x00" + table[1] + b"\x00",
            b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0) + bytes(-(-blocks // 8)),
            (b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + scan) * (scans - 1),
            b"\xff\xd9",
        )
    )


def slow_files() -> dict[str, bytes]:
    plain = io.BytesIO()
    Image.new("RGB", (48, 48)).save(plain, "JPEG")
    jpeg, profile = plain.getvalue(), b"a\0\0" + zlib.compress(bytes((1 << 20) - 1), 9)
    return {
        "many profiles": with_chunks(2 * chunk(b"iCCP", profile)),
        "many texts": with_chunks(10_000 * chunk(b"tEXt", b"a\0")),
        "many unknown chunks": with_chunks(10_000 * chunk(b"aaAa", b"")),
        "many empty pixel chunks": with_chunks(20_000 * chunk(b"IDAT", b"")),
        "many segments": jpeg[:2] + 10_000 * b"\xff\xe5\0\2" + jpeg[2:],
        "many starts": b"\xff\xd8" * 10_000 + jpeg,
        "many bytes of nothing": jpeg[:2] + b"\xff" * 10_000 + jpeg[2:],
        "no picture": b"\xff\xd8\xff" + bytes(10_000),
        "many scans": with_scans(101, 64),
    }


@pytest.mark.parametrize(("what", "file"), slow_files().items(), ids=slow_files())
def test_a_file_built_to_take_long_is_refused_by_its_structure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str, file: bytes
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("projector.models.pictures.size", lambda *_, **__: opened.append(what))
    monkeypatch.setattr(reader, "open_picture", lambda *_: opened.append(what))
    bench.engine.submit(picture(bench, 1, file))
    (said,) = bench.said
    assert isinstance(said, Failed) and isinstance(said.error, PictureError)
    assert not opened


def test_passes_over_the_pixels_and_what_is_inflated_beside_them_are_charged() -> None:
    assert charge_of(with_scans(10, 64)) == (64 * 64, 64 * 64)
    assert charge_of(with_scans(95, 64)) == (64 * 64, 10 * 64 * 64)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))
    assert charge_of(with_chunks(3 * text)) == (48 * 48, 48 * 48 + (3 << 20))
    made = reader.open_picture(with_scans(95, 64), 64)
    assert made.size == (64, 64), "the file is a good one"


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("PNG", {}),
        ("PNG", {"interlace": 1}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"icc_profile": bytes(200_000), "exif": b"Exif\0\0" + b"\xff\xda" * 9000}),
        ("JPEG", {"restart_marker_blocks": 1, "comment": b"x"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_ordinary_files_are_charged_for_their_pixels(kind: str, how: dict[str, Any]) -> None:
    noise, file = Image.effect_noise((320, 240), 80).convert("RGB"), io.BytesIO()
    noise.save(file, kind, **how)
    assert charge_of(file.getvalue()) == (320 * 240, 320 * 240)


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


# ------------------------------------------------------------------ jobs nobody wants


def test_a_job_that_waits_is_dropped_before_it_costs_anything(bench: Bench) -> None:
    for id in (1, 2):
        bench.engine.submit(bench.job(id))
    bench.engine.cancel(1, begun=False)
    bench.engine.cancel(1, begun=True)  # it is gone: nothing more is said
    bench.drain()
    assert [event for event in bench.said if isinstance(event, Dropped)] == [Dropped(1)]
    assert {event.job for event in bench.said if not isinstance(event, Dropped)} == {2}


def test_a_running_answer_ends_at_once_and_its_neighbours_are_what_they_were(
    bench: Bench,
) -> None:
    for id in (1, 2, 3):
        bench.engine.submit(bench.job(id))
    bench.drain()
    alone = {id: answer.text for id, answer in bench.answers().items()}
    bench.engine.forget("s")
    bench.said.clear()
    for id in (1, 2, 3):
        bench.engine.submit(bench.job(id))
    bench.engine.step()
    bench.engine.cancel(2, begun=False)
    assert bench.engine.status().running == 3, "it has begun"
    bench.engine.cancel(2, begun=True)
    assert bench.engine.status().running == 2
    said = len(bench.said)
    bench.drain()
    assert bench.said[said - 1] == Dropped(2)
    assert not [event for event in bench.said[said:] if event.job == 2]
    assert {id: answer.text for id, answer in bench.answers().items()} == {
        id: text for id, text in alone.items() if id != 2
    }
    bench.engine.submit(bench.ask(9, about=2))
    bench.drain()
    assert isinstance(bench.said[-1], Answered), "its scene was accepted, so it is held"


def test_the_last_running_answer_can_be_cancelled(bench: Bench) -> None:
    bench.engine.submit(bench.job(1))
    bench.engine.step()
    bench.engine.cancel(1, begun=True)
    assert not bench.engine.busy
    bench.engine.submit(bench.job(2))
    bench.drain()
    assert set(bench.answers()) == {2}


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


# ------------------------------------------------------------------ frame numbers


def test_a_number_that_is_taken_is_refused_in_one_step_in_later_ones_and_for_pictures(
    bench: Bench,
) -> None:
    first = bench.job(1)
    thief = dataclasses.replace(bench.job(2), frame_number=1)
    bench.engine.submit(first)
    bench.engine.submit(thief)  # in the same step
    bench.drain()
    bench.engine.submit(dataclasses.replace(thief, id=3, request_id="3" * 16))
    bench.drain()
    stolen = dataclasses.replace(picture(bench, 4, stage.picture_file()), frame_number=1)
    bench.engine.submit(stolen)
    failures = {event.job: event.error for event in bench.said if isinstance(event, Failed)}
    assert set(failures) == {2, 3, 4}
    assert all(isinstance(error, FrameNumberError) for error in failures.values())
    assert first.request_id in str(failures[2])
    bench.engine.submit(dataclasses.replace(first, id=5))  # the same request once more
    bench.engine.submit(dataclasses.replace(thief, id=6, session="another"))
    bench.drain()
    assert set(bench.answers()) == {1, 5, 6}
    bench.engine.submit(bench.ask(7, about=1))
    bench.drain()
    assert bench.answers()[7].text == bench.answers()[1].text
    bench.engine.forget("another")
    bench.engine.submit(picture(bench, 8, b"nothing"))
    bench.engine.submit(dataclasses.replace(bench.job(9), frame_number=8))
    bench.drain()
    assert 9 in bench.answers(), "what was refused takes no number"


def test_two_pictures_of_one_number_that_wait_together_are_one_scene_and_one_refusal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes, gate = Wakes(bench), Gate(monkeypatch)
    bench.engine.submit(picture(bench, 1, stage.picture_file(1)))
    bench.engine.submit(
        dataclasses.replace(picture(bench, 2, stage.picture_file(2)), frame_number=1)
    )
    gate.open.set()
    wakes.drain(2)
    (failed,) = [event for event in bench.said if isinstance(event, Failed)]
    assert (failed.job, failed.code) == (2, 308)
    assert set(bench.answers()) == {1}


def test_numbers_of_scenes_that_are_gone_are_free_and_cost_no_memory() -> None:
    held: set[tuple[str, int]] = set()
    numbers = FrameNumbers(held.__contains__)
    for number in range(10_000):
        numbers.claim(("s", number), "a")
        held.add(("s", number))
        held.discard(("s", number - 100))
        numbers.end_step()
    assert len(numbers) <= 4 * 1024
    numbers.claim(("s", 0), "b")
    with pytest.raises(FrameNumberError, match="9950 is taken by request a"):
        numbers.claim(("s", 9950), "b")
    numbers.claim(("s", 9950), "a")
