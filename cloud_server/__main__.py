"""What `python -m cloud_server` and the console script `cloud-server` run."""

import sys
from collections.abc import Sequence

from protos.process.start import start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script."""
    return start("cloud_server.cli", "cloud-server", "cloud", argv)


if __name__ == "__main__":
    sys.exit(main())
