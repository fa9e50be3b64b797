"""The agent and its standard streams, as a shell sees both."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from edge_agent.settings import PREFIX
from protos.errors import DiskFullError
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import make_encoder

AGENT = """
import sys
sys.modules["torch"] = None  # as on a device; its import takes longer than the run
from edge_agent import assemble, cli
from tests.fakes.fake_edge import FakeModel
assemble.load = lambda *_: FakeModel()
sys.exit(cli.main(sys.argv[1:]))
"""
PICTURES = 40


@pytest.fixture(scope="module")
def server() -> Iterator[FakeBridge]:
    served = FakeBridge(make_encoder())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(served.start(), loop).result(10)
    yield served
    asyncio.run_coroutine_threadsafe(served.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "pictures").mkdir()
    for i in range(PICTURES):
        Image.new("RGB", (9, 9), (i, 1, 2)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path


def shell(stage: Path, server: FakeBridge, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which $RUN and $ASK stand for the agent's commands."""
    agent = [sys.executable, "-c", AGENT]
    common = ["--model", "model", "--server", server.address, "--state-dir", "state"]
    run = [*agent, "run", *common, "--source", "pictures", "--question", "x"]
    ask = [*agent, "ask", "pictures/0.png", "x", *common]
    script = script.replace("$RUN", shlex.join(run)).replace("$ASK", shlex.join(ask))
    environ = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=stage,
        capture_output=True,
        text=True,
        timeout=240,
        env=environ | {"PYTHONPATH": os.getcwd()},
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "streams", ["2>/dev/full", "2>&-", ">&- 2>&- <&-", "2>/dev/full --progress"]
)
def test_every_question_is_answered_whatever_the_streams_are(
    stage: Path, server: FakeBridge, streams: str
) -> None:
    done = shell(stage, server, f"$RUN --output out.jsonl {streams}")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (stage / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["about x"] * PICTURES
    assert done.stdout == "", "logs went where the answers go"


def test_a_run_goes_on_after_the_reader_of_its_logs_is_gone(
    stage: Path, server: FakeBridge
) -> None:
    done = shell(
        stage,
        server,
        "$RUN --output out.jsonl --log-level debug 2>&1 >/dev/null | true;exit ${PIPESTATUS[0]}",
    )
    assert done.returncode == 0
    assert len((stage / "out.jsonl").read_text().splitlines()) == PICTURES


def test_a_closed_pipe_ends_the_run_as_a_shell_expects(stage: Path, server: FakeBridge) -> None:
    done = shell(stage, server, "$RUN 2>err | head -1; exit ${PIPESTATUS[0]}")
    assert done.returncode == 141
    assert len(done.stdout.splitlines()) == 1
    said = (stage / "err").read_text()
    assert "BrokenPipe" not in said and "Traceback" not in said
    assert all(json.loads(line) for line in said.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["$RUN", "$ASK"])
def test_answers_that_cannot_be_written_are_an_error_that_says_so(
    stage: Path, server: FakeBridge, command: str
) -> None:
    done = shell(stage, server, f"{command} >/dev/full")
    assert done.returncode == DiskFullError.exit_code
    last = done.stderr.splitlines()[-1]
    assert last.startswith("edge-agent: disk_full: standard output") and "No space" in last


@pytest.mark.slow
def test_a_closed_standard_output_counts_as_dev_null(stage: Path, server: FakeBridge) -> None:
    assert shell(stage, server, "$ASK >&-").returncode == 0
    assert shell(stage, server, "$RUN >&-").returncode == 0
