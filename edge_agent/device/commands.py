"""The commands `edge-agent status` and `edge-agent doctor`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from edge_agent.device import status, status_view
from protos.errors import ConfigError

_AGAIN_S = 1.0


def show_status(folder: Path | None, as_json: bool) -> int:
    """Show how the running agent of a state directory is.

    On a terminal it is shown again every second, until an interrupt or the agent's end.

    Args:
        folder: the state directory.
        as_json: print it once, as JSON.

    Raises:
        ConfigError: no agent runs there.
    """
    if folder is None:
        raise ConfigError("no home folder that can be written: give --state-dir")
    found = status.ask(folder)
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    if not sys.stdout.isatty():
        print("\n".join(status_view.lines(found, 1000)))
        return 0
    print("\x1b[2J", end="")
    while True:
        print(status_view.screen(found), end="", flush=True)
        time.sleep(_AGAIN_S)
        found = status.ask(folder)
