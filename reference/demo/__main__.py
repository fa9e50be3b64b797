"""The demo: `python -m reference.demo`.

Its modules are imported by the command itself: `protos.process.console` looks at streams, folders
and missing packages first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from protos.process import console

QUESTIONS = 5
PICTURES = 60
OUT = Path("build") / "demo"


def main() -> int:
    """Command line of the demo."""
    return console.run("demo", "align", _main)


def _main() -> int:
    from rich.console import Console

    from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
    from reference.demo.processes import ChildError
    from reference.demo.run import Demo, run
    from reference.demo.terminal import Terminal, arguments

    said = (
        "A cloud server and an edge agent answer questions about pictures never seen in training."
    )
    given = arguments(said, OUT, PICTURES, EDGE_MODEL, CLOUD_MODEL, BUNDLE).parse_args()
    terminal = Terminal(Console())
    demo = Demo(given.out, given.pictures, QUESTIONS, given.edge, given.cloud, given.bundle)
    try:
        return run(demo, terminal)
    except ChildError as error:
        terminal.fail(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
