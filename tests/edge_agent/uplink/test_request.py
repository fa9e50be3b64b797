"""Requests: what they carry, and what is refused before it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edge_agent.frame_maker import FrameMaker
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.sources import Capture
from edge_agent.uplink.request import Request
from protos.errors import (
    MissingKeyFrameError,
    QuestionError,
    QuestionTooLongError,
)
from protos.header import unpack_header
from protos.limits import Limits
from tests.edge_agent.uplink.traffic import (
    assert_one_answer_each,
    bridge,
    deliver_all,
    requests,
    run,
)
from tests.fakes.fake_edge import FakeModel, fake_uplink

pytestmark = pytest.mark.usefixtures("connections")


def test_a_question_that_cannot_be_sent_is_refused_before_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(limits=Limits(max_question_bytes=20)) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            long = (await deliver_all(uplink, requests(1, question="ü" * 11)))[0]
            blank = (await deliver_all(uplink, requests(1, question="  ")))[0]
            half = (await deliver_all(uplink, requests(1, question="\udcff")))[0]
            assert isinstance(long.error, QuestionTooLongError)
            assert isinstance(blank.error, QuestionError)
            assert isinstance(half.error, QuestionError)
            assert not served.requests
            await uplink.close()

    run(test)


def test_without_the_settings_point_a_frame_goes_at_the_servers_default(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            outcome = (await deliver_all(uplink, requests(1, Plan(point="lw"))))[0]
            assert outcome.error is None and outcome.sealed is not None
            assert outcome.sealed.frame.point.name == uplink.connection.latest.default_point  # type: ignore[union-attr]
            await uplink.close()

    run(test)


@pytest.mark.quick(2)
@pytest.mark.parametrize("point", ["fp8", "low", "raw_kv_fp8", "picture"])
def test_every_kind_of_point_arrives_intact(tmp_path: Path, point: str) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink, items = fake_uplink(served.dial, tmp_path), requests(2, Plan(point=point))
            outcomes = await deliver_all(uplink, items)
            assert_one_answer_each(outcomes, items)
            sealed = outcomes[0].sealed
            assert sealed is not None and sealed.frame.point.name == point
            expected = {"fp8": 9, "low": 4, "raw_kv_fp8": 9, "picture": 0}[point]
            assert sealed.frame.kept_tokens == expected
            await uplink.close()

    run(test)


def test_a_still_camera_sends_deltas_and_a_key_frame_when_the_base_is_lost(tmp_path: Path) -> None:
    async def test() -> None:
        refusals = {"q4": [MissingKeyFrameError("frame 3 is not held")]}
        async with bridge(refusals=refusals) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            model, metrics, picture = FakeModel(), Metrics(), Image.new("RGB", (9, 9), (1, 2, 3))
            headers = []
            for number in range(6):
                maker = FrameMaker(
                    Capture("c", picture, 1.0), model, Plan("low", delta=True), metrics
                )
                item = Request(f"q{number}", maker)
                outcome = await uplink.deliver(item)
                assert outcome.error is None and outcome.sealed is not None
                frame = outcome.sealed.message.frame
                headers.append(unpack_header(frame.header, frame.payload)[0])
                assert outcome.attempts == (2 if number == 4 else 1)
            # The fifth was a delta to the fourth, came back, and went again as a key frame.
            assert [header.frame_number for header in headers] == [0, 1, 2, 3, 5, 6]
            assert [header.base for header in headers] == [None, 0, 1, 2, None, 5]
            assert [header.kept_tokens for header in headers] == [4, 1, 1, 1, 4, 1]
            value = metrics.registry.get_sample_value
            coded = "neural_bridge_edge_frames_coded_total"
            assert value(coded, {"kind": "key"}) == 2 and value(coded, {"kind": "delta"}) == 5
            await uplink.close()

    run(test)
