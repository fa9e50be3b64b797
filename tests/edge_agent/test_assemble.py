"""An agent put together from its settings: what it brings along, and how far it says it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.progress import Progress
from protos.process import logs

ROOT = Path(__file__).resolve().parents[2]


def test_the_agent_starts_without_torch_and_without_the_cloud() -> None:
    script = (
        "import sys, edge_agent.cli, edge_agent.frame_maker, edge_agent.prefill\n"
        "import edge_agent.uplink.scenes\n"
        "bad = ('torch', 'transformers', 'onnxruntime', 'cloud_server', 'reference', 'msgspec')\n"
        "print([m for m in sys.modules if m.split('.')[0] in bad])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_long_run_off_a_terminal_says_how_far_it_is_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    with Progress(100, False, logs.configure("info", "edge_agent"), lambda: now[0]) as advance:
        for _ in range(100):
            now[0] += 1.0
            advance()
    logs.drain()
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(row["event"], row["captures"], row["of"], row["left_s"]) for row in told] == [
        *(("progress", done, 100, 100 - done) for done in (30, 60, 90))
    ]
