"""The service of `benchmarks.serve.stub_engine` with every counter and histogram switched off.

`python -m benchmarks.observe.uncounted serve SETTINGS`: the cost of telemetry is told against it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.serve import stub_engine
from cloud_server import engine as engines
from cloud_server.settings import load
from protos.process.metric_kinds import LateCounter, LateHistogram


def _nothing(self: Any, *_: Any) -> None:
    """Count nothing."""


if __name__ == "__main__":
    for kind, name in ((LateCounter, "inc"), (LateHistogram, "observe")):
        setattr(kind, name, _nothing)
    engines.ENGINES["stub"] = (stub_engine.__name__, "StubEngine")
    stub_engine.serve(load(json.loads(sys.argv[2]) | {"engine": "stub"}, environ={}))
