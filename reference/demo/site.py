"""Sets the demo's service up as an operator would: authority, tenant, device, operator's key.

Each run makes everything anew, in the report's folder.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from reference.demo.halves import ENVIRONMENT
from reference.demo.processes import finished

TENANT, DEVICE = "demo", "camera-1"


@dataclass(frozen=True)
class Site:
    """A service's directory, one-time code and operator's key.

    Attributes:
        out: folder of the report.
        code: one-time code of the device.
        operator_key: bearer key that may read the service's metrics.
    """

    out: Path
    code: str
    operator_key: str

    @classmethod
    def made(cls, out: Path) -> Site:
        """Make the directory `service` in a folder; it replaces one of an earlier run.

        Raises:
            ChildError: a command of the service failed.
        """
        folder = out / "service"
        if (folder / "settings.toml").is_file():
            shutil.rmtree(folder)
        log = out / "setting-up.log"
        log.unlink(missing_ok=True)

        def operator(*words: str) -> str:
            return finished(" ".join(words[:2]), ("cloud_server", *words), log, ENVIRONMENT)

        operator("init", str(folder))
        there = ("--directory", str(folder))
        operator("tenants", "add", TENANT, *there)
        device = operator("devices", "add", DEVICE, "--tenant", TENANT, "--json", *there)
        key = operator("keys", "add", "watcher", *_OF_THE_SERVICE, "--json", *there)
        return cls(out, json.loads(device)["code"], json.loads(key)["key"])

    @property
    def folder(self) -> Path:
        """The service's directory."""
        return self.out / "service"

    def enrolled(self, address: str) -> str:
        """Enrol the device; returns the command's output.

        Args:
            address: the service's address for enrolment.

        Raises:
            ChildError: enrolment failed.
        """
        enrol = ("edge_agent", "enrol", "--server", address, "--code", self.code, "--force")
        state = ("--state-dir", str(self.out / "state" / "agent"))
        log = self.out / "setting-up.log"
        return finished("edge-agent enrol", (*enrol, *state), log, ENVIRONMENT).strip()


_OF_THE_SERVICE = ("--tenant", "service", "--kind", "operator", "--scope", "read")
