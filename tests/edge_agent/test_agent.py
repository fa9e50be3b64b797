"""The run as a whole: one record for every question, whatever fails."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent.agent import Agent
from edge_agent.metrics import Metrics
from edge_agent.output import Answered
from edge_agent.plan import Plan
from edge_agent.record import AnswerRecord
from edge_agent.sources import Capture
from edge_agent.uplink.point_controller import PointController
from protos.errors import (
    BridgeError,
    ConfigError,
    ContextError,
    FrameCorruptError,
    FrameMalformedError,
    IncompatibleLayoutError,
    OverloadedError,
    PictureError,
)
from protos.neuralbridge.v1 import bridge_pb2
from protos.points import Measured
from protos.process import logs
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, fake_uplink, make_encoder
from tests.fakes.fake_run import Captures, Run, capture, nothing


@pytest.mark.parametrize("ask_mode", [False, True])
def test_every_question_about_every_capture_gets_one_record(tmp_path: Path, ask_mode: bool) -> None:
    run = Run([capture(name) for name in "abc"], tmp_path, questions=("x", "y"), ask_mode=ask_mode)
    summary = run()
    assert (summary.captures, summary.questions, summary.answered) == (3, 6, 6)
    assert {(r.capture, r.question, r.answer) for r in run.records} == {
        (c, q, f"about {q}") for c in "abc" for q in "xy"
    }
    assert len({r.request_id for r in run.records}) == 6
    assert run.model.seen == 3
    assert run.ended == 3
    assert len(run.served.requests) == (3 if ask_mode else 6)
    record = run.records[0]
    assert (record.point, record.tokens, record.kept_tokens) == ("fp8", 9, 9)
    assert record.payload_bytes == 36 and record.message_bytes > 36 - 36 * ask_mode
    assert set(record.edge_ms) == {"prefill", "select", "encode", "uplink"}
    assert 0 < record.distortion["quantize"] < 0.1
    assert run.value("answers_total") == 6
    assert run.value("queue_depth") == 0


def test_a_bad_picture_is_one_record_and_the_run_goes_on(tmp_path: Path) -> None:
    bad = Capture("b", None, 7.0, error=PictureError("b is not a picture"))
    run = Run([capture("a"), bad, capture("pixel", 1), capture("c")], tmp_path, questions=("x",))
    summary = run()
    assert (summary.captures, summary.answered, summary.failed) == (4, 2, 2)
    assert isinstance(summary.first_error, PictureError)
    failed = {r.capture: r for r in run.records if r.error}
    assert set(failed) == {"b", "pixel"}
    assert failed["b"].error == {"code": 103, "name": "picture", "message": "b is not a picture"}
    assert run.ended == 4
    assert run.value("capture_errors_total", error="picture") == 2


def test_a_source_that_hands_out_undecoded_pictures_may_hand_out_a_damaged_one(
    tmp_path: Path,
) -> None:
    whole = io.BytesIO()
    Image.effect_noise((99, 99), 60).save(whole, "PNG")
    half = Image.open(io.BytesIO(whole.getvalue()[:4000]))
    items = [capture("a"), Capture("half", half, 7.0), capture("c")]
    run = Run(items, tmp_path, questions=("x", "y"))
    summary = run()
    assert (summary.captures, summary.answered, summary.failed) == (3, 4, 1)
    assert isinstance(summary.first_error, PictureError)


def test_a_text_among_pictures_is_one_record_at_the_picture_point_too(tmp_path: Path) -> None:
    text = Capture("notes.txt", None, 7.0, text="three cars")
    plan = Plan(point="picture")
    run = Run([capture("a"), text, capture("c")], tmp_path, questions=("x",), plan=plan)
    summary = run()
    assert (summary.captures, summary.answered, summary.failed) == (3, 2, 1)
    assert isinstance(summary.first_error, ContextError)
    assert summary.first_error.message.startswith("notes.txt is a text")


def test_a_captures_own_questions_are_asked_where_none_is_configured(tmp_path: Path) -> None:
    run = Run([capture("a", questions=("own1", "own2")), capture("b", questions=("x",))], tmp_path)
    run()
    assert sorted(r.question for r in run.records) == ["own1", "own2", "x"]


def test_a_capture_with_nothing_to_ask_about_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --question"):
        Run([capture("a")], tmp_path)()


def test_the_edge_answers_too_where_asked(tmp_path: Path) -> None:
    run = Run([capture("a")], tmp_path, questions=("x",), edge_only_too=True)
    run()
    assert (run.records[0].answer, run.records[0].edge_answer) == ("about x", "edge x")
    assert run.records[0].fallback == "" and "edge_only" in run.records[0].edge_ms


@pytest.mark.parametrize(
    ("error", "cause"),
    [(FrameCorruptError("digest"), "corrupt"), (OverloadedError("full"), "offline")],
)
def test_the_edge_answers_instead_with_the_cause_where_allowed(
    tmp_path: Path, error: BridgeError, cause: str
) -> None:
    run = Run(
        [capture("a")],
        tmp_path,
        questions=("x",),
        edge_fallback=True,
        refusals={"x": [error] * 99},
    )
    summary = run()
    record = run.records[0]
    assert (record.answer, record.edge_answer, record.fallback) == (None, "edge x", cause)
    assert record.error is not None and record.error["code"] == error.code
    assert (summary.fallbacks, summary.failed, summary.first_error) == (1, 0, None)


def test_a_refused_question_is_reported_with_its_reason(tmp_path: Path) -> None:
    run = Run(
        [capture("a"), capture("b")],
        tmp_path,
        questions=("x",),
        refusals={"x": [FrameMalformedError("no such point")]},
    )
    summary = run()
    assert (summary.answered, summary.failed) == (1, 1)
    assert run.value("refusals_total", reason="frame_malformed") == 1


def test_a_point_that_the_server_lacks_ends_the_run_before_a_picture_is_read(
    tmp_path: Path,
) -> None:
    for plan in (Plan(point="nope"), Plan(selector="nope")):
        run = Run([capture("a")], tmp_path, questions=("x",), plan=plan)
        with pytest.raises(ConfigError):
            run()
        assert run.source.taken == 0


def test_an_incompatible_server_ends_the_run(tmp_path: Path) -> None:
    run = Run(
        [capture("a")],
        tmp_path,
        questions=("x",),
        negotiate_error=IncompatibleLayoutError("no bundle"),
    )
    with pytest.raises(IncompatibleLayoutError):
        run()


def test_the_picture_point_does_not_run_the_small_model(tmp_path: Path) -> None:
    run = Run([capture("a")], tmp_path, questions=("x",), plan=Plan(point="picture"))
    run()
    assert run.model.seen == 0
    assert (run.records[0].point, run.records[0].kept_tokens) == ("picture", 0)
    assert run.records[0].payload_bytes > 0


def test_the_source_is_read_no_faster_than_frames_end(tmp_path: Path) -> None:
    run = Run(
        [capture(f"{i}") for i in range(20)],
        tmp_path,
        in_flight=2,
        questions=("x",),
        refusals={"x": [OverloadedError("full")] * 5},
    )
    open_frames: list[int] = []
    run.on_record = lambda r: open_frames.append(run.source.taken - len(open_frames))
    assert run().answered == 20
    # Two in flight, one seen and waiting for its place, and the one whose record this is.
    assert max(open_frames) <= 4
    assert run.served.most_in_flight <= 2


def test_a_stopped_run_ends_what_is_in_flight_and_takes_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        served = FakeBridge(make_encoder())
        await served.start()
        records: list[AnswerRecord] = []
        source = Captures([capture(f"{i}") for i in range(50)])

        def on_record(record: AnswerRecord) -> None:
            records.append(record)
            agent.stop()

        agent = Agent(
            source,
            FakeModel(),
            fake_uplink(served.dial, tmp_path, in_flight=2),
            Plan(),
            on_record,
            Metrics(),
            logs.configure("error"),
            questions=("x",),
        )
        summary = await agent.run()
        await served.stop()
        assert summary.captures == len(records) < 50
        assert all(r.answer for r in records)

    asyncio.run(asyncio.wait_for(test(), 30))


def test_what_an_earlier_run_answered_is_left_out(tmp_path: Path) -> None:
    items = [capture(name) for name in "abc"]
    asked = ((items[0], "x"), (items[0], "y"), (items[1], "y"))
    done = Answered(frozenset((one.name, q, one.content) for one, q in asked))
    run = Run(items, tmp_path, questions=("x", "y"), done=done)
    summary = run()
    assert {(r.capture, r.question) for r in run.records} == {("b", "x"), ("c", "x"), ("c", "y")}
    assert (summary.captures, summary.answered, run.ended, run.model.seen) == (3, 3, 3, 2)


def test_connecting_goes_on_though_every_request_is_given_up_meanwhile(tmp_path: Path) -> None:
    """An objective shorter than it takes to connect must not keep the agent from connecting."""

    async def test() -> None:
        served = FakeBridge(make_encoder())
        await served.start()
        uplink = fake_uplink(served.dial, tmp_path)
        connect, slow, records = uplink.connection._connect, [0.0], list[AnswerRecord]()

        async def later(*way: Any) -> Any:
            await asyncio.sleep(slow[0])
            return await connect(*way)

        uplink.connection._connect = later  # type: ignore[method-assign]

        class Endless(Captures):
            def __iter__(self) -> Iterator[Capture]:
                while len(records) < 200 and not back():
                    yield self.items[0]

        def back() -> bool:
            """Whether one was answered after one that met no connection."""
            away = next((i for i, r in enumerate(records) if r.fallback == "offline"), len(records))
            return any(r.answer for r in records[away:])

        async def cut() -> None:
            while not records:
                await asyncio.sleep(0.001)
            slow[0] = 0.5
            served.sessions.clear()
            assert uplink.connection.stream is not None
            uplink.connection.stream.call.cancel()

        agent = Agent(
            Endless([capture("a")]),
            FakeModel(),
            uplink,
            Plan(),
            records.append,
            Metrics(),
            logs.configure("error"),
            questions=("x",),
            edge_fallback=True,
            controller=PointController(latency_s=0.2),
        )
        trouble = asyncio.create_task(cut())
        await agent.run()
        await trouble
        await served.stop()
        assert records[0].answer and back()
        assert 2 <= served.negotiations <= 3, "one connection serves all who wait"

    asyncio.run(asyncio.wait_for(test(), 30))


def test_with_the_fallback_a_run_starts_without_a_server(tmp_path: Path) -> None:
    run = Run([capture("a")], tmp_path, questions=("x",), edge_fallback=True)
    run.served.negotiate_error = OverloadedError("full")
    summary = run()
    assert (summary.answered, summary.fallbacks, summary.failed) == (0, 1, 0)
    assert run.records[0].fallback == "offline"


def test_an_answer_that_comes_after_the_objective_is_the_small_models_and_marked_late(
    tmp_path: Path,
) -> None:
    run = Run(
        [capture("a")],
        tmp_path,
        questions=("x",),
        edge_fallback=True,
        controller=PointController(latency_s=0.05),
        gate=asyncio.Event(),
    )
    summary = run()
    assert (summary.answered, summary.fallbacks, summary.failed) == (0, 1, 0)
    record = run.records[0]
    assert (record.answer, record.edge_answer, record.fallback) == (None, "edge x", "late")
    assert record.error is not None and record.error["name"] == "late"


@pytest.mark.parametrize(
    ("limit", "said"), [(0.01, "no operating point is within the distortion limit"), (0.2, "")]
)
def test_a_limit_that_no_point_keeps_to_is_said_once(
    tmp_path: Path, limit: float, said: str
) -> None:
    run = Run(
        [capture("a"), capture("b")],
        tmp_path,
        questions=("x",),
        controller=PointController(None, limit),
    )
    fp8, *rest = run.served.encoder.points
    fp8 = replace(fp8, measured=Measured(36, 100, 0.93, 0.02, 0.0))
    run.served.encoder = replace(run.served.encoder, points=(fp8, *rest))
    run()
    logged = [json.loads(line) for line in run.logged.getvalue().splitlines()]
    unmet = [one["cause"] for one in logged if one["event"] == "limits_unmet"]
    assert len(unmet) == bool(said) and all(cause.startswith(said) for cause in unmet)


def test_the_distortion_limit_moves_the_agent_off_the_servers_default(tmp_path: Path) -> None:
    run = Run(
        [capture("a")], tmp_path, questions=("x",), controller=PointController(distortion=0.2)
    )
    encoder = run.served.encoder
    fp8, low, raw = encoder.points
    low = replace(low, measured=Measured(4, 60, 0.90, 0.3, 0.1))
    fp8 = replace(fp8, measured=Measured(36, 100, 0.93, 0.02, 0.0))
    run.served.encoder = replace(encoder, points=(low, fp8, raw))
    run()
    assert run.records[0].point == "fp8"


def test_a_picture_that_shows_nothing_is_warned_of_in_record_log_and_metrics(
    tmp_path: Path,
) -> None:
    captures = [nothing("flat"), capture("yard"), nothing("line", (2, 200))]
    run = Run(captures, tmp_path, questions=("x", "y"))
    summary = run()
    assert summary.answered == 6, "by default nothing follows from it"
    warned = {record.capture: record.warnings for record in run.records}
    assert warned == {"flat": ("degenerate",), "yard": (), "line": ("degenerate",)}
    assert json.loads(run.records[0].to_json())["warnings"] == list(run.records[0].warnings)
    assert run.value("warnings_total", cause="degenerate") == 2, "once a capture"
    logged = [json.loads(line) for line in run.logged.getvalue().splitlines()]
    said = {one["capture"]: one["cause"] for one in logged if one["event"] == "degenerate"}
    assert said["flat"] == "one flat colour" and said["line"].startswith("2 x 200 pixels")


def test_a_source_that_gives_deep_samples_gets_an_error_not_a_white_picture(tmp_path: Path) -> None:
    deep = Capture("deep", Image.new("I;16", (9, 9), 4095), 7.0)
    clear = Capture("clear", Image.new("RGBA", (9, 9), (0, 0, 0, 0)), 7.0)
    run = Run([deep, clear], tmp_path, questions=("x",))
    run()
    found = {record.capture: record for record in run.records}
    assert found["deep"].error is not None and found["deep"].error["name"] == "picture"
    assert found["clear"].error is None and found["clear"].warnings == ("degenerate",)


# ---------------------------------------------------------------------- holding without questions


def test_in_hold_mode_each_capture_is_held_once_and_nothing_is_asked(tmp_path: Path) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    items = [capture(name, questions=("own",)) for name in ("a", "bb", "ccc")]
    run = Run(items, tmp_path, questions=("x",), hold_every_s=60.0, sleep=sleep)
    summary = run()
    assert (summary.captures, summary.questions, summary.answered) == (3, 3, 3)
    assert [(r.capture, r.question, r.answer, r.error) for r in run.records] == [
        (item.name, "", None, None) for item in items
    ]
    assert len(run.served.scenes) == 3 and not run.served.computed and not run.served.asked
    assert run.value("scenes_held_total") == 3 and run.value("answers_total") == 0
    assert len(pauses) == 3 and all(0 < pause <= 60 for pause in pauses)


def test_in_hold_mode_the_next_capture_is_taken_only_when_the_one_before_is_held(
    tmp_path: Path,
) -> None:
    """After an outage the newest capture travels, not a queue of old ones."""

    async def sleep(seconds: float) -> None:
        return

    run = Run([capture("a"), capture("bb")], tmp_path, hold_every_s=1.0, sleep=sleep)
    taken: list[int] = []
    run.on_record = lambda record: taken.append(run.source.taken)
    run.served.gate = asyncio.Event()

    async def free() -> None:
        while not run.served.requests:
            await asyncio.sleep(0.001)
        assert run.source.taken == 1
        assert run.served.gate is not None
        run.served.gate.set()

    start = run.served.start

    async def started() -> None:
        await start()
        run.freeing = asyncio.create_task(free())  # type: ignore[attr-defined]

    run.served.start = started  # type: ignore[method-assign]
    run()
    assert taken == [1, 2]


def test_stop_ends_the_wait_for_the_next_capture(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def sleep(seconds: float) -> None:
        agents[0].stop()
        await never.wait()

    agents: list[Agent] = []
    run = Run([capture("a"), capture("bb")], tmp_path, hold_every_s=3600.0, sleep=sleep)
    run.watch = agents.append
    assert run().captures == 1


def test_in_hold_mode_a_refused_frame_is_one_record_and_the_run_goes_on(tmp_path: Path) -> None:
    async def sleep(seconds: float) -> None:
        return

    run = Run(
        [capture("a"), capture("bb")],
        tmp_path,
        hold_every_s=1.0,
        sleep=sleep,
        edge_fallback=True,
        refusals={"": [FrameMalformedError("no")]},
    )
    summary = run()
    assert (summary.answered, summary.failed) == (1, 1)
    assert [r.edge_answer for r in run.records] == [None, None], "there is no question to answer"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_request_carries_its_priority(tmp_path: Path, number: int) -> None:
    run = Run([capture("a")], tmp_path, questions=("x",), plan=Plan(priority=number))
    run()
    (raw,) = next(iter(run.served.messages.values()))
    assert bridge_pb2.InferRequest.FromString(raw).priority == number
