"""What a run that ended badly leaves: one report, for the service and whoever looks at the disk.

While an agent runs, `running.json` says with what settings. A run that ends well removes it. If the
next start finds it, the run before was killed, crashed in C, or lost its power.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from edge_agent.device.log_ring import bounded
from protos.errors import DiskFullError
from protos.process.files import write_file

MOST_BYTES = 64 << 10
"""Of one report."""
_MOST_REPORTS = 16
_MOST_FAULT_BYTES = 16 << 10
_RUNNING, _FAULT = "running.json", "fault.txt"


class CrashReports:
    """The reports of one state directory.

    Args:
        folder: where they lie; a folder that cannot be written leaves no reports.
        boot: id of this boot.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, boot: str, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._boot, self._clock = boot, clock
        self._fault: IO[bytes] | None = None
        self._facts: dict[str, Any] = {}

    def begin(self, facts: Mapping[str, Any], last_lines: Iterable[str]) -> dict[str, Any] | None:
        """Begin a run: report how the one before ended, if badly, and watch this one.

        Args:
            facts: version and settings, without secrets.
            last_lines: the log lines that the run before left.

        Returns:
            The report about the run before; None if it ended well.
        """
        self._facts = {**facts, "pid": os.getpid(), "boot": self._boot, "began": self._clock()}
        report = None
        with contextlib.suppress(OSError, DiskFullError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            report = self._about_the_last(list(last_lines))
            write_file(self.folder / _RUNNING, json.dumps(self._facts).encode(), 0o600)
            self._fault = (self.folder / _FAULT).open("wb", buffering=0)
            faulthandler.enable(self._fault)
        return report

    def failed(self, error: BaseException, lines: Iterable[str]) -> None:
        """Report the error that ends this run."""
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError, DiskFullError):
            self._write("exception", self._facts, text[-_MOST_FAULT_BYTES:], list(lines))

    def end(self) -> None:
        """This run ends by itself."""
        if self._fault is not None:
            faulthandler.disable()
            self._fault.close()
            self._fault = None
            with contextlib.suppress(OSError):
                (self.folder / _FAULT).unlink()
                (self.folder / _RUNNING).unlink()

    def waiting(self) -> list[Path]:
        """The files of reports that the service does not have yet, oldest first."""
        return sorted(self.folder.glob("report-*.json"))

    def sent(self, path: Path) -> None:
        """The service has this one."""
        with contextlib.suppress(OSError):
            path.rename(path.with_name(path.name.replace("report-", "sent-")))
            self._tidy()

    def _about_the_last(self, lines: list[str]) -> dict[str, Any] | None:
        try:
            with (self.folder / _RUNNING).open("rb") as file:
                facts = json.loads(file.read(MOST_BYTES))
        except (OSError, ValueError):
            return None
        if not isinstance(facts, dict):
            return None
        fault = ""
        with contextlib.suppress(OSError), (self.folder / _FAULT).open("rb") as file:
            fault = file.read(_MOST_FAULT_BYTES).decode(errors="replace")
        kind = "killed"
        if fault:
            kind = "fault"
        elif self._boot and facts.get("boot") != self._boot:
            kind = "power"
        return self._write(kind, facts, fault, lines)

    def _write(
        self, kind: str, facts: Mapping[str, Any], cause: str, lines: list[str]
    ) -> dict[str, Any]:
        report = {"kind": kind, "at": self._clock(), **facts, "cause": cause}
        room = MOST_BYTES - len(json.dumps(report).encode())
        if room < 0:
            report = {"kind": kind, "at": report["at"], "version": facts.get("version"),
                      "cause": cause}  # fmt: skip
        kept = bounded(lines)
        while kept and len(json.dumps({**report, "log": kept})) > MOST_BYTES:
            kept = kept[1 + len(kept) // 8 :]
        report["log"] = kept
        name = f"report-{int(self._clock() * 1000):015d}-{os.getpid()}.json"
        write_file(self.folder / name, json.dumps(report).encode(), 0o600)
        self._tidy()
        return report

    def _tidy(self) -> None:
        """Keep the newest reports only."""
        every = sorted(self.folder.glob("*-*.json"), key=lambda path: path.name.partition("-")[2])
        for old in every[:-_MOST_REPORTS]:
            with contextlib.suppress(OSError):
                old.unlink()
