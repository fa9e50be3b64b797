"""Re-trains everything the repository ships: `python -m reference`, or `make reference`.

Knows the order: both models (independently), then the map between them. Each step resumes.
"""

from __future__ import annotations

import subprocess
import sys

STEPS = (
    ("reference.train_vlm", "cloud"),
    ("reference.train_vlm", "edge-a"),
    ("reference.build_bundle", "edge-a"),
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
