"""`cloud-server recompute`: metrics from the event log, beside what /metrics showed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_server.commands.output import as_json, say, table
from protos.errors import ConfigError
from protos.process.files import text_of

if TYPE_CHECKING:
    from cloud_server.recompute import Difference, Recomputed

_WITHIN = 0.01
_EXAMPLES = """examples:
  cloud-server recompute events.jsonl
  curl -s localhost:9464/metrics | cloud-server recompute events.jsonl --against -

exit codes: 0 they agree; 1 they do not; else the error's (cloud-server --help)
"""


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "recompute",
        help="compute metrics again from the event log (--event-log), and compare them",
        description="Compute the metrics of requests again from the event log, and compare them "
        "with a page of /metrics.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=_run)
    parser.add_argument(
        "log", type=Path, metavar="FILE", help="the event log; FILE.1 beside it is read first"
    )
    parser.add_argument(
        "--against", metavar="PAGE", help="a saved page of /metrics, or - for standard input"
    )
    parser.add_argument(
        "--within",
        type=float,
        default=_WITHIN,
        metavar="SHARE",
        help="largest difference that passes (default: %(default)s); beyond it the exit code is 1",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--every-run",
        action="store_true",
        help="count all runs of the service in the log, not the last one alone",
    )


def _run(given: argparse.Namespace) -> int:
    from cloud_server.frontend.event_log import older_half
    from cloud_server.recompute import compare, recompute

    older = older_half(given.log)
    found = recompute([*([older] if older.is_file() else []), given.log], given.every_run)
    if given.against is None:
        _figures(given, found)
        return 0
    every = compare(_page(given.against), found)
    apart, compared = [one for one in every if one.ratio > given.within], len(every)
    if given.json:
        as_json(
            {
                "events": found.events,
                "torn_lines": found.torn,
                "whole_run": found.begun,
                "compared": compared,
                "apart": [_plain(one) for one in apart],
            }
        )
        return int(bool(apart))
    table(
        ("metric", "labels", "recorded", "recomputed", "apart"),
        [(one.name, _text(one), one.recorded, one.recomputed, f"{one.ratio:.2%}") for one in apart],
        f"{compared} samples agree within {given.within:.2%} ({found.events} events)",
    )
    if apart and not found.begun:
        say("The log does not reach back to the service's start: give --event-log-bytes more.")
    return int(bool(apart))


def _page(name: str) -> str:
    """A saved page of /metrics.

    Raises:
        ConfigError: it cannot be read.
    """
    if name == "-":
        return sys.stdin.read()
    try:
        return text_of(Path(name).read_bytes(), name)
    except OSError as error:
        raise ConfigError(f"--against {name} cannot be read: {error.strerror}") from error


def _figures(given: argparse.Namespace, found: Recomputed) -> None:
    """Print what the events say."""
    from cloud_server.recompute import HISTOGRAMS

    counts = [
        {"metric": name, "labels": dict(labels), "value": value}
        for (name, labels), value in sorted(found.counts.items())
    ]
    quantiles = [
        {
            "metric": name,
            "count": sum(len(values) for (of, _), values in found.values.items() if of == name),
            "p50": found.quantile(name, 0.5),
            "p95": found.quantile(name, 0.95),
            "p99": found.quantile(name, 0.99),
        }
        for name in HISTOGRAMS
        if any(of == name for of, _ in found.values)
    ]
    if given.json:
        as_json(
            {
                "events": found.events,
                "torn_lines": found.torn,
                "whole_run": found.begun,
                "counts": counts,
                "quantiles": quantiles,
            }
        )
        return
    if not found.events:
        raise ConfigError(f"event log {given.log} holds no event")
    shown: list[dict[str, Any]] = counts
    table(
        ("metric", "labels", "value"),
        [(one["metric"], _pairs(one["labels"]), one["value"]) for one in shown],
        "no counts",
    )
    say("")
    table(
        ("metric", "count", "p50", "p95", "p99"),
        [tuple(one.values()) for one in quantiles],
        "no times",
    )


def _pairs(labels: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())


def _text(one: Difference) -> str:
    return _pairs(dict(one.labels))


def _plain(one: Difference) -> dict[str, Any]:
    return {**one._asdict(), "labels": dict(one.labels), "ratio": one.ratio}
