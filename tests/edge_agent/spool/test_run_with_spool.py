"""An agent with a spool: frames outlive outages, restarts and crashes; each has one record."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent.plan import Plan
from edge_agent.sources import Capture
from protos.calls import PRIORITIES
from protos.errors import (
    DiskFullError,
    FrameMalformedError,
    IncompatibleLayoutError,
    MissingKeyFrameError,
    OverloadedError,
    SpoolError,
)
from protos.requests import parse_infer_request
from tests.fakes.fake_bridge import FakeBridge, digest_of
from tests.fakes.fake_edge import make_encoder
from tests.fakes.fake_run import Captures, capture
from tests.fakes.fake_spool import SpoolRun, nowhere, with_server

ALARM = PRIORITIES.index("alarm")


def names(records: list[dict[str, Any]]) -> Counter[str]:
    return Counter(record["capture"] for record in records if record["error"] is None)


def captures(names: str) -> list[Capture]:
    return [capture(name) for name in names]


async def spooled(folder: Path, items: list[Capture], **settings: Any) -> SpoolRun:
    """An agent that has met the service once, makes these frames without it, and is stopped."""
    plan = settings.pop("plan", Plan())
    away = SpoolRun(folder, nowhere, **settings)
    made = lambda: away.agent.summary.captures == len(items) and not away.waits  # noqa: E731
    await away.until(items, made, plan=plan)
    return away


def test_every_capture_is_answered_once_and_the_spool_is_empty(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        run = SpoolRun(tmp_path, served.dial)
        summary = await run.run(captures("abcdef"))
        assert (summary.captures, summary.answered, summary.failed) == (6, 6, 0)
        assert names(run.records) == Counter("abcdef")
        assert run.value("spool_frames") == 0 == run.value("spool_bytes")
        record = run.records[0]
        assert (record["answer"], record["attempts"], record["point"]) == ("about x", 1, "fp8")
        assert record["edge_ms"]["prefill"] > 0 and record["edge_ms"]["uplink"] > 0
        assert record["distortion"]["quantize"] > 0 and record["payload_bytes"] == 36

    with_server(test, FakeBridge(make_encoder()))


def test_frames_made_without_a_network_are_answered_after_a_restart(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("0"))
        away = await spooled(tmp_path, captures("abcde"))
        assert away.agent.summary.answered == 0 and away.value("spool_frames") == 5
        back = SpoolRun(tmp_path, served.dial)
        summary = await back.run(captures("f"))
        assert (summary.captures, summary.answered) == (1, 6)
        assert names(back.records) == Counter("0abcdef")
        assert len({record["request_id"] for record in back.records}) == 7
        assert served.negotiations == 1  # the session outlived the agent

    with_server(test, FakeBridge(make_encoder()))


def test_frames_keep_their_ids_when_the_service_forgot_their_session(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("0"))
        away = await spooled(tmp_path, captures("abc"))
        ids = {stored.record.request_id for stored in away.stored()}
        await served.restart()
        back = SpoolRun(tmp_path, served.dial)
        await back.run([])
        assert names(back.records) == Counter("0abc")
        assert {record["request_id"] for record in back.records[1:]} == ids
        assert served.negotiations == 2

    with_server(test, FakeBridge(make_encoder()))


def test_an_agent_that_ends_before_its_answer_gets_it_from_the_services_memory(
    tmp_path: Path,
) -> None:
    """The frame was sent, and answered, but the agent was gone: it is not computed again."""

    async def test(served: FakeBridge) -> None:
        served.gate = asyncio.Event()
        run = SpoolRun(tmp_path, served.dial)
        sent = lambda: len(served.requests) == 3  # noqa: E731
        run.grace_s = 0.0
        await run.until(captures("abc"), sent)
        assert run.records == []
        served.gate.set()
        back = SpoolRun(tmp_path, served.dial)
        await back.run(captures("d"))
        assert names(back.records) == Counter("abcd")
        assert served.negotiations == 1
        assert max(served.computed_ids.values()) == 1

    with_server(test, FakeBridge(make_encoder(), remembers=True))


def test_a_frame_whose_record_was_written_is_not_sent_again(tmp_path: Path) -> None:
    """Power went between the record and the removal of the row."""

    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("0"))
        away = await spooled(tmp_path, captures("ab"))
        first = next(iter(away.stored())).record
        with away.output.open("a") as file:
            file.write(first.to_json() + "\n")
        before = len(served.requests)
        back = SpoolRun(tmp_path, served.dial)
        await back.run([])
        assert len(served.requests) - before == 1
        assert Counter(record["capture"] for record in back.records) == Counter("0ab")

    with_server(test, FakeBridge(make_encoder()))


def test_a_device_that_never_met_a_service_waits_and_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        run = SpoolRun(tmp_path, nowhere)
        said = lambda: "waiting_for_terms" in run.logged.getvalue()  # noqa: E731
        summary = await run.until(captures("abc"), said)
        assert summary.captures == 0

    asyncio.run(test())


def test_a_service_that_refuses_the_model_later_costs_no_frame(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("0"))
        await served.restart()
        served.negotiate_error = IncompatibleLayoutError("no bundle for this model")
        run = SpoolRun(tmp_path, served.dial)
        told = lambda: "not_served" in run.logged.getvalue() and not run.waits  # noqa: E731
        summary = await run.until(captures("abc"), told)
        assert (summary.captures, summary.failed) == (3, 0)
        served.negotiate_error = None
        back = SpoolRun(tmp_path, served.dial)
        await back.run([])
        assert names(back.records) == Counter("0abc")

    with_server(test, FakeBridge(make_encoder()))


def test_a_final_refusal_ends_a_frame_and_a_passing_one_does_not(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        run = SpoolRun(tmp_path, served.dial, in_flight=1)
        await run.run(captures("ab"))
        assert [record["error"] and record["error"]["name"] for record in run.records] == [
            "frame_malformed",
            None,
        ]
        assert run.value("spool_frames") == 0

    refusals = {"x": [OverloadedError("full"), FrameMalformedError("no such point")]}
    with_server(test, FakeBridge(make_encoder(), refusals=refusals))


def test_frames_end_on_the_bundle_that_they_began_with(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("0"))
        await spooled(tmp_path, captures("abc"))
        served.retired[digest_of("bundle")] = served.encoder
        served.encoder, served.bundle = make_encoder(seed=1), "newer"
        await served.restart()
        back = SpoolRun(tmp_path, served.dial)
        await back.run(captures("d"))
        assert names(back.records) == Counter("0abcd")
        on = {served.bundles[session] for session, _, _ in served.requests[1:]}
        assert on == {digest_of("bundle"), digest_of("newer")}

    with_server(test, FakeBridge(make_encoder()))


def test_frames_of_a_bundle_that_is_gone_end_with_that_cause_and_later_ones_go_on(
    tmp_path: Path,
) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("0"))
        await spooled(tmp_path, captures("abc"))
        served.encoder, served.bundle = make_encoder(seed=1), "newer"
        await served.restart()
        back = SpoolRun(tmp_path, served.dial)
        summary = await back.run(captures("d"))
        assert summary.failed == 3 and names(back.records) == Counter("0d")
        gone = [record["error"]["name"] for record in back.records if record["error"]]
        assert gone == ["bundle_gone"] * 3
        assert back.value("refusals_total", reason="bundle_gone") == 3

    with_server(test, FakeBridge(make_encoder()))


def test_a_delta_frame_that_waited_travels_as_a_key_frame_where_its_base_is_gone(
    tmp_path: Path,
) -> None:
    def like(name: str, pixel: int) -> Capture:
        picture = Image.new("RGB", (9, 9), (7, 5, 6))
        picture.putpixel((8, 0), (pixel, 5, 6))
        return Capture(name, picture, 7.0)

    async def test(served: FakeBridge) -> None:
        plan = Plan(point="low", delta=True)
        run = SpoolRun(tmp_path, served.dial, in_flight=1)

        def source() -> Any:
            yield like("a", 9)
            while not run.records:  # its frame is the base of the next one
                time.sleep(0.01)
            served.gate = asyncio.Event()  # the next one is sent, and gets no answer
            yield like("b", 9)

        sent = lambda: len(served.requests) == 2  # noqa: E731
        run.grace_s = 0.0
        await run.until(Walk(source), sent, plan=plan)
        assert run.value("frames_coded_total", kind="delta") == 1
        (stored,) = run.stored()
        assert stored.key and stored.key != stored.message
        served.gate, served.refusals = None, {"x": [MissingKeyFrameError("the base is gone")]}
        back = SpoolRun(tmp_path, served.dial)
        await back.run([], plan=plan)
        assert names(back.records) == Counter("ab")
        kinds = [parse_infer_request(raw).header.base for raw in served.raw]
        assert kinds == [None, 0, 0, None]  # a, b as it was, b again, b as a key frame
        assert len({request_id for _, request_id, _ in served.requests}) == 2

    with_server(test, FakeBridge(make_encoder()))


def test_alarms_go_before_all_others_after_an_outage(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("0"))
        items = captures("abcdef")
        items.append(Capture("alarm", items[0].picture, 7.0, priority=ALARM))
        await spooled(tmp_path, items)
        back = SpoolRun(tmp_path, served.dial, in_flight=1)
        await back.run([])
        assert back.records[1]["capture"] == "alarm"
        assert [record["capture"] for record in back.records[2:]] == list("abcdef")

    with_server(test, FakeBridge(make_encoder()))


@pytest.mark.slow
def test_dropped_frames_are_counted_and_have_records_that_say_why(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("0"))
        plan = Plan(point="picture")
        items = [
            Capture(f"{i:03}", Image.effect_noise((300, 300), 90).convert("RGB"), 7.0)
            for i in range(70)
        ]
        away = await spooled(tmp_path, items, spool_bytes=1 << 20, plan=plan)
        dropped = [record for record in away.records if record["error"]]
        assert dropped and {record["error"]["name"] for record in dropped} == {"dropped"}
        assert away.value("spool_dropped_total", cause="full") == len(dropped)
        assert [record["capture"] for record in dropped] == sorted(r["capture"] for r in dropped)
        assert "full" in dropped[0]["error"]["message"]
        assert sum(f.stat().st_size for f in away.spool_folder.iterdir()) < 2.5 * (1 << 20)
        back = SpoolRun(tmp_path, served.dial)
        await back.run([])
        assert Counter(r["capture"] for r in back.records) == Counter(
            ["0", *(f"{i:03}" for i in range(70))]
        )

    with_server(test, FakeBridge(make_encoder()))


def test_a_second_agent_on_one_spool_is_refused(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        run = SpoolRun(tmp_path, served.dial)
        run.make([])
        with pytest.raises(SpoolError, match="another agent"):
            SpoolRun(tmp_path, served.dial).make([])
        run.close()

    with_server(test, FakeBridge(make_encoder()))


def test_a_spool_folder_that_goes_away_costs_nothing(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        run = SpoolRun(tmp_path, served.dial, in_flight=1)

        def source() -> Any:
            for name in "abcdef":
                if name == "d":
                    for file in run.spool_folder.iterdir():
                        file.unlink()
                    run.spool_folder.rmdir()
                yield capture(name)

        await run.run(Walk(source))
        assert names(run.records) == Counter("abcdef")
        assert run.value("spool_set_aside_total") == 1

    with_server(test, FakeBridge(make_encoder()))


def test_without_a_disk_frames_are_sent_from_memory(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        (tmp_path / "spool").write_text("in the way")
        run = SpoolRun(tmp_path, served.dial)
        summary = await run.run(captures("abc"))
        assert summary.answered == 3 and names(run.records) == Counter("abc")
        assert run.value("spool_failures_total", error="disk_full") == 3
        assert "spool_not_written" in run.logged.getvalue()

    with_server(test, FakeBridge(make_encoder()))


def test_resume_asks_neither_what_was_answered_nor_what_waits(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        await SpoolRun(tmp_path, served.dial).run(captures("a"))
        await spooled(tmp_path, captures("bc"))
        back = SpoolRun(tmp_path, served.dial, resume=True)
        await back.run(captures("abcd"))
        assert Counter(record["capture"] for record in back.records) == Counter("abcd")

    with_server(test, FakeBridge(make_encoder()))


def test_hold_mode_keeps_scenes_for_later_where_a_spool_is_given(tmp_path: Path) -> None:
    async def test(served: FakeBridge) -> None:
        run = SpoolRun(tmp_path, served.dial, question_mode="hold")
        await run.run(captures("abc"), questions=(), hold_every_s=0.0)
        assert [record["question"] for record in run.records] == [""] * 3
        assert len(served.scenes) == 3 and run.value("scenes_held_total") == 3

    with_server(test, FakeBridge(make_encoder()))


class Walk:
    """A source made by a generator."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Any:
        return self.make()


def test_a_record_written_while_others_are_settled_is_looked_for_after_a_crash(
    tmp_path: Path,
) -> None:
    """The place up to which records are known must not lie behind one whose row is still there."""

    async def test(served: FakeBridge) -> None:
        run = SpoolRun(tmp_path, served.dial, in_flight=1)
        agent = run.make(Captures(captures("ab")))
        assert agent.outgoing is not None
        spool, sync = agent.outgoing.spool, agent.outgoing.sync
        end, written = spool.end, threading.Event()

        def slow_sync() -> None:  # the second record comes before the first one is synced
            written.wait(10)
            sync()

        def only_the_first(ids: list[int], place: str = "") -> None:
            if 2 not in ids:
                end(ids, place)
                return
            raise DiskFullError("the power is gone")

        agent.outgoing.sync, spool.end = slow_sync, only_the_first  # type: ignore[method-assign]
        running = asyncio.create_task(agent.run())
        while len(run.records) < 2:
            await asyncio.sleep(0.01)
        written.set()
        while "power is gone" not in run.logged.getvalue():
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        run.close()
        before = len(served.requests)
        back = SpoolRun(tmp_path, served.dial)
        await back.run([])
        assert len(served.requests) == before
        assert Counter(record["capture"] for record in back.records) == Counter("ab")

    with_server(test, FakeBridge(make_encoder()))
