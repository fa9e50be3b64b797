"""From `projector update` to a slot that is kept or left: the commands, and the agent's part."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from edge_agent import __main__ as edge
from edge_agent import assemble
from edge_agent.metrics import Metrics
from edge_agent.record import AnswerRecord
from edge_agent.update import boot
from edge_agent.update.boot import HEALTHY_FRAMES, Slot, Slots
from edge_agent.update.health import begin_health, running_slot, take_edge_halves
from edge_agent.uplink.encoder_store import EncoderStore
from projector import __main__ as projector
from projector.bundle.keys import SigningKey
from protos.errors import DiskFullError, SignatureError, UpdateError
from tests.deploy.small_wheel import small_wheel
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, make_encoder


@pytest.fixture
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
def device(tmp_path: Path) -> SimpleNamespace:
    """Slot a with this Python's environment as the agent, number 1; a key that it trusts."""
    slots = Slots(tmp_path / "slots-root")
    (slots.root / "parts" / "first").mkdir(parents=True)
    boot.adopt(slots, Slot("first", 1, "v1", "install", {"agent": "first"}))
    key = tmp_path / "signing.pem"
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys]\nbuilder = "{SigningKey.create(key).public}"\n')
    model = tmp_path / "export"
    (model / "graphs").mkdir(parents=True)
    (model / "export.json").write_text("{}")
    (model / "graphs" / "vision.onnx").write_bytes(b"graph")
    return SimpleNamespace(slots=slots, key=key, keys=keys, model=model, folder=tmp_path)


def made(device: SimpleNamespace, number: int, *options: str | Path) -> Path:
    out: Path = device.folder / f"{number}.nbupdate"
    words = ["update", out, "--number", number, "--version", f"v{number}", "--key", device.key]
    assert projector.main([str(word) for word in (*words, *options)]) == 0
    return out


def update(device: SimpleNamespace, *words: str | Path) -> int:
    given = ["update", *words, "--slots", device.slots.root, "--update-keys", device.keys]
    return edge.main([str(word) for word in given])


def status(device: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert update(device, "status", "--json") == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_model_goes_into_the_other_slot_and_back(
    device: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert update(device, made(device, 2, "--model", device.model)) == 0
    assert "signed by builder" in capsys.readouterr().out
    found = status(device, capsys)
    assert found["runs"] == "b" and found["trial"] == {"slot": "b", "starts": 0}
    assert found["slots"]["b"]["parts"]["agent"] == "first"
    current = device.slots.root / "current"
    assert (current / "model/graphs/vision.onnx").read_bytes() == b"graph"
    assert update(device, "rollback") == 0
    assert status(device, capsys)["runs"] == "a" and not (current / "model").exists()
    assert update(device, "status") == 0
    assert "slot a: number 1, v1, runs" in capsys.readouterr().out
    assert update(device, "rollback") == UpdateError.exit_code


def test_refused_updates_change_nothing(
    device: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = status(device, capsys)
    good = made(device, 2, "--model", device.model)
    foreign = made(device, 3, "--model", device.model, "--machine", "riscv64")
    same = made(device, 1, "--model", device.model)
    assert update(device, foreign) == UpdateError.exit_code
    assert update(device, same) == UpdateError.exit_code
    assert update(device, device.folder / "nothing") == UpdateError.exit_code
    blob = bytearray(good.read_bytes())
    blob[blob.index(b"graph", len(blob) // 2)] ^= 1
    (device.folder / "altered").write_bytes(blob)
    assert update(device, device.folder / "altered") == UpdateError.exit_code
    SigningKey.create(device.folder / "other.pem")
    other = SimpleNamespace(**{**vars(device), "key": device.folder / "other.pem"})
    assert update(device, made(other, 4, "--model", device.model)) == SignatureError.exit_code
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
        assert update(device, good) == DiskFullError.exit_code
    assert status(device, capsys) == before
    assert {path.name for path in (device.slots.root / "parts").iterdir()} == {"first"}
    assert update(device, same, "--older") == 0


def test_a_device_without_slots_is_told_so(device: SimpleNamespace) -> None:
    file = made(device, 2, "--model", device.model)
    device.slots = Slots(device.folder / "empty")
    assert update(device, "status") == UpdateError.exit_code
    assert update(device, "rollback") == UpdateError.exit_code
    assert update(device, file) == UpdateError.exit_code
    assert not device.slots.root.exists(), "no command makes a folder there"


@pytest.mark.slow
def test_wheels_become_an_environment_that_runs(
    device: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = device.folder / "wheels"
    empty.mkdir()
    (empty / "neural_bridge-2.0-py3-none-any.whl").write_bytes(b"no wheel")
    assert update(device, made(device, 2, "--agent", empty)) == UpdateError.exit_code
    assert "do not install" in capsys.readouterr().err
    assert status(device, capsys)["runs"] == "a"
    assert {path.name for path in (device.slots.root / "parts").iterdir()} == {"first"}

    assert update(device, made(device, 3, "--agent", small_wheel(empty, "2.0"))) == 0
    agent = device.slots.root / "current/agent/bin/edge-agent"
    done = subprocess.run([agent], capture_output=True, text=True, env={}, check=True)
    assert done.stdout == "edge-agent 2.0\n"
    assert not (device.slots.root / "current/agent/wheels").exists()


def record(error: str | None = None, fallback: str = "") -> AnswerRecord:
    made = AnswerRecord.__new__(AnswerRecord)
    object.__setattr__(made, "error", error)
    object.__setattr__(made, "fallback", fallback)
    return made


class Log:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **more: Any) -> None:
        self.lines.append({"event": event, **more})


def test_an_agent_that_answers_keeps_its_slot(device: SimpleNamespace, tmp_path: Path) -> None:
    slots = device.slots
    assert running_slot(slots) is None  # this Python runs from no slot
    (slots.root / "parts" / "mine").symlink_to(sys.prefix)
    boot.adopt(slots, Slot("mine", 2, "v2", "test", {"agent": "mine"}))
    running = running_slot(slots)
    assert running is not None and running[0] == "b"
    got: list[AnswerRecord] = []
    log, metrics, state = Log(), Metrics(), tmp_path / "state"
    state.mkdir()
    count = begin_health(slots, running, state, metrics, log, got.append)
    assert log.lines == [{"event": "slot", "slot": "b", "number": 2, "version": "v2"}]
    value = metrics.registry.get_sample_value
    assert value("neural_bridge_edge_slot_info", {"slot": "b", "number": "2"}) == 1
    for _ in range(HEALTHY_FRAMES - 1):
        count(record())
    for bad in (record(error="offline"), record(fallback="offline")):
        count(bad)
    health = state / boot.HEALTH.name
    assert not health.exists()
    count(record())
    assert len(got) == HEALTHY_FRAMES + 2
    said, again = boot.judge(slots, boot.read_health(health), "boot", 1.0)
    assert "is kept" in said and not again and os.readlink(slots.root / "current") == "slots/b"


def test_a_run_from_a_slot_proves_it_and_says_which(
    device: SimpleNamespace, server: FakeBridge, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The program itself: `boot` starts it, it answers, `boot` keeps the slot."""
    slots, folder = device.slots, device.folder
    (slots.root / "parts" / "mine").symlink_to(sys.prefix)
    boot.adopt(slots, Slot("mine", 2, "v2", "test", {"agent": "mine"}))
    assert "start 1" in boot.start(slots)
    model, pictures, state = folder / "model", folder / "pictures", folder / "state"
    model.mkdir()
    (model / "config.json").write_text("{}")
    pictures.mkdir()
    for each in range(HEALTHY_FRAMES):
        picture = Image.new("RGB", (9, 9), (each * 20, 1, 2))
        picture.putpixel((8, 0), (255, 1, 2))
        picture.save(pictures / f"{each}.png")
    monkeypatch.setattr(assemble, "load", lambda *_: FakeModel())
    words = ["run", "--model", model, "--server", server.address, "--source", pictures]
    words += ["--question", "x", "--slots", slots.root, "--state-dir", state]
    assert edge.main([str(word) for word in words]) == 0
    assert '"event": "slot"' in capsys.readouterr().err
    health = boot.read_health(state / boot.HEALTH.name)
    assert "is kept" in boot.judge(slots, health, "boot", 1.0)[0]


def test_an_edge_half_of_an_update_is_not_fetched_again(
    device: SimpleNamespace, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    half.mkdir()
    (half / "edge.safetensors").write_bytes(b"an edge half")
    (half / "notes.txt").write_bytes(b"no edge half")
    assert update(device, made(device, 2, "--bundle", half)) == 0
    log, store = Log(), EncoderStore(tmp_path / "encoders")
    for _ in range(2):
        take_edge_halves(device.slots.root / "current" / "bundle", store, log)
    assert store.get(hashlib.sha256(b"an edge half").hexdigest()) == b"an edge half"
    assert len(list((tmp_path / "encoders").iterdir())) == 1 and not log.lines
