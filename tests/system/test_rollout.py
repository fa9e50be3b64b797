"""A new version of a bundle under a real agent: every question is answered exactly once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cloud_server import cli
from projector.bundle.load import Bundle
from projector.bundle.write import write_next
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL, ENVIRONMENT
from reference.demo.processes import Child
from tests.system.test_reconnect import answers, free_port

pytestmark = pytest.mark.slow

PICTURES, QUESTIONS = 200, 6
ALL = PICTURES * QUESTIONS


def next_version(out: Path) -> Path:
    """The reference bundle again, as its next version."""
    info = Bundle.peek(BUNDLE)
    bundle = Bundle.load(BUNDLE, info.source, info.target)
    write_next(
        bundle,
        out,
        encoder=bundle.encoder,
        service_risk=bundle.service_risk,
        canary=bundle.canary,
    )
    return out


def test_a_version_is_activated_and_rolled_back_while_frames_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, port, output = tmp_path / "home", free_port(), tmp_path / "answers.jsonl"

    def operator(*typed: str) -> Any:
        assert cli.main([*typed, "--directory", str(home)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert cli.main(["init", str(home)]) == 0
    old = Bundle.peek(BUNDLE).version
    new = old + 1
    operator("bundles", "add", str(BUNDLE))
    operator("bundles", "activate", f"edge-a-cloud@{old}")
    operator("bundles", "add", str(next_version(tmp_path / "next")))
    serve = [
        *("cloud_server", "serve", "--model", str(CLOUD_MODEL), "--directory", str(home)),
        *("--insecure", "--port", str(port), "--open-port", "0", "--metrics-port", "0"),
        *("--api-port", "0"),
        *("--threads", "1", "--bundle-move-s", "0.5"),
    ]
    watch = [
        *("edge_agent", "run", "--server", f"127.0.0.1:{port}", "--model", str(EDGE_MODEL)),
        *("--source", f"yard://validation?count={PICTURES}&questions={QUESTIONS}"),
        *("--question-mode", "infer", "--in-flight", "4", "--max-new-tokens", "8"),
        *("--output", str(output), "--state-dir", str(tmp_path / "state")),
    ]
    done: list[str] = []

    def operate() -> None:
        if not done and len(answers(output)) >= ALL // 10:
            done.append(operator("bundles", "activate", f"edge-a-cloud@{new}", "--wait", "60"))
        elif len(done) == 1 and versions(tmp_path / "service.log")[-1:] == [str(new)]:
            done.append(operator("bundles", "rollback", f"edge-a-cloud@{new}"))

    with Child("cloud-server", serve, tmp_path / "service.log", ENVIRONMENT) as service:
        service.ready(120)
        with Child("edge-agent", watch, tmp_path / "agent.log", ENVIRONMENT) as agent:
            agent.check(agent.wait(operate, 240))
        shown = json.loads(operator("bundles", "list", "--json"))
    found = answers(output)
    assert len(done) == 2, "the agent was done before the version was activated and rolled back"
    assert not [row for row in found if row.get("error")]
    once = Counter((row["capture"], row["question"]) for row in found)
    assert len(once) == ALL and set(once.values()) == {1}
    assert len({row["request_id"] for row in found}) == ALL
    assert versions(tmp_path / "service.log") == [str(old), str(new), str(old)]
    assert "48 of 48 answers as recorded" in done[0]
    assert {row["version"]: row["wanted"] for row in shown} == {old: "active", new: "rolled_back"}


def versions(log: Path) -> list[str]:
    """The versions on which answers were given, in order, from the service's log."""
    of, found = {}, []
    for line in log.read_text().splitlines():
        if not (line.startswith("{") and line.endswith("}")):
            continue
        told = json.loads(line)
        if told.get("event") == "session opened":
            of[told["session"]] = told["bundle_version"]
        elif told.get("event") == "answered":
            version = of[told["session"]]
            if found[-1:] != [version]:
                found.append(version)
    return found
