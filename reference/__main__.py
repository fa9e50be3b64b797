"""Re-trains everything the repository ships: `python -m reference`, or `make reference`.

Knows the order: the models (independently), then each edge's map to the cloud. Each step resumes.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys

from protos.process.stopping import Stopping

LARGE_BATCHES = (
    *("--pictures", "16384", "--batch", "64", "--reconstruct-steps", "2500"),
    *("--task-steps", "2900", "--finish-steps", "700"),
)
"""Of the second and third edge model: minutes on a GPU; on two cores it was not run."""


def mapped(edge: str, device: str, *recipe: str) -> tuple[str, ...]:
    """Train the map of an edge model and write its bundle."""
    return ("reference.build_bundle", edge, "--device", device, *recipe)


def guarded(edge: str) -> tuple[str, ...]:
    """Learn what the guard goes by, into the bundle."""
    bundle = f"reference/bundles/{edge}-cloud"
    return (
        *("benchmarks.guard", "--edge", f"reference/models/{edge}", "--bundle", bundle),
        *("--bundle-out", bundle, "--calibration", "3072", "--pictures", "0"),
    )


def steps(device: str) -> tuple[tuple[str, ...], ...]:
    """Every step, in order.

    Args:
        device: where maps are trained.
    """
    return (
        ("reference.train_vlm", "cloud"),
        ("reference.train_vlm", "edge-a"),
        mapped("edge-a", device),
        guarded("edge-a"),
        ("reference.train_vlm", "edge-b"),
        mapped("edge-b", device, *LARGE_BATCHES),
        guarded("edge-b"),
        ("reference.train_vlm", "edge-c"),
        mapped("edge-c", device, *LARGE_BATCHES),
        guarded("edge-c"),
        ("benchmarks.model_cards",),
    )


def _ended(process: subprocess.Popen[bytes], stopping: Stopping) -> int:
    """The exit code of a step; a SIGTERM that only this process got is handed on."""
    handed = False
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if stopping.asked == signal.SIGTERM and not handed:
                process.send_signal(signal.SIGTERM)
                handed = True


def main() -> int:
    """Runs every step in a process of its own; stops at the first that fails."""
    parser = argparse.ArgumentParser(prog="python -m reference", description=__doc__)
    parser.add_argument("--device", default="cpu", help="where maps are trained, such as cuda")
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    args = parser.parse_args()
    every = steps(args.device)
    for number, command in enumerate(every, start=1):
        print(f"reference: step {number} of {len(every)}: {' '.join(command)}", flush=True)
        if args.list:
            continue
        with Stopping(patient=True) as stopping:
            # Ctrl-C reaches the step as well, which keeps its state before it goes.
            process = subprocess.Popen([sys.executable, "-m", *command])
            code = _ended(process, stopping)
        if stopping.asked:
            return 128 + stopping.asked
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
