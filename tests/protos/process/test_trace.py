"""Traces: ids that both halves derive, which traces are kept, a collector that is gone."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import structlog

from protos.errors import ConfigError
from protos.process import trace_export
from protos.process.trace import (
    MOST_SPANS,
    UPLINK,
    Context,
    Rules,
    Trace,
    context_of,
    fresh_context,
    trace_id_of,
    uplink_context,
)
from protos.process.trace_export import Traces
from protos.process.trace_settings import TraceSettings
from tests.fakes.otlp import collector

STREAM, REQUEST = bytes(range(16)), b"12345678"
LOG = structlog.get_logger()
W3C = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_context_of_the_w3cs_own_example_is_read_and_written() -> None:
    found = context_of(W3C)
    assert found is not None
    assert found.trace.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert found.span.hex() == "00f067aa0ba902b7"
    assert found.header == W3C
    assert context_of(fresh_context().header) is not None


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "",
        W3C.upper(),
        W3C.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        W3C.replace("00f067aa0ba902b7", "0" * 16),
        W3C[:-1],
        "0" * 100_000,
    ],
)
def test_what_is_no_context_is_passed_over(header: object) -> None:
    assert context_of(header) is None


def test_both_halves_derive_the_same_ids_and_other_requests_get_others() -> None:
    agent = Trace.of_stream(STREAM, REQUEST)
    service = Trace.of_stream(STREAM, REQUEST, UPLINK)
    assert service.id == agent.id and service.parent == agent.span_id(UPLINK)
    assert uplink_context(Context(STREAM, b"x" * 8), REQUEST) == agent.context(UPLINK)
    other = Trace.of_stream(STREAM, b"12345679")
    assert other.id != agent.id and other.span_id(UPLINK) != agent.span_id(UPLINK)
    assert len(agent.id) == 16 and len(agent.span_id("a")) == 8
    assert agent.span_id("a") != agent.span_id("b")


def test_two_questions_in_one_trace_of_their_caller_have_spans_of_their_own() -> None:
    caller = context_of(W3C)
    assert caller is not None
    one, other = Trace.joined(caller, b"1" * 16), Trace.joined(caller, b"2" * 16)
    assert one.id == other.id == caller.trace and one.parent == other.parent == caller.span
    assert one.span_id("infer") != other.span_id("infer")


def test_a_trace_is_bounded_and_names_are_unique() -> None:
    trace = Trace(STREAM)
    for number in range(100):
        trace.note(f"s{number % 90}", 2, 1)
    assert len(trace.spans) == MOST_SPANS
    assert trace.spans[0].end_ns == 2  # never before its begin


@pytest.mark.parametrize(
    ("took_s", "refused", "risk", "why"),
    [
        (0.1, False, None, ""),
        (0.1, False, 0.5, ""),
        (0.1, False, 0.51, "risky"),
        (2.1, False, None, "slow"),
        (0.1, True, None, "refused"),
    ],
)
def test_slow_refused_and_risky_requests_are_kept(
    took_s: float, refused: bool, risk: float | None, why: str
) -> None:
    assert Rules(0.0, 2.0, 0.5).why(b"\xff" * 16, took_s, refused, risk) == why
    assert Rules(1.0, 2.0, 0.5).why(b"\xff" * 16, took_s, refused, risk) == (why or "share")


def test_the_share_is_kept_by_the_trace_id_alone() -> None:
    rules = Rules(0.1, 2.0, 0.5)
    ids = [trace_id_of(STREAM, number.to_bytes(8, "big")) for number in range(5000)]
    kept = [rules.why(one, 0.1, False, None) for one in ids]
    assert kept == [rules.why(one, 0.2, False, 0.1) for one in ids]
    assert 400 < kept.count("share") < 600  # 500 expected, sd 21


def settings(endpoint: str, **more: Any) -> TraceSettings:
    return TraceSettings(otlp_endpoint=endpoint, **more)


def test_a_kept_trace_arrives_with_its_ids_times_and_processes() -> None:
    counted: list[str] = []
    with collector() as heard:
        traces = Traces(settings(heard.endpoint, trace_share=0.0), "test", LOG, counted.append)
        kept, quick = Trace.of_stream(STREAM, REQUEST, UPLINK), Trace(b"\xff" * 16)
        kept.note("infer", 1_000, 9_000, attempts=2)
        kept.note("decode", 2_000, 3_000, "infer", "engine", **{"error.type": "late"})
        quick.note("infer", 1, 2)
        traces.end(quick, 0.1)
        traces.end(kept, 3.0)
        traces.close()
        spans = {one.name: one for one in heard.spans(2)}
    assert set(spans) == {"infer", "decode"} and counted == ["slow"]
    infer, decode = spans["infer"], spans["decode"]
    assert infer.trace == decode.trace == kept.id.hex()
    assert kept.parent is not None and infer.parent == kept.parent.hex()
    assert decode.parent == infer.id == kept.span_id("infer").hex()
    assert (infer.service, decode.service) == ("test", "test-engine")
    assert infer.end_ns - infer.begin_ns == 8_000 and decode.begin_ns - infer.begin_ns == 1_000
    assert infer.attributes == {"attempts": 2} and decode.failed and not infer.failed


def test_a_flood_of_kept_traces_is_cut_off_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    held = threading.Event()
    monkeypatch.setattr(trace_export._Sender, "send", lambda *_: held.wait(30))
    traces = Traces(settings("http://127.0.0.1:9"), "test", LOG, counted.append)
    for number in range(1000):
        traces.end(Trace(number.to_bytes(16, "big")), 1.0, refused=True)
    held.set()
    traces.close()
    assert counted.count("refused") < 100 and counted.count("dropped") > 900


@pytest.mark.parametrize("answers", [False, True])
def test_closing_does_not_wait_for_a_collector_that_is_down_or_silent(answers: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers:
            silent.listen(8)  # takes the connection, and never says a word
        port = silent.getsockname()[1]
        said = structlog.testing.CapturingLogger()
        traces = Traces(settings(f"http://127.0.0.1:{port}"), "test", said)
        trace = Trace(STREAM)
        trace.note("infer", 1, 2)
        traces.end(trace, 1.0, refused=True)
        traces.close()
        assert "traces" not in {thread.name for thread in threading.enumerate()}


def test_closing_gives_up_on_a_sender_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(trace_export._Sender, "close", lambda _: held.wait(600))
    said = structlog.testing.CapturingLogger()
    traces = Traces(settings("http://127.0.0.1:9"), "test", said)
    traces.close()
    assert [call.args for call in said.calls] == [("traces_lost",)]
    held.set()


@pytest.mark.parametrize("url", ["localhost:4318", "grpc://x:4317", "http://", "http://x/?a=b"])
def test_an_endpoint_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        TraceSettings(otlp_endpoint=url)


def test_without_the_sdk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigError, match=r"neural-bridge\[otlp\]"):
        Traces(settings("http://127.0.0.1:9"), "test", LOG)
