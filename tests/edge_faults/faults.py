"""Faults injected into a device: how many of each kind, and what they did to its frames."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

FULL = os.environ.get("NEURAL_BRIDGE_FAULTS") == "full"


def times(few: int, full: int) -> int:
    """How often to do something: a few times in `make test`, in full in `make test-edge`."""
    return full if FULL else few


@dataclass
class EdgeFaults:
    """What was injected so far, for `build/edge_faults.json`.

    Attributes:
        path: of the report; None outside `make test-edge`.
        kinds: by kind: faults, frames accepted, lost, doubled, and further figures.
    """

    path: Path | None
    kinds: dict[str, dict[str, int | float]] = field(default_factory=dict)

    def judged(
        self,
        kind: str,
        faults: int,
        frames: int,
        lost: int,
        doubled: int,
        **more: float | list[int],
    ) -> None:
        """Report the faults of one kind, and assert that nothing was lost or answered twice.

        Args:
            kind: its name.
            faults: how many were injected.
            frames: frames accepted meanwhile.
            lost: of these, those without a record in the end.
            doubled: of these, those with more than one.
            more: further figures.
        """
        figures = {"faults": faults, "frames": frames, "lost": lost, "doubled": doubled, **more}
        print(f"edge faults: {kind}: {figures}", flush=True)
        self.kinds[kind] = figures
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+") as file:  # several test processes write it
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                known = json.loads(file.read() or '{"kinds": {}}')
                known["kinds"][kind] = figures
                for name in ("faults", "frames", "lost", "doubled"):
                    known[name] = sum(each[name] for each in known["kinds"].values())
                file.truncate(0)
                file.write(json.dumps(known, indent=2) + "\n")
        assert (lost, doubled) == (0, 0), f"{kind}: {lost} lost, {doubled} doubled"
