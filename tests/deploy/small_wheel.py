"""A wheel of this project that has the slots and two commands, and needs no other wheel."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.checkout import ROOT

EXTRAS = ("edge", "cloud", "otlp", "postgresql")
BOOT = "edge_agent/update/boot.py"


def small_wheel(folder: Path, version: str) -> Path:
    """Write the wheel into a folder; returns the folder."""
    info = f"neural_bridge-{version}.dist-info"
    with zipfile.ZipFile(folder / f"neural_bridge-{version}-py3-none-any.whl", "w") as wheel:
        code = f"def main():\n    print('edge-agent {version}')\n"
        code += f"def cloud():\n    print('cloud-server {version}')\n"
        wheel.writestr("edge_agent/__init__.py", code)
        wheel.writestr("edge_agent/update/__init__.py", "")
        wheel.write(ROOT / BOOT, BOOT)
        about = f"Metadata-Version: 2.1\nName: neural-bridge\nVersion: {version}\n"
        wheel.writestr(
            f"{info}/METADATA", about + "".join(f"Provides-Extra: {extra}\n" for extra in EXTRAS)
        )
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        command = "[console_scripts]\nedge-agent = edge_agent:main\n"
        command += "cloud-server = edge_agent:cloud\n"
        wheel.writestr(f"{info}/entry_points.txt", command)
        wheel.writestr(f"{info}/RECORD", "")
    return folder
