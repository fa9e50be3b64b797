"""The measuring client must count what an agent would send, and give up no request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.compare.wire import Service, Shot
from protos.errors import OverloadedError, QuestionError
from protos.limits import Limits
from reference.demo.relay import Relay
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import LAYOUT, make_encoder, state_of


@pytest.fixture
def bridge() -> Iterator[FakeBridge]:
    """A bridge in a thread with a loop of its own, as a server in another process would be."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    fake = FakeBridge(make_encoder(), limits=Limits(max_in_flight=4))
    asyncio.run_coroutine_threadsafe(fake.start(), loop).result(20)
    yield fake
    asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


def shots(count: int) -> list[Shot]:
    encoder = make_encoder()
    point = encoder.points[0]
    made = []
    for i in range(count):
        encoded = encoder.encode(state_of(Image.new("RGB", (9, 9), (i, 2, 3))), point)
        made.append(Shot(point.index, encoded.payload, encoded.kept, encoded.distortion))
    return made


def test_answers_come_in_the_order_of_the_requests(bridge: FakeBridge, tmp_path: Path) -> None:
    with Service(bridge.address, LAYOUT, tmp_path) as service:
        replies = service.infer(shots(9), [f"q{i} ?" for i in range(9)], in_flight=99)
    assert [r.text for r in replies] == [f"about q{i} ?" for i in range(9)]
    assert replies[0].timings_ms["ttft"] == 1.5
    assert bridge.most_in_flight <= 4


def test_scenes_that_are_held_can_be_asked_about(bridge: FakeBridge, tmp_path: Path) -> None:
    done: list[None] = []
    with Service(bridge.address, LAYOUT, tmp_path) as service:
        held = service.hold(shots(3))
        numbers = [held[0].frame_number, held[2].frame_number]
        replies = service.ask(numbers, ["a ?", "b ?"], done=lambda: done.append(None))
    assert [r.text for r in replies] == ["about a ?", "about b ?"]
    assert len(done) == 2
    assert not bridge.computed


def test_a_refusal_that_can_pass_is_sent_again(bridge: FakeBridge, tmp_path: Path) -> None:
    bridge.refusals = {"q ?": [OverloadedError("later")]}
    with Service(bridge.address, LAYOUT, tmp_path) as service:
        assert service.infer(shots(1), ["q ?"])[0].text == "about q ?"


def test_a_refusal_that_cannot_pass_stops_the_measurement(
    bridge: FakeBridge, tmp_path: Path
) -> None:
    bridge.refusals = {"q ?": [QuestionError("no")]}
    with (
        Service(bridge.address, LAYOUT, tmp_path) as service,
        pytest.raises(QuestionError, match="no"),
    ):
        service.infer(shots(1), ["q ?"])


def test_bytes_at_the_relay_are_the_messages_and_little_more(
    bridge: FakeBridge, tmp_path: Path
) -> None:
    with Relay(bridge.address) as relay, Service(relay.address, LAYOUT, tmp_path) as service:
        service.hold(shots(1))
        before = relay.counts()
        replies = service.hold(shots(20), in_flight=1)
        spent = (relay.counts() - before).uplink_bytes
    messages = sum(r.message_bytes for r in replies)
    assert messages < spent < messages + 20 * 25  # no window updates: events come elsewhere
    assert bridge.fetches == 1


def test_a_picture_travels_without_a_grid(bridge: FakeBridge, tmp_path: Path) -> None:
    shot = Shot.of_picture(b"not checked by the fake")
    assert shot.kept.dtype == np.bool_
    with Service(bridge.address, LAYOUT, tmp_path) as service:
        assert service.infer([shot], ["q ?"])[0].text == "about q ?"
