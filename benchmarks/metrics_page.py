"""Writes `docs/metrics.md` from the tables of metrics in code.

`python -m benchmarks.metrics_page` writes it; with `--check` it changes nothing and ends with 1 if
the page does not say what the tables say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import command, docs
from cloud_server.genai_metrics import GenAiMetrics
from cloud_server.metrics import Metrics as ServiceMetrics
from edge_agent.metrics import Metrics as AgentMetrics
from protos.process.metric_kinds import Label
from protos.process.metric_rows import DASHBOARDS, HistogramRow, Row
from protos.process.metrics import Table

PAGE = docs.DOCS / "metrics.md"
_SHOWN = 20
_TOP = """# Metrics

Made by `python -m benchmarks.metrics_page` from the tables in `cloud_server/metrics.py` and
`edge_agent/metrics.py` and their parts; `make check` fails if it is out of date. What normal looks
like is in [dashboards.md](dashboards.md).

- Names end in their base unit; only counters end in `_total`. A gauge of unit *state* is 1 or 0.
- A label value outside its set, or one too many, counts as `other`.
- A histogram marked *exemplars* carries request ids where the scraper asks for OpenMetrics
  (`Accept: application/openmetrics-text`; Prometheus: `--enable-feature=exemplar-storage`).
- The `device_*` series are shown with `--device-series N` alone."""


def page() -> str:
    """The whole page."""
    tables: list[tuple[str, type[Table]]] = [
        ("The service", ServiceMetrics),
        ("The agent", AgentMetrics),
        ("The service under OpenTelemetry's names (`--genai-metrics`)", GenAiMetrics),
    ]
    parts = [_TOP]
    for title, table in tables:
        rows = table.rows()
        parts.append(f"\n## {title}, `{table.prefix}…`")
        for dashboard in DASHBOARDS:
            mine = [row for row in rows if row.dashboards[0] == dashboard]
            if mine:
                parts += [f"\n### {dashboard}\n", _table(mine)]
        parts += ["\n### Labels\n", _labels(rows), "\n### Buckets\n", _buckets(rows)]
    return "\n".join(parts)


def _table(rows: Sequence[Row[Any]]) -> str:
    lines = ["| Name | Kind | Unit | Labels | Meaning | Also on |", "|---|---|---|---|---|---|"]
    for row in rows:
        labels = ", ".join(f"`{label.name}`" for label in row.labels)
        marked = isinstance(row, HistogramRow) and row.exemplars
        kind = f"{row.kind}, exemplars" if marked else row.kind
        also = ", ".join(row.dashboards[1:])
        lines.append(f"| `{row.name}` | {kind} | {row.unit} | {labels} | {row.meaning} | {also} |")
    return "\n".join(lines)


def _labels(rows: Sequence[Row[Any]]) -> str:
    """What each label can be, with the metrics that have it."""
    of: dict[Label, list[str]] = {}
    for row in rows:
        for label in row.labels:
            of.setdefault(label, []).append(row.name)
    lines = ["| Label | Of | Values |", "|---|---|---|"]
    for label, names in sorted(of.items(), key=lambda item: item[0].name):
        shown = ", ".join(f"`{value}`" for value in label.values[:_SHOWN])
        if len(label.values) > _SHOWN:
            shown = f"the {len(label.values)} names of `protos/errors.py`"
        shown = shown or f"{label.bound}, at most {label.most}"
        lines.append(f"| `{label.name}` | {', '.join(f'`{name}`' for name in names)} | {shown} |")
    return "\n".join(lines)


def _buckets(rows: Sequence[Row[Any]]) -> str:
    of: dict[tuple[float, ...], list[str]] = {}
    for row in rows:
        if row.buckets:
            of.setdefault(row.buckets, []).append(row.name)
    lines = ["| Upper bounds | Of |", "|---|---|"]
    for buckets, names in of.items():
        bounds = " ".join(f"{bound:g}" if bound < 1e6 else f"{bound:.0f}" for bound in buckets)
        lines.append(f"| {bounds} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines) + "\n"


def make(given: argparse.Namespace) -> int:
    """Write the page, or compare it."""
    path: Path = given.page
    wanted = page()
    if not given.check:
        path.write_text(wanted, encoding="utf-8")
        print(f"metrics: {path}")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == wanted:
        return 0
    print(
        f"{path} does not say what the tables of metrics say: run "
        "'python -m benchmarks.metrics_page'",
        file=sys.stderr,
    )
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("metrics_page", "Write docs/metrics.md from the tables of metrics.")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    return command.run(parser, make, argv)


if __name__ == "__main__":
    raise SystemExit(main())
