"""The commands `edge-agent status` and `edge-agent doctor`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from edge_agent.device import status, status_view
from edge_agent.device.checks import Checks
from edge_agent.settings import Settings
from protos.errors import BridgeError, ConfigError
from protos.process.findings import GREEN, RED, Finding, findings, show

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


def run_doctor(read: Callable[[], Settings], as_json: bool, quick: bool) -> int:
    """Check this device, and say what to do where something is wrong.

    Args:
        read: reads the settings.
        as_json: print JSON at the end instead of lines as they come.
        quick: neither load the model nor open cameras nor call the service.

    Returns:
        0, or the exit code of `ConfigError` if something is red.
    """
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if not as_json:
            show(finding, lambda line: print(line, flush=True))

    try:
        checks = Checks(read(), quick)
    except BridgeError as error:
        tell(Finding("settings", RED, error.message, "see edge-agent run --help"))
    else:
        tell(Finding("settings", GREEN, "valid"))
        for subject, check, limit_s in checks.every():
            for finding in findings(subject, check, limit_s):
                tell(finding)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    return ConfigError.exit_code if any(one.level == RED for one in found) else 0
