"""`make demo`: a cloud server and an edge agent, unseen pictures, and what came of it.

Knows the command line; what is measured and shown is imported by the command itself, so that
`protos.process.console` can look at streams, folders and missing packages first.
"""

from __future__ import annotations

import sys

from protos.process import console

QUESTIONS = 5
PICTURES = 60


def main() -> int:
    """Command line of the demo."""
    return console.run("demo", "align", _main)


def _main() -> int:
    from rich.console import Console

    from benchmarks.measure import ROOT, Plan
    from benchmarks.terminal import CODECS, arguments, run

    parser = arguments(
        "A cloud server and an edge agent answer questions about pictures never seen in training.",
        ROOT / "build" / "demo",
        PICTURES,
    )
    given = parser.parse_args()
    plan = Plan(
        out=given.out,
        pictures=given.pictures,
        questions=QUESTIONS,
        latency_pictures=given.pictures,
        codecs=CODECS,
        edge=given.edge,
        cloud=given.cloud,
        bundle=given.bundle,
    )
    return run(plan, Console())


if __name__ == "__main__":
    sys.exit(main())
