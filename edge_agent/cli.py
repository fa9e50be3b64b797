"""The console script `edge-agent`: run over a source, ask about one picture, enrol this device.

Records and results go to standard output; logs, the progress bar and errors to standard error.
Flags are made from the settings (`settings.py`), so each has one home.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_agent import settings
from edge_agent.assemble import (
    choose_dials,
    identity_file,
    load_model,
    model_path,
    proxy_in,
    run_agent,
    state_directory,
)
from edge_agent.device.commands import run_doctor, show_status
from edge_agent.identity import show
from edge_agent.identity.enrol import enrol
from edge_agent.identity.identity import Identity
from edge_agent.output import Answered, RecordWriter, answered
from edge_agent.picture import PICTURE
from edge_agent.plan import AUTO, unknown_point
from edge_agent.record import AnswerRecord
from edge_agent.remote.kept import RemoteSettings
from edge_agent.remote.restart import exec_again, supervised
from edge_agent.settings import Settings
from edge_agent.sources import Capture, Source, open_source
from edge_agent.sources.folder import Folder, read_text
from edge_agent.sources.opened import open_sources
from edge_agent.spool.prepare import Kept, spool_folder
from edge_agent.spool.vault import Vault
from edge_agent.update import commands as update_commands
from edge_agent.update.settings import UpdateSettings
from edge_agent.uplink.terms import points_agreed
from projector.codec.select import require as require_selector
from protos.errors import CertificateError, ConfigError, PictureError, SourceError
from protos.identity import OneTimeCode
from protos.process import console
from protos.process import settings as configuration
from protos.process.console import ReaderGoneError

_OF_A_RUN = (
    "source",
    "mask",
    "trigger",
    "camera_memory_mib",
    "questions",
    "question_mode",
    "hold_every_s",
    "output",
    "spool",
    "spool_bytes",
    "spool_age_s",
    "when_full",
    "spool_key",
    "log_bytes",
    *UpdateSettings.model_fields,
)
"""Settings of `run` alone."""
_OF_A_MODEL = ("model", "device", "dtype", "text_tokens", "memory_check", "start_limit_s")
_OF_AN_IDENTITY = ("server", "proxy", "ca", "server_name", "connect_timeout_s", "state_dir")
_EXAMPLES = {
    "run": "edge-agent run --model models/edge-a --source /var/pictures "
    "--questions 'is there a fire ?'",
    "ask": "edge-agent ask --model models/edge-a yard.png 'is there smoke ?'",
    "feedback": "edge-agent feedback --model models/edge-a yard.png 'is there smoke ?'",
    "inspect": "edge-agent inspect models/edge-a",
    "enrol": "edge-agent enrol --server cloud.example:50052 --code NB1-…",
    "identity": "edge-agent identity --json",
    "status": "edge-agent status",
    "doctor": "edge-agent doctor --config /etc/neural-bridge/edge.toml",
    "update": "edge-agent update 7.nbupdate",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        0, or the exit code of the first error (`protos/errors.py`).
    """
    return console.run("edge-agent", "edge", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    return int(args.command(args))


# ---------------------------------------------------------------------- the commands


def _run(args: argparse.Namespace) -> int:
    chosen = _patient(_settings(args))
    if args.check_config:
        return _check(chosen)
    directory = state_directory(chosen)
    if directory is None:
        return _run_once(chosen, lambda: _patient(_settings(args)), None)
    remote = RemoteSettings(directory, lambda: _patient(_settings(args)))
    remote.start()
    try:
        code = _run_once(remote.read(), remote.read, remote)
    except asyncio.CancelledError:
        if not remote.wants_restart:
            raise
        code = 0  # requests in flight did not end in time
    except ReaderGoneError:
        raise
    except Exception as error:
        if remote.trial is not None:
            remote.back(str(error) or type(error).__name__)
        elif not isinstance(error, ConfigError) or not remote.doubt(str(error)):
            raise
        if supervised():
            raise
        console.say(f"edge-agent: the service's settings do not work: {error}")
        remote.wants_restart, code = True, 1
    if remote.wants_restart and not supervised():
        exec_again()
    return code


def _run_once(
    chosen: Settings, again: Callable[[], Settings], remote: RemoteSettings | None
) -> int:
    _require_source(chosen)
    state = state_directory(chosen)
    source = open_sources(chosen, open_source, None if state is None else state / "watched")
    done = answered(chosen.output) if chosen.resume else Answered()
    folder = spool_folder(chosen, source, state)
    writer = RecordWriter(chosen.output)
    try:
        kept = None if folder is None else Kept(folder, writer)
        return run_agent(chosen, source, writer.write, done, kept, again, remote)
    finally:
        writer.close()


def _patient(chosen: Settings) -> Settings:
    """The settings of a run: a frame is never given up where nobody else would answer."""
    if chosen.give_up_s is None and not chosen.edge_fallback:
        return chosen.model_copy(update={"give_up_s": 0.0})
    return chosen


def _ask(args: argparse.Namespace) -> int:
    flags = _flags(args)
    flags.update(questions=[_question(args)], progress=flags.get("progress", False))
    flags.setdefault("log_level", "warning")
    chosen = settings.load(flags, args.config)
    if args.check_config:
        return _check(chosen)
    records: list[AnswerRecord] = []
    code = run_agent(chosen, _bounded(_about(args), chosen), records.append, Answered())
    for record in records:
        if args.json:
            print(record.to_json())
        elif record.answer is not None:
            print(record.answer)
        elif record.edge_answer is not None:
            print(f"{record.edge_answer}  (edge_only: {record.fallback})")
    return code


def _bounded(source: Source, chosen: Settings) -> Source:
    """A folder decodes no larger pictures than the setting allows."""
    if isinstance(source, Folder):
        return replace(source, max_pixels=chosen.max_picture_pixels)
    return source


def _question(args: argparse.Namespace) -> str:
    if args.picture is not None and (args.text is not None or args.text_file is not None):
        if args.asked is None and args.question is None:  # the one argument is the question
            args.picture, args.asked = None, str(args.picture)
    given = [text for text in (args.question, args.asked) if text is not None]
    if len(given) != 1:
        raise ConfigError("ask one question: after the picture, or with --question")
    return str(given[0])


def _about(args: argparse.Namespace) -> Source:
    """The one picture or text that is asked about."""
    if sum(given is not None for given in (args.picture, args.text, args.text_file)) != 1:
        raise ConfigError("ask about one picture, --text or --text-file")
    if args.text is not None:
        return (Capture("text", None, time.time(), text=args.text.strip()),)
    if args.text_file is not None:
        where: Path = args.text_file
        return (Capture(where.name, None, time.time(), text=read_text(where)),)
    path = Path(args.picture)
    if not path.is_file():
        there = "it is no regular file" if path.exists() else "there is no such file"
        raise PictureError(f"{path}: {there}")
    return Folder.from_path(path)


def _inspect(args: argparse.Namespace) -> int:
    flags = _flags(args)
    if args.path is not None:
        flags["model"] = args.path
    chosen = settings.load(flags, args.config)
    if args.check_config:
        return _check(chosen)
    layout = load_model(chosen).layout
    shown = json.loads(layout.to_json())
    shown.update(
        fingerprint=layout.fingerprint,
        tokens=layout.tokens,
        state_dim=layout.state_dim,
        raw_fp8_bytes_per_picture=layout.tokens * layout.state_dim,
    )
    print(json.dumps(shown, indent=2))
    return 0


def _enrol(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    if args.check_config:
        return _check_settings(chosen)
    if len(chosen.server) > 1:
        raise ConfigError("a device enrols at one address: give one --server")
    if not chosen.server:
        raise ConfigError(
            "no service: give --server HOST:PORT, with the port where it enrols devices (50052 "
            "unless the operator chose another)"
        )
    proxy = proxy_in(chosen)
    typed = sys.stdin.readline() if args.code == "-" else args.code
    identity = asyncio.run(
        enrol(
            chosen.server[0],
            OneTimeCode.parse(typed),
            identity_file(chosen),
            chosen.ca,
            chosen.server_name,
            args.force,
            chosen.connect_timeout_s,
            {**os.environ, **({"grpc_proxy": proxy} if proxy else {})},
        )
    )
    print(f"enrolled as {identity.tenant}/{identity.device}; {show.until(identity)}")
    if identity.server:
        print(f"frames go to {identity.server}; --server names another address")
    return 0


def _identity(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    if args.check_config:
        return _check_settings(chosen)
    shown = show.figures(_enrolled(chosen), identity_file(chosen).path)
    print(json.dumps(shown, indent=2) if args.json else show.table(shown))
    if shown["ended"]:
        raise CertificateError(
            "by this device's clock the certificate has expired: the agent renews it when it next "
            "reaches the service; if the service refuses, have a new code made and enrol again "
            "(edge-agent enrol --force)"
        )
    return 0


def _enrolled(chosen: Settings) -> Identity:
    """This device's identity.

    Raises:
        CertificateError: it has none.
    """
    file = identity_file(chosen)
    found = file.load()
    if found is None:
        raise CertificateError(
            f"this device is not enrolled ({file.path}): have a code made (cloud-server devices "
            "add NAME), then: edge-agent enrol --server HOST:PORT --code CODE"
        )
    return found


def _doctor(args: argparse.Namespace) -> int:
    return run_doctor(lambda: _settings(args), args.json, args.quick)


def _status(args: argparse.Namespace) -> int:
    return show_status(state_directory(_settings(args)), args.json)


def _update(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    if args.check_config:
        return _check_settings(chosen)
    state = state_directory(chosen)
    if args.check and args.what is not None:
        raise ConfigError("--check asks the service: it goes with no file and no other command")
    if args.check:
        if not chosen.insecure:  # the service offers updates to devices that it knows
            _enrolled(chosen)
        return update_commands.check(chosen, state, choose_dials(chosen)[0], args.json)
    if args.what is None:
        raise ConfigError("name an update's file, or status, rollback, waiting or --check")
    return update_commands.update(chosen, args.what, args.older, args.restart, args.json, state)


def _no_command(args: argparse.Namespace) -> int:
    if args.check_config:
        return _check(settings.load({}, args.config))
    raise ConfigError(
        "no command: run, ask, feedback or inspect; enrol, identity, status or doctor (see "
        "edge-agent --help)"
    )


def _check(chosen: Settings) -> int:
    """Check what can be checked without loading the model or calling the server."""
    model_path(chosen)
    if chosen.source:
        source = open_sources(chosen, open_source)
        folder = spool_folder(chosen, source, state_directory(chosen))
        points = points_agreed(folder) if folder is not None else ()
        if points and (unknown := unknown_point(chosen.point, chosen.highest_point, points)):
            raise unknown
    if chosen.selector is not None:
        require_selector(chosen.selector)
    if chosen.spool_key is not None:
        Vault.from_file(chosen.spool_key)
    choose_dials(chosen)
    return _check_settings(chosen)


def _check_settings(chosen: Settings) -> int:
    print(json.dumps(chosen.without_secrets(), indent=2))
    return 0


def _require_source(chosen: Settings) -> None:
    if not chosen.source:
        raise SourceError(
            f"no source: give --source, {settings.PREFIX}SOURCE or 'source' in the configuration "
            "file"
        )


# ---------------------------------------------------------------------- flags from settings


def _settings(args: argparse.Namespace) -> Settings:
    return settings.load(_flags(args), args.config)


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    return configuration.given_flags(args, Settings)


def _parser() -> configuration.Parser:
    parser = configuration.Parser(
        prog="edge-agent",
        description="The device side of Neural Bridge: a small model sees a picture or reads a\n"
        "text, a few latents of its cache travel, the large model in the cloud answers.",
        epilog="exit codes: 0 if every question was answered, else that of the first "
        f"error;\n{console.INTERRUPTED} or {console.TERMINATED} if a second SIGINT or SIGTERM "
        f"cut the run short:\n{console.exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(parser, Settings)
    parser.set_defaults(command=_no_command)
    commands = parser.add_subparsers(
        title="commands",
        metavar="run | ask | feedback | inspect | enrol | identity | status | doctor | update",
    )

    run = _command(commands, "run", "answer questions about every capture of a source", _run)
    _add_settings(run)

    ask = _command(commands, "ask", "one picture or text, one question: print the answer", _ask)
    _add_settings(ask, leave_out=(*_OF_A_RUN, "feedback_point"))

    feedback = _command(
        commands,
        "feedback",
        "one picture, one question: answered here from the state that the server sends back",
        _ask,
    )
    _add_settings(feedback, leave_out=_OF_A_RUN)
    feedback.set_defaults(question_mode="feedback")
    for command in (ask, feedback):
        command.add_argument("picture", nargs="?", help="a PNG, JPEG, WebP, AVIF, BMP or TIFF file")
        command.add_argument("question", nargs="?", help="asked about the picture")
        command.add_argument("--question", dest="asked", metavar="QUESTION", help="the same")
        command.add_argument("--text", help="a text instead of a picture")
        command.add_argument(
            "--text-file", type=Path, metavar="FILE", help="a UTF-8 file with that text"
        )
        command.add_argument("--json", action="store_true", help="print the whole record instead")

    inspect = _command(
        commands, "inspect", "print a model's cache layout and its fingerprint", _inspect
    )
    inspect.add_argument("path", nargs="?", type=Path, help="the checkpoint (instead of --model)")
    _add_settings(inspect, only=_OF_A_MODEL)

    enrolling = _command(
        commands, "enrol", "make a key and get a certificate for a one-time code", _enrol
    )
    enrolling.add_argument(
        "--code",
        required=True,
        help="one-time code, as printed by 'cloud-server devices add'; - reads standard input",
    )
    enrolling.add_argument(
        "--force",
        action="store_true",
        help="replace this device's identity; the old one stays until the new one is stored",
    )
    _add_settings(enrolling, only=_OF_AN_IDENTITY)

    identity = _command(
        commands, "identity", "show this device's name, service and certificate", _identity
    )
    identity.add_argument("--json", action="store_true", help="print it as JSON")
    _add_settings(identity, only=("state_dir",))

    doctor = _command(
        commands,
        "doctor",
        "check this device, and say what to do where something is wrong",
        _doctor,
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    doctor.add_argument(
        "--quick",
        action="store_true",
        help="neither load the model, nor open cameras, nor call the service",
    )
    _add_settings(doctor)

    showing = _command(
        commands, "status", "show how the running agent is, again every second", _status
    )
    showing.add_argument("--json", action="store_true", help="print it once, as JSON")
    _add_settings(showing, only=("state_dir",))

    updating = _command(
        commands, "update", "install a signed update beside what runs, and try it", _update
    )
    updating.add_argument(
        "what",
        nargs="?",
        metavar="FILE|status|rollback|waiting",
        help="an update, or a command; waiting: install what the agent fetched from the service "
        "(systemd does that)",
    )
    updating.add_argument(
        "--check", action="store_true", help="ask the service what it offers; fetch nothing"
    )
    updating.add_argument("--older", action="store_true", help="also one that is not newer")
    updating.add_argument(
        "--restart",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="start the agent again at once (default: yes)",
    )
    updating.add_argument("--json", action="store_true", help="print the status as JSON")
    _add_settings(updating, only=(*UpdateSettings.model_fields, *_OF_AN_IDENTITY, "insecure"))
    return parser


def _command(
    commands: Any, name: str, text: str, function: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.\nFlags beat the environment, which beats the "
        "configuration file, which beats the defaults.",
        epilog=f"example:\n  {_EXAMPLES[name]}\n\n" + console.ends("edge-agent"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configuration.add_config_flags(parser, Settings, top=False)
    parser.set_defaults(command=function)
    return parser


def _add_settings(
    parser: argparse.ArgumentParser, only: Sequence[str] = (), leave_out: Sequence[str] = ()
) -> None:
    configuration.add_setting_flags(
        parser,
        Settings,
        only=only,
        leave_out=(*leave_out, "remote"),
        aliases={"questions": "--question"},
        metavars={"point": f"{AUTO}|raw_kv_fp8|{PICTURE}|NAME"},
    )


if __name__ == "__main__":
    sys.exit(main())
