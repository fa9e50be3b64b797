"""The service's settings on the disk, and the way back from settings that do not work.

Settings that need a start of the agent are on trial until the service hears the agent that runs
with them. If it ends with an error before that, is started three times, or does not reach the
service for half an hour, the settings before are in force again. A start is counted on the disk
before anything is done with settings on trial.

Settings in force may stop working too: what they name is gone, or they were taken live. If a run
ends because settings make no sense, the next one is without the service's. If the service hears
that one, they are taken back; if it ends as well, they were not to blame.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from edge_agent.remote.overlay import Overlaid, overlaid
from edge_agent.settings import Settings
from protos.errors import BridgeError
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.files import write_file, writing
from protos.remote import LONGEST_SETTINGS

FILE = "remote.json"
MOST_STARTS = 3
"""Starts that settings on trial get."""
_MOST_TEXT = 512
_Revision = Annotated[int, Field(ge=0, le=1 << 53)]


@dataclass(frozen=True)
class OnTrial:
    """Settings that have to prove themselves.

    Attributes:
        revision: of the service's settings.
        values: by name, as they came.
        order: id of the order that brought them, in hexadecimal digits.
        starts: of the agent with them.
    """

    revision: _Revision
    values: dict[str, Any]
    order: str
    starts: int = 0


@dataclass(frozen=True)
class Failed:
    """Settings that did not work: the order that brought them, and why they do not."""

    revision: _Revision
    order: str
    cause: str


@dataclass(frozen=True)
class _State:
    revision: _Revision = 0
    values: dict[str, Any] = field(default_factory=dict)
    trial: OnTrial | None = None
    failed: Failed | None = None
    doubt: str = ""


_KEPT = TypeAdapter(_State)


class RemoteSettings:
    """The service's settings of one device.

    Args:
        folder: the state directory.
        own: reads the device's own settings, from all their sources.

    Attributes:
        shown: the settings in use with the service's laid over them, after `read`.
        wants_restart: whether the agent starts again once it has ended.
    """

    def __init__(self, folder: Path, own: Callable[[], Settings]) -> None:
        self.folder, self.own = folder, own
        self._path = folder / FILE
        self._state = self._read()
        self.shown: Overlaid | None = None
        self.wants_restart = False

    @property
    def trial(self) -> OnTrial | None:
        """The settings on trial; None if there are none."""
        return self._state.trial

    @property
    def failed(self) -> Failed | None:
        """The newest settings that did not work; None once others were taken."""
        state = self._state
        return Failed(state.revision, "", state.doubt) if state.doubt else state.failed

    @property
    def revision(self) -> int:
        """The revision in force; 0: none."""
        return self._state.revision

    def start(self) -> None:
        """The agent starts: count it, and go back if it was started too often with a trial."""
        trial = self._state.trial
        if trial is None:
            return
        if trial.starts >= MOST_STARTS:
            self.back(f"the agent was started {trial.starts} times with them and never ran")
            return
        try:
            self._write(replace(self._state, trial=replace(trial, starts=trial.starts + 1)))
        except BridgeError:  # a start that cannot be counted is none with a trial
            self._state = replace(self._state, trial=None)

    def read(self) -> Settings:
        """The settings to use: the device's own, with the service's laid over them.

        Raises:
            ConfigError: the device's own cannot be used.
        """
        trial, values = self._state.trial, {} if self._state.doubt else self._state.values
        self.shown = overlaid(self.own(), values if trial is None else trial.values)
        return self.shown.settings

    def take(self, revision: int, values: Mapping[str, Any]) -> None:
        """These are in force from now on.

        Raises:
            DiskFullError, ConfigError: they cannot be kept.
        """
        self._write(_State(revision, dict(values)))

    def attempt(self, revision: int, values: Mapping[str, Any], order: str) -> None:
        """Use these from the next start on.

        Raises:
            DiskFullError, ConfigError: they cannot be kept.
        """
        trial = OnTrial(revision, dict(values), order)
        self._write(replace(self._state, trial=trial, failed=None))

    def confirm(self) -> OnTrial | None:
        """Settings on trial work and are in force; returns them, or None without any.

        Settings in doubt are taken back: the agent runs without them.
        """
        state, trial = self._state, self._state.trial
        if trial is not None:
            self._write(_State(trial.revision, trial.values))
        elif state.doubt:
            self._write(_State(failed=Failed(state.revision, "", state.doubt)))
        return trial

    def doubt(self, cause: str) -> bool:
        """A run with the settings in force ended, as settings make no sense.

        Returns:
            Whether to run without the service's settings next; if not, the fault is the device's.
        """
        doubted = not self._state.doubt and bool(self._state.values)
        if not doubted and not self._state.doubt:
            return False
        try:
            self._write(replace(self._state, doubt=short(cause) if doubted else ""))
        except BridgeError:
            return False
        return doubted

    def back(self, cause: str) -> None:
        """The settings on trial do not work: those before are in force again."""
        trial = self._state.trial
        if trial is not None:
            self._state = replace(
                self._state, trial=None, failed=Failed(trial.revision, trial.order, short(cause))
            )
            self._write(self._state)

    def standing(self) -> bridge_pb2.Settings:
        """How the service's settings stand, for the service."""
        failed = self.failed
        told = bridge_pb2.Settings(
            revision=0 if self._state.doubt else self._state.revision,
            tried=self._state.revision if failed is None else failed.revision,
        )
        if self.shown is not None and failed is None:
            for name, error in list(self.shown.refused.items())[:64]:
                told.refused.add(
                    name=short(name, 64), code=error.code, message=short(error.message)
                )
        if failed is not None:
            told.refused.add(name="all", code=0, message=short(failed.cause))
        return told

    def stand(self) -> dict[str, Any] | None:
        """How the service's settings stand, for `edge-agent status`; None if it never set any."""
        state, shown = self._state, self.shown
        if state == _State():
            return None
        trial, failed = state.trial, self.failed
        return {
            "revision": 0 if state.doubt else state.revision,
            "taken": [] if shown is None else sorted(shown.taken),
            "refused": {}
            if shown is None
            else {name: short(error.message) for name, error in sorted(shown.refused.items())},
            "on_trial": None
            if trial is None
            else {"revision": trial.revision, "starts": trial.starts, "most_starts": MOST_STARTS},
            "taken_back": None
            if failed is None
            else {"revision": failed.revision, "cause": failed.cause},
        }

    def _read(self) -> _State:
        try:
            raw = self._path.read_bytes()
            if len(raw) > 4 * LONGEST_SETTINGS:
                raise ValueError("too long")
            told = json.loads(raw)
            if not {"revision", "values", "trial", "failed"} <= told.keys():
                raise ValueError("a part is missing")
            return _KEPT.validate_python(told)
        except FileNotFoundError:
            return _State()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return _State()  # the service gives them again

    def _write(self, state: _State) -> None:
        with writing(str(self._path)):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(self._path, json.dumps(asdict(state)).encode(), 0o600)
        self._state = state


def short(text: str, most: int = _MOST_TEXT) -> str:
    """A text as the service takes it: no more bytes than that, whatever was in a file's name."""
    return text.encode(errors="replace")[:most].decode(errors="ignore").replace("\0", "")
