"""What `python -m projector` and the console script `projector` run."""

import sys
from collections.abc import Sequence

from protos.process.start import start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script."""
    return start("projector.commands.cli", "projector", "align", argv)


if __name__ == "__main__":
    sys.exit(main())
