"""The small parts of the service, each on its own."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_server import cli
from cloud_server.engine import link
from cloud_server.engine.jobs import (
    Answered,
    Job,
    Message,
    Offer,
    Ready,
    Shutdown,
    Status,
    pack,
    unpack,
)
from cloud_server.engine.link import EngineLink, SocketDirectory
from cloud_server.frontend.answers import Answers, Computation
from cloud_server.frontend.sessions import Reports
from cloud_server.settings import Settings, from_json, load
from protos.errors import ConfigError, FrameMalformedError, ModelError
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.conftest import Files

MESSAGES: list[Message] = [
    Job(1, "ab", 2, "cd", "what ?", 3, 4, "e" * 64, 5, b"\x01\x00", b"\x00" * 50),
    Answered(1, "déjà vu", 2, 0.5, 0.25, 1),
    Offer("a", "1", "b", "c", "d", "{}", "{}", "[]", "p", ["p", "q"], b"\x80"),
    Ready("m", 1.5),
    Status(0.0, 1, 2, 3, 4),
    Shutdown(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_link_message_comes_out_as_it_went_in(message: Message) -> None:
    assert unpack(pack(message)) == message


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"not json"],
        [b"[]"],
        [b'{"kind":"Nonsense"}'],
        [b'{"kind":"Ready","model":1,"load_s":1.0}'],
        [b'{"kind":"Ready","model":"m"}'],
        [b'{"kind":"Ready","model":"m","load_s":1.0,"more":1}'],
        [b'{"kind":"Ready","model":"m","load_s":1.0}', b"more"],
        [*pack(MESSAGES[0])[:-1]],
        [*pack(MESSAGES[0])[:-1], b"short"],
    ],
)
def test_a_garbled_link_message_is_a_typed_error(frames: list[bytes]) -> None:
    with pytest.raises(FrameMalformedError):
        unpack(frames)


def _answered(memory: Answers, session: bytes, id: bytes) -> None:
    computation = Computation(id, 1, "q", 0)
    memory.begin(session, computation)
    memory.end(session, computation, pb.Answer(text=id.decode()))


def test_answers_are_remembered_up_to_a_count_and_only_within_their_session() -> None:
    memory = Answers(2, 1 << 20)
    for id in (b"a", b"b"):
        _answered(memory, b"s", id)
    assert memory.find(b"s", b"a", 1, "q") is not None  # a is now the latest used
    _answered(memory, b"s", b"c")
    assert memory.find(b"s", b"b", 1, "q") is None
    found = memory.find(b"s", b"a", 1, "q")
    assert isinstance(found, pb.Answer) and found.from_memory and found.text == "a"
    assert memory.find(b"t", b"a", 1, "q") is None
    memory.forget(b"s")
    assert memory.find(b"s", b"a", 1, "q") is None


def test_long_answers_are_remembered_up_to_their_bytes() -> None:
    memory = Answers(1000, 100_000)
    for number in range(200):
        computation = Computation(b"%d" % number, 1, "q" * 500, 0)
        memory.begin(b"s", computation)
        memory.end(b"s", computation, pb.Answer(text="long " * 1000))
        assert memory.bytes <= 100_000
    assert isinstance(memory.find(b"s", b"199", 1, "q" * 500), pb.Answer)
    assert memory.find(b"s", b"150", 1, "q" * 500) is None
    memory.forget(b"s")
    assert memory.bytes == 0


def test_reports_of_all_sessions_together_are_bounded() -> None:
    reports = Reports(100)
    for number in range(1000):
        reports.put((b"%d" % (number % 7), number), (pb.DistortionReport(), "", []))
    assert len(reports) == 100
    assert reports.get((b"%d" % (999 % 7), 999)) is not None and reports.get((b"0", 0)) is None


def test_a_late_listener_hears_what_was_said_before() -> None:
    computation = Computation(b"12345678", 1, "q", 0)
    computation.emit(accepted=pb.Accepted())
    computation.emit(token=pb.Token(text="x"))
    heard: list[str] = []

    def listen(event: pb.InferEvent) -> None:
        heard.append(str(event.WhichOneof("event")))

    computation.listen(listen)
    computation.emit(answer=pb.Answer(text="x"))
    computation.leave(listen)
    computation.emit(token=pb.Token(text="y"))
    assert heard == ["accepted", "token", "answer"]


@pytest.fixture
def short_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_the_socket_directory_is_the_owners_alone(short_dir: Path) -> None:
    directory = SocketDirectory(short_dir / "new")
    assert os.stat(directory.path).st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="in use"):
        SocketDirectory(short_dir / "new")
    directory.close()
    SocketDirectory(short_dir / "new").close()
    (short_dir / "open").mkdir(mode=0o755)
    os.chmod(short_dir / "open", 0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        SocketDirectory(short_dir / "open")
    with pytest.raises(ConfigError, match="too long"):
        SocketDirectory(short_dir / ("x" * 100))
    temporary = SocketDirectory(None)
    assert temporary.path.is_dir()
    temporary.close()
    assert not temporary.path.exists()


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text('port = 1\nbatch_size = 1\nqueue_requests = 1\nbundles = ["a", "b"]\n')
    environ = {"NEURAL_BRIDGE_CLOUD_PORT": "2", "NEURAL_BRIDGE_CLOUD_BATCH_SIZE": "2"}
    settings = load({"port": "3"}, file, environ)
    assert (settings.port, settings.batch_size, settings.queue_requests) == (3, 2, 1)
    assert settings.bundles == (Path("a"), Path("b"))
    environ = {"NEURAL_BRIDGE_CLOUD_BUNDLES": "x:y", "NEURAL_BRIDGE_CLOUD_CONFIG": str(file)}
    settings = load({}, None, environ)
    assert (settings.bundles, settings.port) == ((Path("x"), Path("y")), 1)


@pytest.mark.parametrize(
    ("flags", "environ", "toml", "named"),
    [
        ({"port": "x"}, {}, "", "--port"),
        ({}, {"NEURAL_BRIDGE_CLOUD_PORT": "70000"}, "", "NEURAL_BRIDGE_CLOUD_PORT"),
        ({}, {"NEURAL_BRIDGE_CLOUD_PROT": "1"}, "", "NEURAL_BRIDGE_CLOUD_PORT"),
        ({}, {"NEURAL_BRIDGE_CLOUD_BUNDLES": "[broken"}, "", "NEURAL_BRIDGE_CLOUD_BUNDLES"),
        ({}, {}, "batchsize = 3", "batch_size"),
        ({}, {}, "batch_size = 0", "batch_size"),
        ({}, {}, "not toml", "not TOML"),
    ],
)
def test_a_bad_setting_is_named_with_its_origin(
    tmp_path: Path, flags: dict[str, str], environ: dict[str, str], toml: str, named: str
) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=named):
        load(flags, file, environ)


def test_the_default_limits_are_the_contracts_and_settings_survive_the_way_to_the_engine(
    tmp_path: Path,
) -> None:
    settings = load({"model": tmp_path, "bundles": [tmp_path], "max_tokens": 99}, environ={})
    assert load({}, environ={}).limits == Limits()
    assert settings.limits == Limits(max_tokens=99)
    assert from_json(settings.model_dump_json()) == settings


def test_help_names_every_setting_every_exit_code_and_the_version_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    assert "bundle_layout" in text and "NEURAL_BRIDGE_CLOUD_" in text
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for said in ("--config FILE", "--check-config", "serve --help", "10  config", "bundle_layout"):
        assert said in text
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("cloud-server ")


@pytest.mark.parametrize(
    "arguments", [[], ["nosuch"], ["serve", "--nosuch"], ["serve", "--port"]], ids=" ".join
)
def test_wrong_usage_is_a_config_error_without_a_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == ConfigError.exit_code
    message = capsys.readouterr().err
    assert message.startswith("cloud-server: config: ") and "--help" in message
    assert len(message.splitlines()) == 1


def test_check_config_prints_the_settings_or_ends_with_the_errors_code(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ["serve", "--check-config", "--model", str(files.model), "--bundles", str(files.bundle)]
    assert cli.main(good) == 0
    assert json.loads(capsys.readouterr().out)["bundles"] == [str(files.bundle)]
    assert cli.main([*good, "--bundles", str(files.bundle)]) == ConfigError.exit_code
    assert cli.main([*good, "--backend", "abacus"]) == ConfigError.exit_code
    assert cli.main([*good, "--engine", "steam"]) == ConfigError.exit_code
    assert cli.main([*good, "--model", str(tmp_path)]) == ModelError.exit_code
    assert "config.json" in capsys.readouterr().err
    assert cli.main(["serve", "--check-config"]) == ConfigError.exit_code


@pytest.mark.parametrize("where", ["alone", "before", "after"])
def test_config_and_check_config_stand_with_or_without_the_command(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f'model = "{files.model}"\nbundles = ["{files.bundle}"]\nport = 7\n')
    options = ["--check-config", "--config", str(config)]
    arguments = {"alone": options, "before": [*options, "serve"], "after": ["serve", *options]}
    assert cli.main(arguments[where]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["port"] == 7 and set(shown) == set(Settings.model_fields)
    config.write_text("prot = 7\n")
    assert cli.main(arguments[where]) == ConfigError.exit_code
    assert "did you mean port?" in capsys.readouterr().err


def test_an_engine_that_was_frozen_reads_what_came_before_it_calls_the_front_end_silent(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is paused freezes both: each would find the other silent."""
    ahead, beats, gone_at, gone = [0.0], [0], [0], threading.Event()
    real = time.monotonic
    monkeypatch.setattr(link.time, "monotonic", lambda: real() + ahead[0])

    def status() -> Status:
        beats[0] += 1
        if beats[0] == 3:
            ahead[0] = 1000.0  # the process stood still for so long
        return Status()

    def left() -> None:
        gone_at[0] = gone_at[0] or beats[0]
        gone.set()

    made = EngineLink(f"ipc://{short_dir}/engine.sock", "one", 0.05, 60.0, status, left)
    made.start()
    try:
        assert gone.wait(60), "silence that goes on still ends it"
    finally:
        made.stop()
    assert gone_at[0] > 4
