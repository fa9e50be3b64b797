"""One report, three ways to show it: each must say the same and escape what it shows."""

from __future__ import annotations

import pytest
from PIL import Image
from rich.console import Console

from reference.report.parts import (
    Plot,
    Table,
    bold,
    html,
    judged,
    markdown,
    picture,
    points,
    show,
)
from reference.report.plot import plot

TABLE = Table(
    "Ours [and] <theirs>",
    ("what", "#bytes"),
    [bold(("ours", 33)), ("`webp` <q50>", 429), (judged(True), judged(False))],
)


def test_a_document_has_the_table_as_it_stands_and_a_link_to_the_plot() -> None:
    made = markdown(["Words.", TABLE, Plot("rate.svg", "accuracy", "<svg/>")])
    assert made == (
        "Words.\n\n| what | bytes |\n|---|---|\n| **ours** | **33** |\n| `webp` <q50> | 429 |\n"
        "| ✓ met | ✗ missed |\n\n![accuracy](rate.svg)"
    )


def test_a_page_escapes_what_it_shows_and_opens_a_section_at_each_heading() -> None:
    made = html("A <title>", "lead with `code`", ["## One", "a **b** <c>", TABLE, "## Two", "d"])
    assert made.count("<section>") == 2 and "A &lt;title&gt;" in made
    assert "a <b>b</b> &lt;c&gt;" in made and "lead with <code>code</code>" in made
    assert "<code>webp</code> &lt;q50&gt;" in made and "Ours [and] &lt;theirs&gt;" in made
    assert '<th class="n">bytes</th>' in made and '<td class="n"><b>33</b></td>' in made
    assert '<span class="right">✓ met</span>' in made and '<span class="wrong">✗' in made


def test_a_terminal_shows_tables_without_pictures_and_takes_no_markup_from_cells() -> None:
    image = picture(Image.new("RGB", (4, 4)), "a picture")
    shown = Table("With a picture", ("", "said"), [(image, "[red]text[/red]")])
    console = Console(record=True, width=100)
    show(["not shown", TABLE, shown, Table("", ("for", "pages"), [("a", "b")])], console)
    text = console.export_text()
    assert "Ours [and] <theirs>" in text and "webp <q50>" in text and "**" not in text
    assert "[red]text[/red]" in text and "base64" not in text
    assert "not shown" not in text and "pages" not in text


def test_a_row_that_lacks_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        html("t", "", [Table("", ("a", "b"), [("only one",)])])


def test_points_have_a_sign_and_an_interval() -> None:
    assert points({"mean": -0.012, "low": -0.02, "high": 0.004}) == "−1.2 (−2.0 to +0.4)"


def test_the_same_figures_give_the_same_drawing() -> None:
    made = [plot("line", lambda axes: axes.plot([1, 2], [3, 4]) and None) for _ in range(2)]
    assert made[0] == made[1] and made[0].startswith("<svg") and "currentColor" in made[0]
