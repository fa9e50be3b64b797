"""Settings: precedence, and what a wrong file, key or value says."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.settings import PREFIX, Settings, load
from protos.errors import ConfigError


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return path


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    path = toml(tmp_path, 'retries = 1\nin_flight = 1\nquestions = ["file?"]\n')
    environ = {PREFIX + "RETRIES": "2", PREFIX + "LOG_LEVEL": "DEBUG"}
    chosen = load({"retries": "3"}, path, environ)
    assert (chosen.retries, chosen.in_flight, chosen.log_level) == (3, 1, "debug")
    assert load({}, path, environ).retries == 2
    assert load({}, path, {}).retries == 1
    assert load({}, None, {}).retries == Settings.model_fields["retries"].default
    assert chosen.questions == ("file?",)


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "retries = 1")
    assert load({}, None, {PREFIX + "CONFIG": str(path)}).retries == 1


@pytest.mark.parametrize(
    ("text", "questions"),
    [('["a?", "b?"]', ("a?", "b?")), ("a?", ("a?",)), ("a?\nb?\n", ("a?", "b?"))],
)
def test_questions_from_the_environment(text: str, questions: tuple[str, ...]) -> None:
    assert load({}, None, {PREFIX + "QUESTIONS": text}).questions == questions


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("retries = ", "is not TOML"),
        ("retires = 3", "retires is no setting; did you mean retries?"),
        ("retries = -1", "retries = -1: .*greater than or equal to 0"),
        ('retries = "many"', "retries = 'many': .*integer"),
        ('server = "nowhere"', "expected host:port"),
        ('questions = ["a", " "]', "a question is blank"),
        ('picture_codec = "gif"', "'png', 'jpeg' or 'webp'"),
        ("[section]\nx = 1", "section is no setting"),
        ('highest_point = "picture"', "auto does not climb to pictures"),
        ("token_budget = 3\ndistortion_limit = 0.2", "not with --distortion-limit"),
        ("token_threshold = 0.5\ndistortion_limit = 0.2", "not with --distortion-limit"),
    ],
)
def test_a_wrong_file_is_a_config_error_that_names_the_place(
    tmp_path: Path, text: str, said: str
) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load({}, path, {})
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, tmp_path, {})
    (tmp_path / "binary.toml").write_bytes(b"\x80\x01\x02")
    with pytest.raises(ConfigError, match="cannot be read as a text"):
        load({}, tmp_path / "binary.toml", {})


def test_a_byte_order_mark_in_front_of_the_toml_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text("retries = 3", encoding="utf-8-sig")
    assert load({}, tmp_path / "edge.toml", {}).retries == 3
    (tmp_path / "edge.toml").write_text("retries = 3", encoding="utf-16")
    with pytest.raises(ConfigError, match="edge.toml cannot be read.*UTF-16; save it as UTF-8"):
        load({}, tmp_path / "edge.toml", {})


def test_what_kubernetes_injects_for_a_service_is_no_setting() -> None:
    injected = {PREFIX + "PORT": "tcp://10.0.0.7:80", PREFIX + "SERVICE_HOST": "10.0.0.7"}
    assert load({}, None, injected | {PREFIX + "RETRIES": "3"}).retries == 3
    with pytest.raises(ConfigError, match="METRICS_HOTS .*did you mean .*METRICS_HOST"):
        load({}, None, injected | {PREFIX + "METRICS_HOTS": "::1"})


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_host_stands_with_or_without_brackets(host: str) -> None:
    assert load({"metrics_host": host}, None, {}).metrics_host == "::1"


@pytest.mark.parametrize("text", ['["a.example:1", "b.example:2"]', "a.example:1\nb.example:2"])
def test_servers_are_a_list_in_flags_environment_and_file(tmp_path: Path, text: str) -> None:
    both = ("a.example:1", "b.example:2")
    assert load({"server": both}, None, {}).server == both
    assert load({}, None, {PREFIX + "SERVER": text}).server == both
    file = toml(tmp_path, 'server = ["a.example:1", "b.example:2"]')
    assert load({}, file, {}).server == both
    assert load({}, toml(tmp_path, 'server = "a.example:1"'), {}).server == ("a.example:1",)


def test_a_server_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="a server is named twice"):
        load({"server": ("a.example:1", "a.example:1")}, None, {})


def test_an_ipv6_server_without_brackets_is_told_to_take_some() -> None:
    with pytest.raises(ConfigError, match=r"--server = '::1:50051'.*\[::1\]:50051"):
        load({"server": "::1:50051"}, None, {})


def test_a_wrong_variable_or_flag_is_named_as_the_user_wrote_it() -> None:
    with pytest.raises(ConfigError, match=PREFIX + "RETIRES .*did you mean .*RETRIES"):
        load({}, None, {PREFIX + "RETIRES": "3"})
    with pytest.raises(ConfigError, match=PREFIX + "QUESTIONS"):
        load({}, None, {PREFIX + "QUESTIONS": "[not json"})
    with pytest.raises(ConfigError, match="--picture-quality = '101'"):
        load({"picture_quality": "101"}, None, {})


def test_every_setting_says_what_it_is() -> None:
    assert not [n for n, e in Settings.model_fields.items() if not e.description]
