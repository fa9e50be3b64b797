"""A comparison from its plan to the report's files, for `make demo` and `make bench`.

The exit code is 0 only if the run was whole: every question was answered in every arm, and no
figure is missing from the report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.compare import page, schema
from benchmarks.compare.measure import Plan, measure
from protos.errors import BridgeError
from reference.demo import terminal as shared
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.processes import ChildError
from reference.demo.run import finish
from reference.demo.terminal import Terminal
from reference.demo.testset import TestSet
from reference.report.parts import html, show


def arguments(description: str, out: Path, pictures: int) -> argparse.ArgumentParser:
    """The command line of a comparison of the reference models."""
    return shared.arguments(description, out, pictures, EDGE_MODEL, CLOUD_MODEL, BUNDLE)


def run(plan: Plan, terminal: Terminal) -> int:
    """Measure, print, write `report.json` and, if no figure is missing, `report.html`.

    Returns:
        0 if whole, 1 if something was left unanswered, the error's own code if it stopped.
    """
    try:
        report = measure(plan, terminal)
    except (BridgeError, ChildError) as error:
        terminal.fail(
            f"{error.name} ({error.code}): {error}"
            if isinstance(error, BridgeError)
            else str(error)
        )
        return error.exit_code if isinstance(error, BridgeError) else 1
    missing = schema.problems(report)
    report["problems"] += missing
    report["whole"] = not report["problems"]
    made = ""
    if not missing:
        numbers = {row["picture"] for row in report["first_questions"]}
        test = TestSet.load(report["made"]["split"], max(numbers) + 1, 1)
        parts = page.parts(report, {number: test.pictures[number] for number in numbers})
        show(parts, terminal.console)
        terminal.console.print()
        made = html(*page.title(report), parts, page.tiles(report))
    finish(report, plan.out, made, terminal)
    return 0 if report["whole"] else 1
