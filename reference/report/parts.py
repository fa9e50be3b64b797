"""A report is a list of parts: paragraphs, tables and plots. It is shown in three ways.

`show` prints the tables on a terminal, `html` makes a page that needs no other file, `markdown` is
for the documents. Words and cells may hold `**bold**` and `` `code` ``; a cell that begins with ✓
or ✗ is coloured. A paragraph that begins with `## ` opens a section of the page.
"""

from __future__ import annotations

import base64
import html as escaping
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Printed

HEADING = "## "
_RIGHT, _WRONG = "✓", "✗"
_IMAGE = re.compile(r"!\[(.*?)\]\((.*?)\)")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_CODE = re.compile(r"`(.+?)`")


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: printed above it; a table without a title is for pages only.
        heads: one for each column; a column whose head begins with `#` is aligned right.
        rows: cells, shown by `str`.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Plot:
    """A drawing.

    Attributes:
        file: its file's name, if it is kept in one.
        alt: what it shows, in words.
        svg: the drawing, from `reference.report.plot.plot`.
    """

    file: str
    alt: str
    svg: str


Part = str | Table | Plot


def bold(row: Iterable[object]) -> tuple[str, ...]:
    """A row whose cells are all bold."""
    return tuple(f"**{cell}**" if str(cell) else "" for cell in row)


def judged(met: bool | None, yes: str = "met", no: str = "missed") -> str:
    """A cell that says whether a target was met; a dash if it was not measured."""
    return "–" if met is None else f"{_RIGHT} {yes}" if met else f"{_WRONG} {no}"


def percent(share: float) -> str:
    """A share in percent, without the sign."""
    return f"{100 * share:.1f}"


def interval(estimate: Mapping[str, float]) -> str:
    """A share with its 95 % interval, in percent."""
    return "{:.1f} ({:.1f} to {:.1f})".format(*_hundred(estimate))


def points(estimate: Mapping[str, float]) -> str:
    """A difference of shares with its 95 % interval, in points."""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*_hundred(estimate)).replace("-", "−")


def _hundred(estimate: Mapping[str, float]) -> list[float]:
    return [100 * estimate[key] for key in ("mean", "low", "high")]


def picture(image: Image.Image, alt: str) -> str:
    """A cell that shows a picture (WebP, quality 90); a terminal leaves its column out."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=90)
    return f"![{alt}](data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()})"


# -- on a terminal ---------------------------------------------------------------------------------


def show(parts: Iterable[Part], console: Console) -> None:
    """Print the tables, an empty line before each."""
    for part in parts:
        if isinstance(part, Table) and part.title:
            console.print()
            console.print(_printed(part))


def _printed(table: Table) -> Printed:
    made = Printed(
        title=escape(table.title), title_justify="left", title_style="bold", box=None,
        pad_edge=False,
    )  # fmt: skip
    shown = [
        at
        for at in range(len(table.heads))
        if not any(_IMAGE.match(str(row[at])) for row in table.rows)
    ]
    for at in shown:
        head = table.heads[at]
        made.add_column(
            escape(head.removeprefix("#")), justify="right" if head.startswith("#") else "left"
        )
    for row in table.rows:
        made.add_row(*(_coloured(str(row[at])) for at in shown))
    return made


def _coloured(cell: str) -> str:
    text = _CODE.sub(r"\1", _BOLD.sub(r"[bold]\1[/bold]", escape(cell)))
    colour = {_RIGHT: "green", _WRONG: "red"}.get(cell[:1])
    return f"[{colour}]{text}[/{colour}]" if colour else text


# -- as a page -------------------------------------------------------------------------------------


def html(
    title: str, lead: str, parts: Iterable[Part], tiles: Sequence[tuple[str, str]] = ()
) -> str:
    """One HTML page, plots and pictures inside it.

    Args:
        title: the page's title.
        lead: the paragraph under it.
        parts: the parts, in order.
        tiles: the few figures that matter most, each with its meaning.
    """
    sections: list[tuple[str, list[str]]] = []
    for part in parts:
        if isinstance(part, str) and part.startswith(HEADING):
            sections.append((part.removeprefix(HEADING), []))
            continue
        if not sections:
            sections.append(("", []))
        sections[-1][1].append(_marked_up(part))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["inline"] = _inline
    page = environment.get_template("page.html.jinja")
    return page.render(title=title, lead=lead, tiles=tiles, sections=sections)


def _marked_up(part: Part) -> str:
    if isinstance(part, Plot):
        return part.svg
    if isinstance(part, str):
        return f'<p class="note">{_inline(part)}</p>'
    number = ['<t{} class="n">' if head.startswith("#") else "<t{}>" for head in part.heads]

    def line(kind: str, cells: Iterable[object]) -> str:
        opened = [tag.format(kind) for tag in number]
        return "".join(f"{tag}{_cell(c)}</t{kind}>" for tag, c in zip(opened, cells, strict=True))

    heads = line("h", (head.removeprefix("#") for head in part.heads))
    rows = "\n".join(f"<tr>{line('d', row)}</tr>" for row in part.rows)
    title = f"<caption>{_inline(part.title)}</caption>" if part.title else ""
    return f'<div class="scroll"><table>{title}<tr>{heads}</tr>\n{rows}\n</table></div>'


def _cell(cell: object) -> str:
    text = str(cell)
    kind = {_RIGHT: "right", _WRONG: "wrong"}.get(text[:1])
    return f'<span class="{kind}">{_inline(text)}</span>' if kind else _inline(text)


def _inline(text: str) -> str:
    made = _IMAGE.sub(r'<img class="shot" alt="\1" src="\2">', escaping.escape(text))
    return _CODE.sub(r"<code>\1</code>", _BOLD.sub(r"<b>\1</b>", made))


# -- in a document ---------------------------------------------------------------------------------


def markdown(parts: Iterable[Part]) -> str:
    """Markdown; a plot is a link to its file, which stands beside the document."""
    return "\n\n".join(_written(part) for part in parts)


def _written(part: Part) -> str:
    if isinstance(part, Plot):
        return f"![{part.alt}]({part.file})"
    if isinstance(part, str):
        return part
    heads = [head.removeprefix("#") for head in part.heads]
    lines = [f"| {' | '.join(map(str, row))} |" for row in (heads, *part.rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
