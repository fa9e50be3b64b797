"""The demo, start to end: a service, an agent that asks through a counting relay, a report.

In order: an authority is made → the service starts → the device enrols → the agent answers every
question about every picture, one at a time, in TLS → its records become figures → tables,
`report.json` and `report.html`. Needs both models and the bundle as files, and loads none of them
itself.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.picture import PictureCodec
from projector.bundle.load import Bundle
from reference.demo import page
from reference.demo.figures import (
    accuracies,
    agent_texts,
    distortions,
    first_questions,
    latencies,
    sequential,
)
from reference.demo.halves import agent_answers, cloud_server, keep_page, ready, threads
from reference.demo.relay import Relay
from reference.demo.site import Site
from reference.demo.terminal import Terminal, short
from reference.demo.testset import TestSet, source_uri
from reference.report.parts import html, percent, show

SPLIT = "test"
SHOWN = 10


@dataclass(frozen=True)
class Demo:
    """Pictures, models and bundle of a run.

    Attributes:
        out: folder of the report, answers and logs.
        pictures: number of pictures of the test split.
        questions: questions about each.
        edge: checkpoint of the edge model.
        cloud: checkpoint of the cloud model.
        bundle: the bundle between them.
    """

    out: Path
    pictures: int
    questions: int
    edge: Path
    cloud: Path
    bundle: Path


def run(demo: Demo, terminal: Terminal) -> int:
    """Run the demo, print the tables, write the report.

    Returns:
        0 if every question was answered from its frame, else 1.

    Raises:
        ChildError: the service or the agent failed.
        BridgeError: the bundle is missing or damaged.
    """
    demo.out.mkdir(parents=True, exist_ok=True)
    test = TestSet.load(SPLIT, demo.pictures, demo.questions)
    report = measure(demo, test, terminal)
    shown = {row["picture"]: test.pictures[row["picture"]] for row in report["first_questions"]}
    parts = page.parts(report, shown)
    show(parts, terminal.console)
    terminal.console.print()
    finish(report, demo.out, html(*_title(report), parts, _tiles(report)), terminal)
    return 0 if report["whole"] else 1


def measure(demo: Demo, test: TestSet, terminal: Terminal) -> dict[str, Any]:
    """Let the agent answer, and measure: the report as `report.json` holds it."""
    started = time.monotonic()
    terminal.say("making an authority, a device and a one-time code")
    site = Site.made(demo.out)
    terminal.say("starting the cloud server (front end and engine)")
    with cloud_server(
        demo.out / "cloud-server.log",
        *("--directory", str(site.folder), "--host", "127.0.0.1", "--open-port", "0"),
        model=demo.cloud,
        bundle=demo.bundle,
        threads=threads(),
    ) as server:
        found = ready(server)
        terminal.say(f"cloud server ready at {found.address}, its metrics at {found.metrics}")
        terminal.say(site.enrolled(found.open_address))
        loaded_s = time.monotonic() - started
        source = source_uri(SPLIT, demo.pictures, demo.questions)
        with Relay(found.address) as relay:
            records = agent_answers(
                relay.address, source, len(test.asked), demo.out, demo.edge, terminal
            )
            passed = relay.counts()
        keep_page(found.metrics, demo.out / "cloud-metrics.txt", site.operator_key)
    texts, problems = agent_texts(records, test)
    answers = {"injected": texts}
    sizes = [r["payload_bytes"] for r in records]
    return {
        **accuracies(test, answers),
        "whole": not problems,
        "problems": problems,
        "payload_bytes_per_frame": {
            "mean": round(float(np.mean(sizes)), 2),
            "p95": round(float(np.percentile(sizes, 95)), 2),
        },
        "uplink": {"bytes": passed.uplink_bytes, "connections": passed.connections},
        "downlink": {"bytes": passed.downlink_bytes},
        "png_bytes": round(
            float(np.mean([len(PictureCodec("png").encode(p)) for p in test.pictures])), 1
        ),
        "latency_ms": latencies(sequential(records, test)),
        "distortion": distortions(records),
        "first_questions": first_questions(test, answers, SHOWN),
        "operating_point": {"name": ", ".join(sorted({r["point"] for r in records}))},
        "made": {
            **circumstances(SPLIT),
            "bundle": Bundle.peek(demo.bundle).digest,
            "seconds": round(time.monotonic() - started, 1),
            "seconds_loading": round(loaded_s, 1),
            "metrics": found.metrics,
        },
    }


def circumstances(split: str) -> dict[str, Any]:
    """How to get the same figures again: command, machine, versions."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else ""
    cores = len(os.sched_getaffinity(0))
    program = f"python -m {name}" if spec else Path(sys.argv[0]).name
    return {
        "split": split,
        "command": shlex.join([*program.split(), *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {platform.system()}, {cores} cores",
        "threads_per_process": threads(),
        "python": platform.python_version(),
    }


def finish(report: dict[str, Any], out: Path, made: str, terminal: Terminal) -> None:
    """Write `report.json` and the page; print what went wrong and where everything is.

    Args:
        report: the report to write.
        out: its folder.
        made: the page; empty if figures are missing.
        terminal: prints.
    """
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=not made)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    if made:
        (out / "report.html").write_text(made, encoding="utf-8")
    for problem in report["problems"]:
        terminal.fail(f"not whole: {problem}")
    kept = ", ".join(short(out / f"{name}-metrics.txt") for name in ("cloud", "edge"))
    terminal.say(f"metrics while it ran: {report['made']['metrics']} (kept: {kept})")
    files = ", ".join(short(out / f"report.{ending}") for ending in ("html", "json"))
    terminal.say(f"report: {files}; {report['made']['seconds']:.0f} s")


def _title(report: dict[str, Any]) -> tuple[str, str]:
    count = f"{report['questions']:,} questions about {report['pictures']:,} pictures"
    return (
        f"{count} that nobody trained on",
        "A small model at the edge saw each picture and sent "
        f"{report['payload_bytes_per_frame']['mean']:.0f} bytes of its cache. The large model in "
        "the cloud never saw the picture; it answered from these bytes.",
    )


def _tiles(report: dict[str, Any]) -> list[tuple[str, str]]:
    latency = report["latency_ms"]["total"]["p50"]
    payload = report["payload_bytes_per_frame"]["mean"]
    return [
        (f"{percent(report['accuracy']['injected'])} %", "right from the injected cache"),
        (f"{payload:.0f} B", f"of payload a picture; a PNG takes {report['png_bytes']:,.0f}"),
        (f"{latency:.0f} ms", "from the picture to the whole answer, median"),
        (
            f"{report['uplink']['bytes'] / report['questions']:.0f} B",
            "up the wire per question, connection, set-up and the question's text included",
        ),
    ]
