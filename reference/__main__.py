"""Re-trains everything the repository ships: `python -m reference`, or `make reference`.

First the models, each by itself, then each edge's map to the cloud. Each step resumes.
"""

from __future__ import annotations

import argparse
import sys

from reference.recipe import run_module


def bundled(edge: str, device: str) -> tuple[str, ...]:
    """Make the bundle of an edge model, by its recipe."""
    out = f"reference/bundles/{edge}-cloud"
    return ("reference.recipe", edge, "--device", device, "--out", out)


def steps(device: str) -> tuple[tuple[str, ...], ...]:
    """Every step, in order.

    Args:
        device: where maps are trained.
    """
    return (
        ("reference.train_vlm", "cloud"),
        ("reference.train_vlm", "edge-a"),
        bundled("edge-a", device),
        ("reference.train_vlm", "edge-b"),
        bundled("edge-b", device),
        ("reference.train_vlm", "edge-c"),
        bundled("edge-c", device),
        ("benchmarks.model_cards",),
    )


def main() -> int:
    """Run every step in a process of its own; stop at the first that fails."""
    parser = argparse.ArgumentParser(prog="python -m reference", description=__doc__)
    parser.add_argument("--device", default="cpu", help="where maps are trained, such as cuda")
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    args = parser.parse_args()
    every = steps(args.device)
    for number, command in enumerate(every, start=1):
        print(f"reference: step {number} of {len(every)}: {' '.join(command)}", flush=True)
        if args.list:
            continue
        if code := run_module(command):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
