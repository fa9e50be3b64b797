"""The event log holds what /metrics counted: computed again from its lines, the figures agree."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from cloud_server.cli import main
from cloud_server.frontend.event_log import EventLog, older_half
from cloud_server.metrics import Metrics
from cloud_server.recompute import COUNTERS, HISTOGRAMS, compare, recompute
from protos.errors import ConfigError
from tests.cloud_server import stage
from tests.cloud_server.front_end import running


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A service was asked much: its event log, its last page of /metrics, number of its answers."""
    folder = tmp_path_factory.mktemp("events")
    path = folder / "events.jsonl"
    (folder / "config.json").write_text("{}")
    stage.describe(folder)
    paths = {"model": folder, "bundles": [folder]}

    async def scene() -> tuple[str, int]:
        async with running(paths, event_log=path, session_requests=40) as server:
            edge = await server.edge()
            call = edge.open()
            for seed in range(60):
                question = ("count 3", " ", "", "What is this?")[seed % 4]
                await call.write(edge.frame(seed=seed, question=question))
            await call.done_writing()
            ends = [event.WhichOneof("event") async for event in call]
            assert {"answer", "refused", "token"} <= set(ends)
            return (await server.get("/metrics"))[1], ends.count("answer")

    return path, *asyncio.run(scene())


def test_metrics_from_the_event_log_agree_with_those_recorded(run: tuple[Path, str, int]) -> None:
    path, page, answers = run
    found = recompute([path])
    differences = compare(page, found)
    assert {one.name.removesuffix("_bucket") for one in differences} >= {
        "answers_total",
        "refusals_total",
        "frames_total",
        "answer_seconds",
        "first_token_seconds",
        "stage_seconds",
        "payload_bytes",
        "unfamiliarity_ratio",
    }
    assert max(one.ratio for one in differences) <= 0.01, max(
        differences, key=lambda one: one.ratio
    )
    answered = [one for one in differences if one.name == "answer_seconds_count"]
    assert answered[0].recorded == answers
    assert found.begun and not found.torn


def test_lines_that_are_missing_are_seen(
    run: tuple[Path, str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page, _ = run
    lines = path.read_text().splitlines()
    sent = [place for place, line in enumerate(lines) if '"e":"sent"' in line]
    torn = tmp_path / "events.jsonl"
    kept = [line for place, line in enumerate(lines) if place not in sent[:2]]
    torn.write_text("\n".join(kept) + '\n{"id":"cut off by a pow')
    saved = tmp_path / "page.txt"
    saved.write_text(page)
    assert main(["recompute", str(path), "--against", str(saved)]) == 0
    assert "samples agree within 1.00%" in capsys.readouterr().out
    assert main(["recompute", str(torn), "--against", str(saved), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["torn_lines"] == 1 and told["whole_run"]
    assert {one["name"] for one in told["apart"]} >= {
        "answer_seconds_count",
        "first_token_seconds_count",
    }


def test_the_command_reads_the_page_from_standard_input_and_tells_figures_without_one(
    run: tuple[Path, str, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, page, answers = run
    monkeypatch.setattr("sys.stdin", io.StringIO(page))
    assert main(["recompute", str(path), "--against", "-"]) == 0
    assert main(["recompute", str(path)]) == 0
    out = capsys.readouterr().out
    assert "answers_total" in out and "P95" in out
    assert main(["recompute", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    quantiles = {one["metric"]: one for one in told["quantiles"]}
    assert quantiles["answer_seconds"]["count"] == answers
    assert 0 < quantiles["answer_seconds"]["p50"] <= quantiles["answer_seconds"]["p99"]


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--against", "/nowhere"], "cannot be read"), (["--against", "-"], "not a page")],
)
def test_what_is_no_page_is_refused(
    run: tuple[Path, str, int],
    more: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("up 1\n"))
    assert main(["recompute", str(run[0]), *more]) == ConfigError.exit_code
    assert says in capsys.readouterr().err
    assert main(["recompute", "/nowhere/events"]) == ConfigError.exit_code


def test_only_the_last_run_counts_unless_every_run_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "events"
    for number in (3, 4):
        log = EventLog(path, 1 << 20)
        for _ in range(number):
            log.note("asked", id="aa", call="http")
        log.close()
    key = "questions_total", (("call", "http"),)
    assert recompute([path]).counts[key] == 4
    assert recompute([path], every_run=True).counts[key] == 7


def test_the_log_is_bounded_and_says_when_its_beginning_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "events"
    log = EventLog(path, 1 << 16)
    for number in range(5000):
        log.note("asked", id=f"{number:032x}", call="http")
    log.close()
    older = older_half(path)
    assert path.stat().st_size <= 1 << 15 and older.stat().st_size <= 1 << 15
    found = recompute([older, path])
    assert not found.begun and 0 < found.events < 5000
    assert f"{4999:032x}" in path.read_text()


def test_a_disk_that_takes_nothing_drops_lines_and_fails_nobody(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = EventLog(Path("/dev/full"), 1 << 20, dropped.append)
    log.note("asked", id="aa", call="http")
    log.close()
    assert sum(dropped) == 2  # with the line of the start
    with pytest.raises(ConfigError, match="event log"):
        EventLog(tmp_path / "none" / "events", 1 << 20)


def test_everything_that_is_recomputed_is_in_the_table() -> None:
    kinds = {row.name: row.kind for row in Metrics.rows()}
    assert {kinds[name] for name in COUNTERS} == {"counter"}
    assert {kinds[name] for name in HISTOGRAMS} == {"histogram"}
    of_no_request = {name for name, kind in kinds.items() if kind == "histogram"} - set(HISTOGRAMS)
    assert of_no_request == {"crop_bytes", "shadow_error_ratio", "shadow_kl_nats"}
