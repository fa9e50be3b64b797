"""`make demo`'s second half: the arms beside the injected cache, on the demo's pictures.

`--answers` names the file of answers that `python -m reference.demo` wrote; without it an agent is
started here. The report in the same folder then holds every arm.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from benchmarks.compare.measure import CODECS, Plan
from benchmarks.compare.run import arguments, run
from reference.demo.__main__ import OUT, PICTURES, QUESTIONS
from reference.demo.terminal import Terminal


def main() -> int:
    """Command line."""
    parser = arguments(
        "Every arm beside the injected cache, on the demo's pictures.", OUT, PICTURES
    )
    parser.add_argument("--answers", type=Path, help="JSON lines that the demo's agent has written")
    given = parser.parse_args()
    plan = Plan(
        out=given.out,
        pictures=given.pictures,
        questions=QUESTIONS,
        latency_pictures=given.pictures,
        answers=given.answers,
        codecs=CODECS,
        edge=given.edge,
        cloud=given.cloud,
        bundle=given.bundle,
    )
    return run(plan, Terminal(Console()))


if __name__ == "__main__":
    sys.exit(main())
