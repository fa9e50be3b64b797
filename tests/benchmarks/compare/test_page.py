"""The report is what people judge the system by: whole, honest about gaps, readable alone."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import pytest

from benchmarks.compare import figures, page, schema
from reference.demo.testset import TestSet
from reference.report.parts import Plot, html

VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Balanced(HTMLParser):
    """Collects ids and outside addresses; fails on a tag that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href") and not (value or "").startswith(("data:", "#")):
                self.outside.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def render(report: dict[str, Any], testset: TestSet) -> str:
    parts = page.parts(report, dict(enumerate(testset.pictures)))
    return html(*page.title(report), parts, page.tiles(report))


def test_a_whole_report_has_no_problems(report: dict[str, Any]) -> None:
    assert schema.problems(json.loads(json.dumps(report))) == []


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, names in schema.REQUIRED.items() for name in names]
)
def test_a_missing_figure_is_named(report: dict[str, Any], key: str, name: str) -> None:
    del report[key][name]
    assert schema.problems(report) == [f"{key}.{name} is missing or no number"]


def test_a_figure_that_is_no_number_is_named(report: dict[str, Any]) -> None:
    report["latency_ms"]["encode"]["p95"] = math.nan
    assert schema.problems(report) == ["latency_ms.encode.p95 is missing or no number"]


def test_a_report_without_codecs_is_not_whole(report: dict[str, Any]) -> None:
    report["image_codecs"] = []
    assert schema.problems(report) == ["image_codecs is missing or empty"]


@pytest.mark.slow
def test_the_page_needs_no_other_file(report: dict[str, Any], testset: TestSet) -> None:
    made = render(report, testset)
    parser = _Balanced()
    parser.feed(made)
    parser.close()
    assert parser.open == []
    assert parser.outside == []
    assert len(parser.ids) == len(set(parser.ids))
    assert "@import" not in made
    assert made.count("data:image/webp;base64,") == 10


@pytest.mark.slow
def test_the_page_says_when_a_run_was_not_whole(report: dict[str, Any], testset: TestSet) -> None:
    report |= {"whole": False, "problems": ["3 of 60 questions have <no> answer"]}
    made = render(report, testset)
    assert "3 of 60 questions have &lt;no&gt; answer" in made


@pytest.mark.slow
def test_a_target_that_was_missed_is_shown_as_missed(
    report: dict[str, Any], testset: TestSet
) -> None:
    report["wire_bytes_per_frame"]["mean"] = 401.0
    report["targets"] = figures.targets(report)
    made = render(report, testset)
    assert re.search(r"bytes on the wire per frame.*?401\.0.*?missed", made, re.S)


@pytest.mark.slow
def test_every_plot_is_an_svg_that_follows_the_page(
    report: dict[str, Any], testset: TestSet
) -> None:
    parts = page.parts(report, dict(enumerate(testset.pictures)))
    made = [part.svg for part in parts if isinstance(part, Plot)]
    assert len(made) == 4
    for svg in made:
        root = ElementTree.fromstring(svg)
        assert root.get("viewBox")
        assert root.get("width") is None
        assert "currentColor" in svg
        assert "#010203" not in svg


def test_the_smallest_codec_that_is_good_enough_is_compared(report: dict[str, Any]) -> None:
    report["accuracy"]["cloud_image"] = 0.95
    report["image_codecs"] = [
        {"codec": "png", "quality": None, "size_px": 144, "bytes": 100.0, "accuracy": 0.95},
        {"codec": "jpeg", "quality": 5, "size_px": 16, "bytes": 300.0, "accuracy": 0.90},
        {"codec": "webp", "quality": 40, "size_px": 96, "bytes": 1200.0, "accuracy": 0.935},
        {"codec": "jpeg", "quality": 90, "size_px": 144, "bytes": 9000.0, "accuracy": 0.95},
    ]
    report["wire_bytes_per_frame"]["mean"] = 300.0
    found = figures.bytes_ratio(report)
    assert found == {"codec": "webp q40 at 96 px", "bytes": 1200.0, "ratio": 4.0}


def test_no_codec_that_is_good_enough_gives_no_ratio(report: dict[str, Any]) -> None:
    report["image_codecs"] = []
    assert figures.bytes_ratio(report)["ratio"] is None
