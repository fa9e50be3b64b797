"""Re-trains everything the repository ships: `python -m reference`, or `make reference`.

Knows the order: the models (independently), then each edge's map to the cloud. Each step resumes.
"""

from __future__ import annotations

import subprocess
import sys

SMALL = (
    *("--pictures", "10240", "--reconstruct-steps", "1800"),
    *("--task-steps", "1800", "--finish-steps", "600"),
)
"""Of the second and third edge model, whose maps are small and quick."""


def guarded(edge: str) -> tuple[str, ...]:
    """Learn what the guard goes by, into the bundle."""
    bundle = f"reference/bundles/{edge}-cloud"
    return (
        *("benchmarks.guard", "--edge", f"reference/models/{edge}", "--bundle", bundle),
        *("--bundle-out", bundle, "--calibration", "768", "--pictures", "0"),
    )


STEPS = (
    ("reference.train_vlm", "cloud"),
    ("reference.train_vlm", "edge-a"),
    ("reference.build_bundle", "edge-a"),
    guarded("edge-a"),
    ("reference.train_vlm", "edge-b"),
    ("reference.build_bundle", "edge-b", *SMALL),
    guarded("edge-b"),
    ("reference.train_vlm", "edge-c"),
    ("reference.build_bundle", "edge-c", *SMALL),
    guarded("edge-c"),
    ("benchmarks.model_cards",),
)


def main() -> int:
    """Runs every step in a process of its own; stops at the first that fails."""
    for number, (module, *arguments) in enumerate(STEPS, start=1):
        print(
            f"reference: step {number} of {len(STEPS)}: {' '.join([module, *arguments])}",
            flush=True,
        )
        done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
