"""Configuration: which layer wins, what a mistake is told, which flags the fields make."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from protos.errors import ERRORS, ConfigError
from protos.process.console import exit_codes
from protos.process.settings import (
    TypedSettings,
    add_config_flags,
    add_setting_flags,
    given_flags,
    installed_version,
    load,
    variable,
)


class Kettle(TypedSettings):
    model_config = SettingsConfigDict(env_prefix="KETTLE_")

    litres: float = Field(1.0, gt=0.0, description="how much it holds, 100% full")
    cups: int = Field(4, ge=1, description="cups it makes")
    spout: Path | None = Field(None, description="where the water goes")
    mode: Literal["boil", "warm"] = Field("boil", description="what it does")
    whistle: bool | None = Field(None, description="whether it is heard")
    wait_s: float = Field(3.0, description="pause before it starts, seconds")
    teas: Annotated[tuple[str, ...], NoDecode] = Field((), description="what it is for, repeatable")

    @field_validator("teas", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _enough_water(self) -> Kettle:
        if self.cups > 10 * self.litres:
            raise ValueError("too many cups for its litres")
        return self


def toml(folder: Path, text: str) -> Path:
    path = folder / "kettle.toml"
    path.write_text(text)
    return path


def parsed(*arguments: str, **options: Any) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_setting_flags(parser, Kettle, **options)
    return given_flags(parser.parse_args(arguments), Kettle)


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    path = toml(tmp_path, 'cups = 1\nlitres = 0.5\nspout = "file"\n')
    environ = {"KETTLE_CUPS": "2", "kettle_litres": "0.75", "HOME": "/"}
    chosen = load(Kettle, {"cups": "3"}, path, environ)
    assert (chosen.cups, chosen.litres, chosen.spout) == (3, 0.75, Path("file"))
    assert (chosen.mode, chosen.whistle) == ("boil", None)
    assert type(chosen) is Kettle


def test_the_environment_can_name_the_file_and_a_flag_overrides_it(tmp_path: Path) -> None:
    path = toml(tmp_path, "cups = 1")
    other = tmp_path / "other.toml"
    other.write_text("cups = 2")
    environ = {"KETTLE_CONFIG": str(path)}
    assert load(Kettle, {}, None, environ).cups == 1
    assert load(Kettle, {}, other, environ).cups == 2


def test_settings_made_directly_do_not_look_at_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KETTLE_CUPS", "7")
    assert Kettle.model_validate({}).cups == Kettle.model_validate_json("{}").cups == 4
    assert load(Kettle, {}).cups == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cups = ", "is not TOML"),
        ("cpus = 3", r"cpus is no setting; did you mean cups\? \(kettle --help lists all\)"),
        ("zzzzzz = 3", r"zzzzzz is no setting \(kettle"),
        ("_env_file = 'x'", "_env_file is no setting"),
        ("cups = 0", "cups = 0: .*greater than or equal to 1"),
        ("cups = 'many'", "cups = 'many': .*integer"),
        ("mode = 'fry'", "'boil' or 'warm'"),
        ("[mode]\nx = 1", "mode = {'x': 1}: "),
        ("cups = '" + "x" * 1000 + "'", "x…: "),
    ],
)
def test_a_wrong_file_is_a_config_error_that_names_the_place(
    tmp_path: Path, text: str, said: str
) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(Kettle, {}, path, {}, listing="kettle --help")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(Kettle, {}, path, {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is UTF-16; save it as UTF-8"):
        load(Kettle, {}, tmp_path / "binary.toml", {})


def test_a_wrong_variable_or_flag_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="KETTLE_CPUS .*did you mean KETTLE_CUPS"):
        load(Kettle, {}, None, {"KETTLE_CPUS": "3"})
    with pytest.raises(ConfigError, match=r"^KETTLE_TEAS = '\[not json'"):
        load(Kettle, {}, None, {"KETTLE_TEAS": "[not json"})
    path = toml(tmp_path, "wait_s = 1")
    with pytest.raises(ConfigError, match="^--wait-s = 'soon'"):
        load(Kettle, {"wait_s": "soon"}, path, {"KETTLE_WAIT_S": "2"})


def test_every_mistake_is_told_at_once_each_with_its_origin(tmp_path: Path) -> None:
    path = toml(tmp_path, "mode = 'fry'")
    with pytest.raises(ConfigError) as caught:
        load(Kettle, {"cups": "0"}, path, {"KETTLE_LITRES": "none"})
    assert [part.split(" = ")[0] for part in str(caught.value).split("; ")] == [
        "KETTLE_LITRES",
        "--cups",
        f"{path}: mode",
    ]


def test_a_rule_about_several_settings_is_told_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match="^too many cups for its litres$"):
        load(Kettle, {"cups": "11"}, None, {})


def test_only_what_was_typed_is_given() -> None:
    assert parsed() == {}
    assert parsed("--wait-s", "2", "--no-whistle") == {"wait_s": "2", "whistle": False}
    assert parsed("--teas", "green", "--tea", "black", aliases={"teas": "--tea"}) == {
        "teas": ["green", "black"]
    }


def test_a_command_takes_only_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--cups", "2", only=["litres"])
    with pytest.raises(SystemExit):
        parsed("--cups", "2", leave_out=["cups"])
    assert "unrecognized arguments: --cups" in capsys.readouterr().err


def test_help_shows_type_default_variable_and_meaning() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=1000, max_help_position=40)
    )
    add_setting_flags(parser, Kettle, metavars={"spout": "DIR"})
    lines = [" ".join(line.split()) for line in parser.format_help().splitlines()]
    assert "--litres X how much it holds, 100% full (default: 1.0) [KETTLE_LITRES]" in lines
    assert "--cups N cups it makes (default: 4) [KETTLE_CUPS]" in lines
    assert "--spout DIR where the water goes [KETTLE_SPOUT]" in lines
    assert "--mode boil|warm what it does (default: boil) [KETTLE_MODE]" in lines
    assert "--wait-s SECONDS pause before it starts, seconds (default: 3.0) [KETTLE_WAIT_S]" in (
        lines
    )
    assert "--teas TEXT what it is for, repeatable [KETTLE_TEAS]" in lines


@pytest.mark.parametrize(
    "arguments",
    [["--config", "a", "--check-config", "go"], ["go", "--config", "a", "--check-config"]],
)
def test_the_config_flags_count_before_and_after_the_command(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add_config_flags(parser, Kettle)
    add_config_flags(parser.add_subparsers().add_parser("go"), Kettle, top=False)
    args = parser.parse_args(arguments)
    assert (args.config, args.check_config) == (Path("a"), True)


def test_names_of_variables_and_exit_codes() -> None:
    assert variable(Kettle, "wait_s") == "KETTLE_WAIT_S"
    assert len(exit_codes().splitlines()) == len(ERRORS)
    assert "10  config: " in exit_codes()
    assert installed_version()


def test_it_imports_without_a_tensor_library() -> None:
    script = "import protos.process.settings, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def _every_parser() -> list[tuple[list[str], Any]]:
    """Each command of the three programs with the arguments that name it."""
    from cloud_server import cli as cloud
    from edge_agent import cli as edge
    from projector.commands import cli as projector

    found: list[tuple[list[str], Any]] = []

    def walk(words: list[str], parser: Any) -> None:
        found.append((words, parser))
        for name, inner in parser._commands().items():
            walk([*words, name], inner)

    for module in (edge, cloud, projector):
        parser = module._parser()
        walk([parser.prog], parser)
    return found


EVERY_PARSER = _every_parser()


@pytest.mark.quick(25)
@pytest.mark.parametrize("words", [words for words, _ in EVERY_PARSER], ids=" ".join)
def test_a_mistyped_flag_of_any_command_is_told_which_was_meant(words: list[str]) -> None:
    """Whatever else lacks on the command line; and no flag can be cut short."""
    top = next(parser for names, parser in EVERY_PARSER if names == words[:1])
    parser = next(parser for names, parser in EVERY_PARSER if names == words)
    for flag in parser._flags():
        wrong = flag[:-2] + flag[-1] + flag[-2] + "q"
        with pytest.raises(ConfigError, match=f"there is no flag {wrong}; did you mean --"):
            top.parse_args([*words[1:], wrong])
        if len(flag) > 6 and flag[:-2] not in parser._flags():
            with pytest.raises(ConfigError, match=f"no flag {flag[:-2]}; did you mean --"):
                top.parse_args([*words[1:], f"{flag[:-2]}=1"])
    for name in parser._commands():
        with pytest.raises(ConfigError, match=f"no command '{name}x'; did you mean"):
            top.parse_args([*words[1:], name + "x"])


def test_a_flag_before_its_command_is_told_whose_it_is() -> None:
    from projector.commands import cli

    with pytest.raises(ConfigError, match="--famly; did you mean train --family?"):
        cli._parser().parse_args(["--famly", "mix", "train"])
