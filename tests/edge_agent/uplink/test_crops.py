"""Crops at the edge: only with consent, only of pictures still held, never too long."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.metrics import Metrics
from edge_agent.uplink.crops import Crops, crop_file
from protos.crop import Box
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process import logs
from tests.edge_agent.uplink.traffic import bridge, deliver_all, requests, run
from tests.fakes.fake_edge import fake_uplink

pytestmark = pytest.mark.usefixtures("connections")
WANTED = pb.CropWanted(left=0, top=0, right=500, bottom=700, max_bytes=4000)


def _crops(memory_bytes: int = 1 << 20, most_bytes: int = 3000) -> Crops:
    return Crops(most_bytes, 0.75, memory_bytes, Metrics(), logs.configure("error"))


def test_the_crop_that_was_asked_for_goes_up_and_its_picture_is_let_go(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(crop=WANTED) as served:
            crops, items = _crops(), requests(3)
            uplink = fake_uplink(served.dial, tmp_path, crops=crops)
            outcomes = await deliver_all(uplink, items)
            assert set(served.allowed) == {"3000"}
            for index, outcome in enumerate(outcomes):
                assert outcome.answer is not None and outcome.answer.fallback == "crop"
                file = served.crops[outcome.request_id].result()
                assert outcome.crop_bytes == len(file) > 0
                came = Image.open(io.BytesIO(file))
                assert came.size == (5, 6)
                assert np.abs(np.asarray(came.convert("RGB")) - [index, 2, 3]).max() <= 8
            assert crops.bytes == 0
            await uplink.close()

    run(test)


def test_without_consent_nothing_says_that_a_crop_may_be_asked_for(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(crop=WANTED) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            (outcome,) = await deliver_all(uplink, requests(1))
            assert served.allowed == [""] and not served.crops
            assert outcome.answer is not None and outcome.answer.fallback == ""
            await uplink.close()

    run(test)


def test_a_picture_that_is_no_longer_held_is_said_to_be_gone(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(crop=WANTED) as served:
            uplink = fake_uplink(served.dial, tmp_path, crops=_crops(memory_bytes=9))
            (outcome,) = await deliver_all(uplink, requests(1))
            assert served.crops[outcome.request_id].result() == b""
            assert outcome.answer is not None and outcome.answer.fallback == ""
            assert outcome.crop_bytes == 0
            await uplink.close()

    run(test)


@pytest.mark.parametrize("right", [751, 1000])
def test_a_part_larger_than_the_owner_allows_stays_here(tmp_path: Path, right: int) -> None:
    async def test() -> None:
        wanted = pb.CropWanted(left=0, top=0, right=right, bottom=10, max_bytes=4000)
        async with bridge(crop=wanted) as served:
            uplink = fake_uplink(served.dial, tmp_path, crops=_crops())
            (outcome,) = await deliver_all(uplink, requests(1))
            assert served.crops[outcome.request_id].result() == b""
            await uplink.close()

    run(test)


def test_a_picture_cannot_be_fetched_in_pieces() -> None:
    async def test() -> None:
        crops, sent = _crops(), list[pb.InferRequest]()

        async def write(message: pb.InferRequest) -> None:
            sent.append(message)

        session = SimpleNamespace(constants=bytes(32))
        call = SimpleNamespace(write=write)
        stream: Any = SimpleNamespace(session=session, writing=asyncio.Lock(), call=call)
        picture = Image.new("RGB", (40, 40))
        for id in (b"12345678", b"another0"):
            crops.hold(id, picture)
            for left in (0, 0, 500):
                part = pb.CropWanted(left=left, top=0, right=left + 500, bottom=700, max_bytes=4000)
                await crops._answer(stream, pb.InferEvent(request_id=id, crop_wanted=part))
            crops.end(id)
        assert [bool(one.crop.picture) for one in sent] == [True, True, False] * 2
        assert not crops._asked

    run(test)


def test_pictures_are_held_within_the_bound_the_newest_ones() -> None:
    crops = _crops(memory_bytes=4 * 300)
    pictures = [Image.new("RGB", (10, 10)) for _ in range(6)]
    for number, picture in enumerate(pictures):
        crops.hold(b"a%d" % number, picture)
        crops.hold(b"b%d" % number, picture)  # another question about it takes no more
        assert crops.bytes <= 4 * 300
    assert crops.bytes == 4 * 300
    for number in range(6):
        crops.end(b"a%d" % number)
        crops.end(b"b%d" % number)
    assert crops.bytes == 0 and not crops._held


@pytest.mark.quick(1)
def test_a_crop_keeps_within_its_bytes_or_is_not_sent() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    picture = Image.fromarray(noise)
    for most in (100_000, 5_000, 1_000):
        file = crop_file(picture, Box(0, 0, 500, 500), most)
        assert 0 < len(file) <= most
    assert crop_file(picture, Box(0, 0, 500, 500), 10) == b""
    whole = Image.open(io.BytesIO(crop_file(picture, Box(0, 0, 1000, 1000), 1 << 20)))
    assert whole.size == (800, 600)


def test_what_a_picture_says_about_itself_stays_here() -> None:
    picture = Image.new("RGB", (40, 40), (9, 99, 9))
    picture.info = {"exif": b"where it was taken", "icc_profile": b"which camera"}
    assert b"taken" not in (file := crop_file(picture, Box(0, 0, 1000, 1000), 4000))
    assert b"EXIF" not in file and b"ICCP" not in file
