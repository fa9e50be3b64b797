"""How every program here is configured: flags > environment > TOML file > defaults.

The calls, in order: `add_config_flags` and `add_setting_flags` build the parser, `given_flags`
takes the flags typed, `load` merges them with the other layers. An error names where its value came
from.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version_of
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from protos.errors import ConfigError
from protos.process import addresses
from protos.process.environment import service_links
from protos.process.files import text_of
from protos.process.nearest import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LONGEST_SHOWN = 200
_LAYERS: ContextVar[tuple[PydanticBaseSettingsSource, ...]] = ContextVar("layers", default=())
"""The layers that `load` puts below the arguments, the strongest first."""


class TypedSettings(BaseSettings):
    """Base of a program's settings: fields with a type, a default, bounds and a description.

    A subclass sets `env_prefix` in its `model_config`. Made directly, it holds the arguments and
    the defaults and ignores the environment; only `load` reads the other layers.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments, above the layers that `load` names."""
        return (init_settings, *_LAYERS.get())


class _Toml(TomlConfigSettingsSource):
    """A TOML file, with or without a byte-order mark."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return tomllib.loads(text_of(file_path.read_bytes(), file_path))


def checked(read: Callable[[str], str], value: str) -> str:
    """Call `read` in a validator: its typed error becomes the ValueError that pydantic expects.

    Raises:
        ValueError: `read` refused the value.
    """
    try:
        return read(value)
    except ConfigError as error:
        raise ValueError(error.message) from None


ANY_CASE = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], ANY_CASE]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], ANY_CASE]
Host = Annotated[str, AfterValidator(lambda text: checked(addresses.host, text))]

S = TypeVar("S", bound=TypedSettings)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises typed errors, so that their exit codes are like all others.

    Flags cannot be abbreviated: a later version could have another flag with the same beginning.
    For an unknown flag or command the message names the nearest known one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an unknown flag is refused before any other error of the command line.

        Raises:
            ConfigError: an unknown flag, or another mistake that argparse finds.
        """
        typed = list(sys.argv[1:] if args is None else args)
        for text in typed:
            name = text.partition("=")[0]
            if name == "--" or (self._subparsers is not None and not name.startswith("-")):
                break  # values follow, or what belongs to a command
            flag = name.startswith("--") and " " not in text
            if flag and name not in self._option_string_actions:
                self._unknown(name)
        found, extra = super().parse_known_args(typed, namespace)
        for text in extra:
            if text.startswith("-") and text != "-":
                self._unknown(text.partition("=")[0])
        return found, extra

    def _unknown(self, name: str) -> NoReturn:
        hint = nearest(name, self._flags())
        inner = {} if hint or self._subparsers is None else self._commands()
        for command, parser in inner.items():
            if near := nearest(name, parser._flags(), f"{command} {{}}"):
                hint = near
                break
        self.error(f"there is no flag {name}{hint}")

    def _flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def _commands(self) -> dict[str, Parser]:
        return {
            name: parser
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name, parser in action.choices.items()
        }

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is None or value in choices:
            return
        every = [str(choice) for choice in choices]
        hint, listed = nearest(str(value), every) or ".", ", ".join(every)
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"there is no command {value!r}{hint} The commands: {listed}")
        raise argparse.ArgumentError(action, f"invalid choice {value!r}{hint} One of {listed}")

    def error(self, message: str) -> NoReturn:
        """Refuse a command line.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message} (see {self.prog} --help)")


def variable(cls: type[TypedSettings], name: str) -> str:
    """The environment variable of a setting, or of the configuration file for `config`."""
    return (str(cls.model_config.get("env_prefix") or "") + name).upper()


def load(
    cls: type[S],
    flags: Mapping[str, Any],
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    listing: str = "--help",
) -> S:
    """Put a program's settings together from flags, environment, a TOML file and the defaults.

    Args:
        cls: the settings.
        flags: values given on the command line, by setting name; absent names were not given.
        config: TOML file with setting names as its keys; the environment variable of `config`
            names it if no flag does.
        environ: the environment; the process's own by default.
        listing: the command that lists all settings, for the message about an unknown key.

    Raises:
        ConfigError: the file cannot be read or parsed, a key is unknown, or a value is unusable;
            the message names the key, the value, where it came from and what was expected.
    """
    environment = os.environ if environ is None else environ
    config_variable = variable(cls, "config")
    if config is None and environment.get(config_variable):
        config = Path(environment[config_variable])
    links = service_links(environment, variable(cls, ""))
    toml, env = _toml(cls, config), EnvSettingsSource(cls)
    env.env_vars = {
        name.lower(): value
        for name, value in environment.items()
        if name.upper().startswith(variable(cls, ""))
        and name.upper() != config_variable
        and name not in links
    }
    origins = {name: f"{config}: {name}" for name in toml.toml_data}
    origins |= {name[env.env_prefix_len :]: name.upper() for name in env.env_vars}
    for name, origin in origins.items():
        if name not in cls.model_fields:
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            meant = [one if origin.endswith(name) else variable(cls, one) for one in near]
            hint = f"; did you mean {meant[0]}?" if meant else ""
            raise ConfigError(f"{origin} is no setting{hint} ({listing} lists all)")
    origins |= {name: _flag(name) for name in flags}
    layers = _LAYERS.set((env, toml))
    try:
        return cls(**flags)
    except ValidationError as error:
        raise ConfigError(_explain(error, origins)) from None
    except SettingsError as error:
        raise ConfigError(f"settings: {error}") from None
    finally:
        _LAYERS.reset(layers)


def _toml(cls: type[TypedSettings], path: Path | None) -> TomlConfigSettingsSource:
    if path is not None and not path.is_file():  # the library would read it as empty
        why = "it is no file" if path.exists() else "there is no such file"
        raise ConfigError(f"{path}: cannot be read: {why}")
    try:
        return _Toml(cls, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _said(problem: Mapping[str, Any]) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        if not problem["loc"]:  # a rule about several settings
            lines.append(_said(problem))
            continue
        name = str(problem["loc"][0])
        value = repr(problem["input"])
        if len(value) > _LONGEST_SHOWN:
            value = value[:_LONGEST_SHOWN] + "…"
        within = "".join(f".{key}" for key in problem["loc"][1:] if isinstance(key, str))
        lines.append(f"{origins.get(name, name)}{within} = {value}: {_said(problem)}")
    return "; ".join(lines)


# ---------------------------------------------------------------------- the command line


def add_config_flags(
    parser: argparse.ArgumentParser, cls: type[TypedSettings], *, top: bool = True
) -> None:
    """Add `--config FILE`, `--check-config` and, to a program, `--version`.

    Args:
        parser: a program's or a command's.
        cls: the settings.
        top: false for a command if the program takes the two flags as well: the command's defaults
            would overwrite flags given before the command.
    """
    if top:
        version = f"%(prog)s {installed_version()}"
        parser.add_argument("--version", action="version", version=version)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=None if top else argparse.SUPPRESS,
        help=f"TOML file of settings [{variable(cls, 'config')}]",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        default=False if top else argparse.SUPPRESS,
        help="check the settings and what they point to, print them as JSON, and end",
    )


def add_setting_flags(
    parser: argparse.ArgumentParser,
    cls: type[TypedSettings],
    *,
    only: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    metavars: Mapping[str, str] | None = None,
) -> None:
    """Add a flag for each setting, with its description, default and environment variable.

    A flag that is not typed is absent from the namespace. Values stay text: `load` gives them
    their type, as it does for the environment. Tuples are repeatable flags, booleans are pairs
    (`--x`, `--no-x`).

    Args:
        parser: where they go, in a group of their own.
        cls: the settings.
        only: names of the settings to take; all by default.
        leave_out: names of the settings that this command does not use.
        aliases: by name, another flag for the same setting (`--question` for `questions`).
        metavars: by name, the placeholder for the value if the type's name says too little.
    """
    group = parser.add_argument_group("settings")
    for name, entry in cls.model_fields.items():
        if (only and name not in only) or name in leave_out:
            continue
        default = entry.get_default(call_default_factory=True)
        shown = "" if default in (None, "", ()) else f" (default: {default})"
        text = f"{entry.description}{shown} [{variable(cls, name)}]".replace("%", "%%")
        flags = [_flag(name)]
        if aliases and name in aliases:
            flags.insert(0, aliases[name])
        kind = _plain(entry.annotation)
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if kind is bool:
            group.add_argument(*flags, action=argparse.BooleanOptionalAction, **options)
            continue
        if get_origin(kind) is tuple:
            options["action"] = "append"
            kind = get_args(kind)[0]
        options["metavar"] = (metavars or {}).get(name) or _metavar(name, kind)
        group.add_argument(*flags, **options)


def given_flags(args: argparse.Namespace, cls: type[TypedSettings]) -> dict[str, Any]:
    """The settings that were typed on the command line, for `load`."""
    return {name: value for name, value in vars(args).items() if name in cls.model_fields}


def installed_version() -> str:
    """The installed version (`0+unknown` from a bare source tree)."""
    try:
        return _version_of("neural-bridge")
    except PackageNotFoundError:
        return "0+unknown"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(annotation: Any) -> Any:
    """The type of a setting without its `None`."""
    if get_origin(annotation) in (Union, UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def _metavar(name: str, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    if name.endswith("_s") and not name.endswith("_per_s"):
        return "SECONDS"
    return {Path: "PATH", int: "N", float: "X"}.get(kind, "TEXT")
