"""The console script: what a user meets, and the exit code that a script meets."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from edge_agent import assemble, cli
from edge_agent.settings import PREFIX, Settings
from protos.errors import (
    BridgeError,
    CertificateError,
    ConfigError,
    ModelError,
    OfflineError,
    PictureError,
    SourceError,
)
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeModel, make_encoder


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.setenv(PREFIX + "STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv(PREFIX + "BACKOFF_S", "0.01")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        picture = Image.new("RGB", (9, 9), (i * 50, 1, 2))
        picture.putpixel((8, 0), (255, 1, 2))  # one flat colour would be warned of
        picture.save(folder / f"{i}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(assemble, "load", lambda *_: FakeModel())
    return folder


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


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_run_prints_one_json_line_for_each_question(
    model: Path, pictures: Path, server: FakeBridge, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(model), "--server", server.address, "--source", str(pictures)]
    assert cli.main(["run", *arguments, "--question", "x", "--question", "y"]) == 0
    out, err = capsys.readouterr()
    assert {(r["capture"], r["answer"]) for r in lines(out)} == {
        (f"{i}.png", f"about {q}") for i in range(3) for q in "xy"
    }
    logged = lines(err)
    ids = {r["request_id"] for r in lines(out)}
    assert ids == {entry["request_id"] for entry in logged if entry["event"] == "answered"}


def test_a_bad_picture_among_good_ones_gives_its_exit_code_after_all_the_answers(
    model: Path, pictures: Path, server: FakeBridge, tmp_path: Path
) -> None:
    (pictures / "1.png").write_text("no picture")
    out = tmp_path / "out.jsonl"
    arguments = ["--model", str(model), "--server", server.address, "--source", str(pictures)]
    code = cli.main(["run", *arguments, "--question", "x", "--output", str(out)])
    assert code == PictureError.exit_code
    records = lines(out.read_text())
    assert len(records) == 3
    assert [r["capture"] for r in records if r["error"]] == ["1.png"]


def test_a_picture_above_the_limit_that_is_set_is_refused_or_decoded_smaller(
    model: Path, pictures: Path, server: FakeBridge, tmp_path: Path
) -> None:
    large = Image.open(pictures / "0.png").resize((160, 120))
    large.save(pictures / "0.jpg")
    large.save(pictures / "0.png")
    out = tmp_path / "out.jsonl"
    arguments = ["--model", str(model), "--server", server.address, "--output", str(out)]
    arguments += ["--question", "x", "--max-picture-pixels", "4800"]
    assert cli.main(["run", *arguments, "--source", str(pictures)]) == PictureError.exit_code
    failed = {str(r["capture"]): r["error"] for r in lines(out.read_text())}
    assert [name for name, error in failed.items() if error] == ["0.png"]
    assert "160 x 120 pixels; at most 4,800" in str(failed["0.png"])
    ask = ["ask", str(pictures / "0.png"), "x", "--model", str(model), "--server", server.address]
    assert cli.main([*ask, "--max-picture-pixels", "4800"]) == PictureError.exit_code
    assert cli.main(ask) == 0


def test_ask_prints_the_answer_and_nothing_else(
    model: Path, pictures: Path, server: FakeBridge, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(pictures / "0.png"),
        "what?",
        "--model",
        str(model),
        "--server",
        server.address,
    ]
    assert cli.main(["ask", *arguments]) == 0
    assert capsys.readouterr() == ("about what?\n", "")
    assert cli.main(["ask", *arguments, "--json", "--edge-only-too"]) == 0
    record = lines(capsys.readouterr().out)[0]
    assert (record["answer"], record["edge_answer"]) == ("about what?", "edge what?")


@pytest.mark.parametrize(
    ("flags", "name"),
    [([], "gate-7.local"), (["--device-name", "porch_2"], "porch_2")],
)
def test_a_device_tells_its_name(
    model: Path,
    pictures: Path,
    server: FakeBridge,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    name: str,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Gate 7.local")
    arguments = [str(pictures / "0.png"), "what?", "--model", str(model)]
    assert cli.main(["ask", *arguments, "--server", server.address, *flags]) == 0
    assert server.devices == [name]


def test_the_progress_bar_and_the_logs_share_standard_error_and_leave_standard_output(
    model: Path, pictures: Path, server: FakeBridge, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(model), "--server", server.address, "--source", str(pictures)]
    assert cli.main(["run", *arguments, "--question", "x", "--progress"]) == 0
    out, err = capsys.readouterr()
    assert len(lines(out)) == 3
    assert "3/3" in err


def test_without_a_server_the_exit_code_is_offline_and_there_is_no_traceback(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(model), "--server", "127.0.0.1:1", "--source", str(pictures)]
    assert cli.main(["run", *arguments, "--question", "x", "--retries", "1"]) == (
        OfflineError.exit_code
    )
    err = capsys.readouterr().err
    assert "edge-agent: offline: the server cannot be reached" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], ConfigError, "no command: run, ask, feedback or inspect"),
        (["fly"], ConfigError, "there is no command 'fly'"),
        (["run", "--retires", "1"], ConfigError, "--retires; did you mean --retries?"),
        (["rnu"], ConfigError, "'rnu'; did you mean run?"),
        (["run", "--retr", "1"], ConfigError, "--retr; did you mean --retries?"),
        (["run", "--retries", "many"], ConfigError, "--retries = 'many'"),
        (["run", "--device-name", "Gate 3"], ConfigError, "a name has 1 to 63 lower case letters"),
        (["run", "--priority", "urgent"], ConfigError, "--priority = 'urgent'"),
        (["run", "--hold-every-s", "-1"], ConfigError, "--hold-every-s = '-1'"),
        (["enrol"], ConfigError, "--code"),
        (["identity", "--state-dir", "/dev/null"], CertificateError, "not enrolled"),
        (["run", "--config", "nowhere.toml"], ConfigError, "nowhere.toml: cannot be read"),
        (["run"], SourceError, "no source: give --source"),
        (["run", "--source", "nowhere"], SourceError, "no such file"),
        (["run", "--source", "moon://x"], SourceError, "'moon'"),
        (["run", "--check-config"], ConfigError, "no model: give --model"),
        (["run", "--check-config", "--model", "nowhere"], ModelError, "no config.json"),
        (["inspect", "nowhere"], ModelError, "no config.json"),
        (["inspect", "--check-config", "nowhere"], ModelError, "no config.json"),
        (["ask", "nowhere.png", "what?"], PictureError, "no such file"),
        (["ask", "nowhere.png", " "], ConfigError, "a question is blank"),
        (["feedback", "nowhere.png", "what?"], PictureError, "no such file"),
        (["feedback", "nowhere.png", " "], ConfigError, "a question is blank"),
        (["feedback", "nowhere.png"], ConfigError, "ask one question"),
    ],
)
def test_a_users_mistake_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: type[BridgeError],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(arguments) == code.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"edge-agent: {code.name}: ") and said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("where", ["before", "after"])
def test_check_config_prints_what_would_be_used(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(f'model = "{model}"\nquestions = ["a?"]\n')
    options = ["--check-config", "--config", str(config)]
    arguments = [*options, "run"] if where == "before" else ["run", *options, "--retries", "3"]
    assert cli.main(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["questions"] == ["a?"]
    assert set(shown) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--selector=nope", "there is no selector"),
        ("--source=/nowhere/at/all", "no such file"),
        ("--spool-key=/nowhere/key", "spool key /nowhere/key"),
    ],
)
def test_check_config_finds_what_a_run_would_stumble_over(
    model: Path, capsys: pytest.CaptureFixture[str], flag: str, said: str
) -> None:
    assert cli.main(["run", "--check-config", "--model", str(model), flag]) != 0
    assert said in capsys.readouterr().err


def test_inspect_prints_the_layout(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(model)]) == 0
    shown = json.loads(capsys.readouterr().out)
    layout = FakeModel().layout
    assert shown["fingerprint"] == layout.fingerprint
    assert (shown["tokens"], shown["state_dim"]) == (9, 16)


def test_inspect_checks_the_settings_without_loading_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assemble, "load", lambda *_: pytest.fail("the model was loaded"))
    assert cli.main(["inspect", "--check-config", str(model)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == str(model) and set(shown) == set(Settings.model_fields)


def test_help_names_every_setting_its_variable_and_every_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in set(Settings.model_fields) - {"remote"}:  # a section of the file
        assert f"--{name.replace('_', '-')}" in text and f"[{PREFIX}{name.upper()}]" in text
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "10  config" in text and "52  offline" in text


def test_sigterm_ends_a_run_cleanly(tmp_path: Path, server: FakeBridge) -> None:
    """A source that never ends, in a process of its own; it must stop by itself after SIGTERM."""
    script = tmp_path / "endless.py"
    script.write_text(_ENDLESS)
    with subprocess.Popen(
        [sys.executable, str(script), server.address, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["answer"] == "about x"
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(20) == 0
    assert all(json.loads(line)["answer"] == "about x" for line in rest.splitlines())


_ENDLESS = """
import sys, itertools
from pathlib import Path
from PIL import Image
sys.path.insert(0, ".")
sys.modules["torch"] = None  # as on a device; its import takes longer than the run
from edge_agent import assemble, cli
from edge_agent.sources import Capture
from tests.fakes.fake_edge import FakeModel

class Endless:
    def __len__(self):
        return 1
    def __iter__(self):
        for i in itertools.count():
            yield Capture(str(i), Image.new("RGB", (9, 9)), 1.0)

assemble.load = lambda *_: FakeModel()
cli.open_source = lambda uri: Endless()
folder = Path(sys.argv[2])
(folder / "config.json").write_text("{}")
sys.exit(cli.main(["run", "--model", str(folder), "--server", sys.argv[1], "--source", "x",
                   "--question", "x", "--state-dir", str(folder / "s"), "--log-level", "error"]))
"""
