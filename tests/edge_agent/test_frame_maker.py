"""One capture to its frames: what is made once, and what is made again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edge_agent.frame_maker import FrameMaker
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.sources import Capture
from edge_agent.uplink.session import Base
from protos.errors import ContextError, FrameTooLargeError, PictureError
from protos.limits import Limits
from tests.fakes.fake_edge import FakeModel, make_session


def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def maker(plan: Plan | None = None, model: FakeModel | None = None, seed: int = 0) -> FrameMaker:
    capture = Capture("a", picture(seed), 1.0)
    return FrameMaker(capture, model or FakeModel(), plan or Plan(), Metrics())


def test_a_capture_is_seen_once_and_coded_once_at_each_point() -> None:
    model = FakeModel()
    made, session = maker(model=model), make_session()
    assert made.sight is None
    frame = made.frame(session, "one question")
    assert made.frame(session, "another").payload is frame.payload
    session.advised = "low"
    assert made.frame(session).point.name == "low"
    session.advised = "fp8"
    assert made.frame(session).payload is frame.payload
    assert made.edge_answer("q")[0] == "edge q"
    assert model.seen == 1 and made.sight is not None


def test_another_encoder_codes_it_again_from_the_same_state() -> None:
    model = FakeModel()
    made, session = maker(model=model), make_session()
    first = made.frame(session)
    other = replace(session.encoder, centre=session.encoder.centre + 1)
    second = made.frame(make_session(encoder=other, encoder_digest="4" * 64))
    assert first.payload != second.payload and model.seen == 1


def test_deltas_are_sent_only_where_the_plan_says_so_and_never_where_a_key_is_asked_for() -> None:
    session = make_session(advised="low")
    held = maker().frame(session).held
    assert held is not None
    session.next_frame(0.0)
    session.accepted(Base(0, held))
    assert maker(Plan(delta=True)).frame(session).base == 0
    assert maker(Plan(delta=True)).frame(session, key=True).base is None
    assert maker(Plan()).frame(session).base is None


def test_a_payload_over_the_servers_limit_is_refused_before_it_is_sealed() -> None:
    with pytest.raises(FrameTooLargeError, match="server takes 3"):
        maker().frame(make_session(limits=Limits(max_payload_bytes=3)))


def test_a_text_is_never_sent_as_a_picture_and_nothing_is_made_of_a_failed_capture() -> None:
    text = FrameMaker(
        Capture("t", None, 1.0, text="words"), FakeModel(), Plan("picture"), Metrics()
    )
    with pytest.raises(ContextError, match="t is a text"):
        text.frame(make_session())
    with pytest.raises(PictureError, match="torn"):
        FrameMaker(
            Capture("b", None, 1.0, error=PictureError("torn")), FakeModel(), Plan(), Metrics()
        )


def test_what_is_counted_is_what_goes() -> None:
    metrics = Metrics()
    made = FrameMaker(Capture("a", picture(), 1.0), FakeModel(), Plan(), metrics)
    frame = made.frame(make_session())

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value("neural_bridge_edge_" + name, labels)

    assert not value("kept_tokens_count")
    made.count(frame)
    assert value("kept_tokens_sum") == frame.kept_tokens == 9
    assert value("payload_bytes_sum", point="fp8") == len(frame.payload)
    assert value("frames_coded_total", kind="key") == 1
