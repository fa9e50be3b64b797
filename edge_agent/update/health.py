"""Which slot this agent runs from, and that it answers: what `boot.judge` reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.metrics import Metrics
from edge_agent.record import AnswerRecord
from edge_agent.update.boot import HEALTH, HEALTHY_FRAMES, Slot, Slots
from edge_agent.uplink.encoder_store import EncoderStore
from protos.errors import BridgeError
from protos.process import logs
from protos.process.files import write_file


def running_slot(slots: Slots) -> tuple[str, Slot] | None:
    """The slot that this process runs from, with its name; None if it runs from no slot."""
    name = slots.current()
    slot = slots.slot(name) if name is not None else None
    if name is None or slot is None:
        return None
    environment = (slots.root / "parts" / slot.parts["agent"]).resolve()
    return (name, slot) if Path(sys.prefix).resolve() == environment else None


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


def begin_health(
    slots: Slots,
    running: tuple[str, Slot],
    folder: Path | None,
    metrics: Metrics,
    log: logs.Logger,
    on_record: Callable[[AnswerRecord], None],
) -> Callable[[AnswerRecord], None]:
    """Tell by log and metric which slot runs; returns the callback that counts its answers."""
    name, slot = running
    log.info("slot", slot=name, number=slot.number, version=slot.version)
    metrics.slot.labels(name, str(slot.number)).set(1)
    if folder is None:
        return on_record
    take_edge_halves(slots.folders / name / "bundle", EncoderStore(folder), log)
    return Health(slot, folder).counting(on_record)


def take_edge_halves(bundle: Path, store: EncoderStore, log: logs.Logger) -> None:
    """Keep the edge halves that an update brought, so that they are not fetched."""
    for file in sorted(bundle.rglob("*.safetensors")):
        try:
            blob = file.read_bytes()
            digest = hashlib.sha256(blob).hexdigest()
            if store.get(digest) is None:
                store.put(digest, blob)
        except (OSError, BridgeError) as error:  # the service has it too
            log.warning("edge_half_not_kept", file=str(file), cause=str(error))
