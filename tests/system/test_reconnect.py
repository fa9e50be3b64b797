"""The server killed in mid-stream, with real processes: nothing is lost, nothing answered twice."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest

from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL, ENVIRONMENT
from reference.demo.processes import Child

pytestmark = pytest.mark.slow

PICTURES, QUESTIONS = 10, 6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(path: Path) -> list[dict[str, object]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_an_agent_outlives_its_server_and_answers_every_question_once(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "answers.jsonl"
    serve = [
        *("cloud_server", "serve", "--model", str(CLOUD_MODEL), "--bundles", str(BUNDLE)),
        *("--port", str(port), "--metrics-port", "0", "--threads", "1"),
    ]
    watch = [
        *("edge_agent", "run", "--server", f"127.0.0.1:{port}", "--model", str(EDGE_MODEL)),
        *("--source", f"yard://validation?count={PICTURES}&questions={QUESTIONS}"),
        *("--question-mode", "infer", "--in-flight", "4", "--max-new-tokens", "8"),
        *("--output", str(output), "--state-dir", str(tmp_path / "state")),
    ]
    killed = []

    def kill_in_mid_stream() -> None:
        if not killed and len(answers(output)) >= PICTURES * QUESTIONS // 4:
            os.kill(first.pid, signal.SIGKILL)
            killed.append(len(answers(output)))
            second.__enter__()

    first = Child("cloud-server", serve, tmp_path / "first.log", ENVIRONMENT)
    second = Child("cloud-server again", serve, tmp_path / "second.log", ENVIRONMENT)
    with first:
        first.ready(120)
        with Child("edge-agent", watch, tmp_path / "agent.log", ENVIRONMENT) as agent:
            try:
                agent.check(agent.wait(kill_in_mid_stream, 240))
            finally:
                if killed:
                    second.__exit__(None, None, None)
    found = answers(output)
    assert killed and killed[0] < PICTURES * QUESTIONS, "the server was not killed in mid-stream"
    assert not [row for row in found if row.get("error")]
    once = Counter((row["capture"], row["question"]) for row in found)
    assert len(once) == PICTURES * QUESTIONS and set(once.values()) == {1}
    assert len({row["request_id"] for row in found}) == len(found)
