"""The page of /metrics: exemplars where they are asked for, many series quickly, few renderings."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from protos.process.exposition import Page
from protos.process.metric_kinds import Label
from protos.process.metric_rows import LINK, CollectedRow, CounterRow, HistogramRow
from protos.process.metrics import Table

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NAMES = ['back\\slash "quote"\nline', "plain", "with space"]


class Few(Table):
    prefix = "test_"

    seconds = HistogramRow(
        "seconds", "seconds", "A time", LINK, buckets=(0.1, 1.0, 10.0), exemplars=True
    )
    counted = CounterRow("frames_total", "frames", "Frames", LINK)
    held = CollectedRow("held_bytes", "bytes", "By name", LINK, Label("name", bound="a", most=3))
    ended = CollectedRow("ended_total", "frames", "By name", LINK, Label("name", bound="a"))


@pytest.fixture
def table() -> Few:
    made = Few()
    made.held.read_from(lambda: [((name,), 1.5 * place) for place, name in enumerate(NAMES)])
    made.ended.read_from(lambda: [((name,), place) for place, name in enumerate(NAMES)])
    return made


def get(page: Page, **headers: str) -> tuple[bytes, dict[str, str]]:
    told: dict[str, str] = {}

    def start(status: str, found: Any) -> Any:
        assert status == "200 OK"
        told.update(found)

    (body,) = page({"HTTP_" + name: value for name, value in headers.items()}, start)
    return body, told


def test_the_page_says_what_prometheus_client_would_say(table: Few) -> None:
    table.counted.inc(7)
    body, headers = get(Page(table.registry))
    assert headers["Content-Type"].startswith("text/plain")
    shown = {one.name: one for one in parse_text(body.decode())}
    theirs = {one.name: one for one in parse_text(generate_latest(table.registry).decode())}
    assert shown == theirs
    assert [sample.labels["name"] for sample in shown["test_held_bytes"].samples] == NAMES


def test_openmetrics_has_exemplars_units_and_an_end(table: Few) -> None:
    for amount, request in ((0.05, "aa"), (0.06, "bb"), (5.0, "cc"), (5.0, "")):
        table.seconds.observe(amount, {"request_id": request} if request else None)
    body, headers = get(Page(table.registry), ACCEPT=OPENMETRICS)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n") and body.count(b"# EOF") == 1
    families = {one.name: one for one in parse_openmetrics(body.decode())}
    found = {
        sample.labels["le"]: sample.exemplar.labels["request_id"]
        for sample in families["test_seconds"].samples
        if sample.exemplar is not None
    }
    assert found == {"0.1": "bb", "10.0": "cc"}  # the newest of each bucket
    assert {name: one.unit for name, one in families.items()} == {
        "test_seconds": "seconds",
        "test_frames": "",
        "test_held_bytes": "bytes",
        "test_ended": "",
    }
    assert b"request_id" not in get(Page(table.registry))[0]


def test_a_series_beyond_the_bound_is_not_shown(table: Few) -> None:
    table.held.read_from(lambda: (((f"n{number}",), 1.0) for number in range(1_000_000)))
    body, _ = get(Page(table.registry))
    assert body.count(b"test_held_bytes{") == 3


def test_scrapes_that_wait_share_a_page_that_is_begun_after_they_came(table: Few) -> None:
    now, reads = [100.0], [0]

    def read() -> list[tuple[tuple[str], float]]:
        reads[0] += 1
        return [(("a",), float(reads[0]))]

    table.held.read_from(read)
    page = Page(table.registry, lambda: now[0])
    first, _ = get(page)
    assert get(page)[0] == first and reads == [1]
    now[0] += 0.001
    assert get(page)[0] != first and reads == [2]


def test_a_scraper_that_takes_gzip_gets_it(table: Few) -> None:
    page = Page(table.registry, lambda: 1.0)
    body, headers = get(page, ACCEPT_ENCODING="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == get(page)[0]
