"""The agent, as if on a board with sensors: their files lie in a folder.

`python -m benchmarks.dashboards.board FOLDER ARGUMENTS…` runs `edge-agent ARGUMENTS…`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from edge_agent import cli
from edge_agent.device import upkeep
from edge_agent.device.power import Sensors, read

_FILES = {
    "sys/bus/i2c/devices/1-0040/name": "ina3221",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_input": "5012",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr1_input": "1304",
    "sys/devices/virtual/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/devices/virtual/thermal/thermal_zone0/temp": "51250",
}
"""An Orin Nano's, by path; millivolts, milliamperes, thousandths of a degree."""


def furnish(root: Path) -> None:
    """Write the sensors' files."""
    for name, text in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def main(root: Path, arguments: list[str]) -> int:
    """Run the agent; returns its exit code."""
    setattr(upkeep, "Sensors", lambda: Sensors(partial(read, root)))  # noqa: B010 (mypy refuses it)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
