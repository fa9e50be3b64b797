"""What `python -m edge_agent` and the console script `edge-agent` run."""

import sys
from collections.abc import Sequence

from protos.process.start import start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script."""
    return start("edge_agent.cli", "edge-agent", "edge", argv)


if __name__ == "__main__":
    sys.exit(main())
