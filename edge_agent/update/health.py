"""Which slot this agent runs from, and that it answers: what `boot.judge` reads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.record import AnswerRecord
from edge_agent.update.boot import HEALTH, HEALTHY_FRAMES, Slot, Slots
from protos.process.files import write_file


def running_slot(slots: Slots) -> tuple[str, Slot] | None:
    """The slot that runs, with its name; None where the agent does not run from slots."""
    name = slots.current()
    slot = slots.slot(name) if name is not None else None
    return (name, slot) if name is not None and slot is not None else None


@dataclass
class Health:
    """Counts frames that the service answered or holds, and tells so once there are enough.

    Attributes:
        slot: the slot that runs.
        folder: the agent's state directory.
    """

    slot: Slot
    folder: Path
    _frames: int = 0

    def counting(self, on_record: Callable[[AnswerRecord], None]) -> Callable[[AnswerRecord], None]:
        """The same callback, with each record counted."""

        def counted(record: AnswerRecord) -> None:
            on_record(record)
            if record.error is None and not record.fallback:
                self._frames += 1
                if self._frames == HEALTHY_FRAMES:
                    self._tell()

        return counted

    def _tell(self) -> None:
        told = json.dumps({"id": self.slot.id, "frames": self._frames})
        with contextlib.suppress(OSError):  # a slot that cannot tell is left: that is safe
            write_file(self.folder / HEALTH.name, told.encode())
