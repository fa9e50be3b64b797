"""Starts an engine with some bundles; prints its resident memory and how long it took.

`python -m benchmarks.hub.start MODEL BUNDLE...`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from cloud_server.engine.transformers import TransformersEngine
from cloud_server.settings import load
from protos.process.memory import resident_bytes


def main() -> None:
    """Load, then tell."""
    model, *bundles = map(Path, sys.argv[1:])
    settings = load({"model": model, "bundles": bundles, "threads": 2}, environ={})
    began = time.perf_counter()
    TransformersEngine(settings, lambda _: None).load()
    print(json.dumps({"seconds": time.perf_counter() - began, "bytes": resident_bytes()}))


if __name__ == "__main__":
    main()
