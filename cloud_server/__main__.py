"""`python -m cloud_server`: the same as the console script `cloud-server`."""

import sys

from cloud_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
