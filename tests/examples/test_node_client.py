"""The client in JavaScript against services: the agent's answers, and every way to be refused."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_agent.identity.enrol import enrol
from edge_agent.identity.identity_file import IdentityFile
from examples.node.export_state import export, write_state
from protos.errors import EngineUnavailableError, OverloadedError
from protos.identity import OneTimeCode
from tests.cloud_server import stage
from tests.examples.conftest import FOLDER
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import LAYOUT, make_encoder, state_of
from tests.fakes.secure_bridge import SecureBridge

ROOT = FOLDER.parents[1]
EDGE, CLOUD = ROOT / "reference/models/edge-a", ROOT / "reference/models/cloud"
BUNDLE = ROOT / "reference/bundles/edge-a-cloud"
PICTURES = 2


def command(node: str, server: str, folder: Path, *more: str) -> list[str]:
    client = [node, str(FOLDER / "client.mjs"), "--server", server]
    return [*client, "--state", str(folder / "state.safetensors"), *more]


# ----------------------------------------------------------------------------- a real service


@pytest.fixture(scope="module")
def server(node: str) -> Iterator[stage.Server]:
    with stage.running_server(CLOUD, [BUNDLE]) as running:
        yield running


def client(node: str, server: stage.Server, folder: Path, *more: str) -> str:
    """What the client prints."""
    done = subprocess.run(
        command(node, f"127.0.0.1:{server.port}", folder, *more),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def agent(
    server: stage.Server, folder: Path, questions: list[str], point: str
) -> list[dict[str, Any]]:
    """The Python agent's records about the same picture at the same point."""
    asked = [part for question in questions for part in ("--questions", question)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edge_agent", "run", "--model", str(EDGE)),
            *("--server", f"127.0.0.1:{server.port}", "--point", point, "--picture-codec", "png"),
            *("--source", str(folder / "picture.png"), "--state-dir", str(folder / "agent")),
            *asked,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    records = {r["question"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert all(record["point"] == point for record in records.values())
    return [records[question] for question in questions]


def answers(printed: str) -> list[tuple[str, str]]:
    return re.findall(r"^(.*) -> (.*)$", printed, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(PICTURES))
def test_the_client_gets_the_agents_answers_from_the_same_cache_and_the_same_picture(
    node: str, server: stage.Server, tmp_path: Path, start: int
) -> None:
    seen = export(EDGE, f"yard://test?start={start}&count=1", tmp_path)
    questions = list(dict.fromkeys(seen.questions))[:2]
    assert len(questions) == 2
    printed = client(node, server, tmp_path, "--picture", str(tmp_path / "picture.png"), *questions)
    records = [
        record
        for point in ("fp8", "picture")
        for record in agent(server, tmp_path, questions, point)
    ]
    assert answers(printed) == [(record["question"], record["answer"]) for record in records]
    assert f"36 of 36 tokens, {records[0]['payload_bytes']} bytes" in printed
    # Each point sends one frame; frame number 0 is written out by the client's library.
    for number in (0, 1):
        assert len(re.findall(rf"^frame {number}: accepted", printed, re.MULTILINE)) == 1
        assert len(re.findall(rf"^frame {number}: token 0", printed, re.MULTILINE)) == 2
    # What the client measured arrived as what the agent measured.
    figures = dict(re.findall(r"(\w+) (\d\.\d{3})", printed.split("accepted, ")[1].split("\n")[0]))
    for name, value in figures.items():
        assert float(value) == pytest.approx(records[0]["distortion"][name], rel=0.04, abs=1e-3)
    assert len(figures) == 4


@pytest.mark.slow
def test_the_raw_cache_goes_too(node: str, server: stage.Server, tmp_path: Path) -> None:
    seen = export(EDGE, "yard://test?start=5&count=1", tmp_path)
    question = seen.questions[0]
    printed = client(node, server, tmp_path, "--point", "raw_kv_fp8", question)
    (record,) = agent(server, tmp_path, [question], "raw_kv_fp8")
    assert answers(printed) == [(question, record["answer"])]
    assert f"{record['payload_bytes']} bytes" in printed


def test_a_refusal_is_told_by_its_code_and_ends_the_client(
    node: str, server: stage.Server, tmp_path: Path
) -> None:
    export(EDGE, "yard://test?count=1", tmp_path)
    done = subprocess.run(
        command(node, f"127.0.0.1:{server.port}", tmp_path, "is there a fire ?", "q" * 600),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1 and "is there a fire ? -> " in done.stdout
    assert "402" in done.stderr and "600 bytes, at most 512" in done.stderr


@pytest.mark.slow
def test_the_example_runs_by_its_one_command(node: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.node"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" -> ") == 4


# ------------------------------------------------------------- a service that misbehaves on request


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = state_of(Image.new("RGB", (8, 8), "red"))
    write_state(state, LAYOUT, tmp_path / "state.safetensors")
    return tmp_path


def run(node: str, folder: Path, served: FakeBridge, *questions: str) -> tuple[int, str, str]:
    async def both() -> tuple[int, str, str]:
        await served.start()
        try:
            client = await asyncio.create_subprocess_exec(
                *command(node, served.address, folder, *questions),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(client.communicate(), 100)
            return client.returncode or 0, out.decode(), err.decode()
        finally:
            await served.stop()

    return asyncio.run(both())


ANSWERS = "what ? -> about what ?\n", "and then ? -> about and then ?\n"


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({}, ""),
        ({"drop_after": [0]}, "again after: 503"),
        ({"damage": 1}, "again after: 202"),
        ({"lose_scene": 1}, "again after: 304"),
        ({"refusals": {"what ?": [OverloadedError("full"), EngineUnavailableError("x")]}}, "501"),
        ({"answers_per_request": 3}, ""),
    ],
    ids=["none", "broken stream", "damage", "lost scene", "overload", "answers thrice"],
)
def test_the_client_gets_each_answer_whatever_happens_on_the_way(
    node: str, folder: Path, trouble: dict[str, Any], said: str
) -> None:
    served = FakeBridge(make_encoder(), **trouble)
    code, out, err = run(node, folder, served, "what ?", "and then ?")
    assert code == 0, err
    assert all(out.count(line) == 1 for line in ANSWERS) and said in out
    assert served.computed["what ?"] == 1 and served.fetches == 1
    # The same request goes again as the same bytes.
    assert all(len(raw) == 1 for raw in served.messages.values())


class Forgetful(FakeBridge):
    """Loses its sessions when the first question of its first session comes."""

    async def Infer(self, requests: Any, context: Any) -> Any:
        if self.negotiations == 1:
            self.sessions.clear()
        async for event in super().Infer(requests, context):
            yield event

    async def Ask(self, request: Any, context: Any) -> Any:
        if self.negotiations == 2:
            self.sessions.clear()
        async for event in super().Ask(request, context):
            yield event


def test_a_lost_session_is_opened_again_and_its_frame_sealed_again(node: str, folder: Path) -> None:
    served = Forgetful(make_encoder())
    code, out, err = run(node, folder, served, "what ?", "and then ?")
    assert code == 0, err
    assert all(out.count(line) == 1 for line in ANSWERS)
    assert served.negotiations == 3 and served.fetches == 1
    assert out.count("again after: 303") == 2


def test_a_service_that_is_still_loading_is_asked_again(node: str, folder: Path) -> None:
    class Loading(FakeBridge):
        async def Negotiate(self, request: Any, context: Any) -> Any:
            self.negotiate_error = (
                EngineUnavailableError("loading") if not self.negotiations else None
            )
            return await super().Negotiate(request, context)

    served = Loading(make_encoder())
    code, out, err = run(node, folder, served, "what ?")
    assert code == 0, err
    assert ANSWERS[0] in out and served.negotiations == 2 and "again after: 502" in out


@pytest.mark.quick(1)
@pytest.mark.parametrize("version", [1, 2])
def test_a_model_that_tells_its_settings_is_served_by_bundles_with_and_without_them(
    node: str, folder: Path, version: int
) -> None:
    telling = replace(LAYOUT, settings_digest="2" * 64)
    write_state(state_of(Image.new("RGB", (8, 8), "red")), telling, folder / "state.safetensors")
    made_for = telling if version == 2 else LAYOUT
    served = FakeBridge(replace(make_encoder(), source_fingerprint=made_for.fingerprint))
    code, out, err = run(node, folder, served, "what ?")
    assert code == 0, err
    assert ANSWERS[0] in out


def test_an_encoder_of_another_digest_is_refused(node: str, folder: Path) -> None:
    served = FakeBridge(make_encoder(), encoder_blob=make_encoder(1).to_bytes())
    code, _, err = run(node, folder, served, "what ?")
    assert code == 1 and "encoder is damaged" in err


# ---------------------------------------------------------------------- identities


def run_enrolled(
    node: str, folder: Path, served: SecureBridge, *more: str, revoked: bool = False
) -> tuple[int, str, str, str]:
    """The client of an enrolled device; the last text is the certificate's serial number."""

    async def both() -> tuple[int, str, str, str]:
        await served.start()
        try:
            file = IdentityFile.under(folder)
            code = OneTimeCode.parse(served.code())
            identity = await enrol(served.open_address, code, file)
            if revoked:
                await served.revoke(identity.serial)
            shown = ("--identity", str(file.path), *more)
            client = await asyncio.create_subprocess_exec(
                *command(node, served.address, folder, *shown, "what ?"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(client.communicate(), 100)
            return client.returncode or 0, out.decode(), err.decode(), identity.serial
        finally:
            await served.stop()

    return asyncio.run(both())


def test_an_enrolled_device_asks_in_tls_under_its_certificate(node: str, folder: Path) -> None:
    served = SecureBridge(make_encoder(), folder=folder / "authority")
    code, out, err, serial = run_enrolled(node, folder, served)
    assert code == 0, err
    assert ANSWERS[0] in out and served.serials == [serial]


def test_a_revoked_device_is_told_and_does_not_ask_again(node: str, folder: Path) -> None:
    served = SecureBridge(make_encoder(), folder=folder / "authority")
    code, out, err, _ = run_enrolled(node, folder, served, revoked=True)
    assert code == 1 and "701" in err and "again after" not in out


@pytest.mark.slow
def test_the_client_waits_as_long_as_the_service_asks(node: str, folder: Path) -> None:
    error = OverloadedError("full", retry_after_s=1.5)
    served = FakeBridge(make_encoder(), refusals={"what ?": [error]})
    code, out, err = run(node, folder, served, "what ?")
    assert code == 0, err
    (pause_ms,) = re.findall(r"again after: 501 .*\(in (\d+) ms\)", out)
    assert ANSWERS[0] in out and 1500 <= int(pause_ms) <= 1700
