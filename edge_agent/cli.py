"""The console script `edge-agent`: run over a source, ask about one picture, inspect a model.

Knows flags, exit codes and what is printed where: records and results on standard output, logs, the
progress bar and errors on standard error. Flags are made from the settings, so each has one home.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from protos.errors import ConfigError, ModelError, PictureError, SourceError
from protos.process import console, logs
from protos.process.environment import service_links
from protos.process.files import expanded
from protos.process.progress import EVERY_S, Waiting, on_terminal

# What the `edge` extra brings. Where it lacks, `main` says so and nothing below runs.
_missing: ModuleNotFoundError | None = None
try:
    from edge_agent import settings
    from edge_agent.agent import Agent, Summary
    from edge_agent.encode import AUTO, PICTURE, Plan
    from edge_agent.guard import Guard
    from edge_agent.health import HealthServer
    from edge_agent.metrics import Metrics
    from edge_agent.picture import PictureCodec
    from edge_agent.prefill import EdgeModel, load, use_threads
    from edge_agent.records import Answered, AnswerRecord, RecordWriter, answered
    from edge_agent.settings import Settings
    from edge_agent.sources import Capture, Source, open_source
    from edge_agent.sources.folder import Folder, read_text
    from edge_agent.uplink.budget import Budget
    from edge_agent.uplink.session import dial_insecure
    from edge_agent.uplink.store import EncoderStore
    from edge_agent.uplink.uplink import RetryPolicy, Uplink
    from projector.codec.select import require as require_selector
    from protos.process import settings as configuration
    from protos.process import threads
except ModuleNotFoundError as error:
    _missing = error

_OF_A_RUN = ("source", "questions", "question_mode", "output")  # settings, not a question's
_GIVE_UP_S = 180.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        0, or the exit code of the error that was met first (`protos/errors.py`).
    """
    return console.run("edge-agent", "edge", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    if _missing is not None:
        raise _missing
    args = _parser().parse_args(argv)
    return int(args.command(args))


# ---------------------------------------------------------------------- the commands


def _run(args: argparse.Namespace) -> int:
    chosen = _settings(args)
    if args.check_config:
        return _check(chosen)
    source = _bounded(open_source(_source(chosen)), chosen)
    if chosen.give_up_s is None and not chosen.edge_fallback:
        chosen = chosen.model_copy(update={"give_up_s": 0.0})  # nobody else would answer
    done = answered(chosen.output) if chosen.resume else Answered()
    writer = RecordWriter(chosen.output)
    try:
        return _work(chosen, source, writer.write, done)
    finally:
        writer.close()


def _ask(args: argparse.Namespace) -> int:
    flags = _flags(args)
    flags.update(questions=[_question(args)], progress=flags.get("progress", False))
    flags.setdefault("log_level", "warning")
    chosen = settings.load(flags, args.config)
    if args.check_config:
        return _check(chosen)
    records: list[AnswerRecord] = []
    code = _work(chosen, _bounded(_about(args), chosen), records.append, Answered())
    for record in records:
        if args.json:
            print(record.to_json())
        elif record.answer is not None:
            print(record.answer)
        elif record.edge_answer is not None:
            print(f"{record.edge_answer}  (edge_only: {record.fallback})")
    return code


def _bounded(source: Source, chosen: Settings) -> Source:
    """A source of files decodes no more than the setting allows."""
    if isinstance(source, Folder):
        return replace(source, max_pixels=chosen.max_picture_pixels)
    return source


def _question(args: argparse.Namespace) -> str:
    if args.picture is not None and (args.text is not None or args.text_file is not None):
        if args.asked is None and args.question is None:  # a text given by flag has no place
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
    layout = _model(chosen).layout
    shown = json.loads(layout.to_json())
    shown.update(
        fingerprint=layout.fingerprint,
        tokens=layout.tokens,
        state_dim=layout.state_dim,
        raw_fp8_bytes_per_picture=layout.tokens * layout.state_dim,
    )
    print(json.dumps(shown, indent=2))
    return 0


def _no_command(args: argparse.Namespace) -> int:
    if args.check_config:
        return _check(settings.load({}, args.config))
    raise ConfigError("no command: run, ask, feedback or inspect (see edge-agent --help)")


# ---------------------------------------------------------------------- putting a run together


def _check(chosen: Settings) -> int:
    """Find, without loading the model or calling the server, what a run would stumble over."""
    _model_path(chosen)
    if chosen.source:
        open_source(chosen.source)
    if chosen.selector is not None:
        require_selector(chosen.selector)
    print(json.dumps(chosen.model_dump(mode="json"), indent=2))
    return 0


def _work(
    chosen: Settings,
    source: Source,
    on_record: Callable[[AnswerRecord], None],
    done: Answered,
) -> int:
    bar = sys.stderr.isatty() if chosen.progress is None else chosen.progress
    metrics = Metrics()
    log = logs.configure(
        chosen.log_level, "edge_agent", bar=bar, on_drop=metrics.log_lines_dropped.inc
    )
    logs.adopt_libraries(log)
    if links := service_links(os.environ, settings.PREFIX):
        log.info("service_links_ignored", variables=links)
    if skipped := getattr(source, "skipped", None):
        log.warning("entries of the source passed over", source=chosen.source, **skipped)
        for kind, number in skipped.items():
            metrics.entries_skipped.labels(kind).inc(number)
    with ExitStack() as stack:
        uplinks: list[Uplink] = []
        if chosen.metrics_port is not None:
            health = HealthServer(
                metrics.registry,
                lambda: "" if uplinks and uplinks[0].connected else "no session with the server",
                chosen.metrics_host,
                chosen.metrics_port,
            )
            stack.callback(health.close)
            log.info("metrics", host=health.host, port=health.port)
        model = _model(chosen, log)
        summary = asyncio.run(
            _drive(chosen, source, model, on_record, metrics, log, bar, uplinks, done)
        )
    log.info(
        "done",
        captures=summary.captures,
        answered=summary.answered,
        fallbacks=summary.fallbacks,
        failed=summary.failed,
        payload_bytes=summary.payload_bytes,
    )
    if summary.first_error is not None:
        error = summary.first_error
        console.say(
            f"edge-agent: {summary.failed} of {summary.questions} without an answer; the first: "
            f"{error.name}: {error}"
        )
        return error.exit_code
    return 0


async def _drive(
    chosen: Settings,
    source: Source,
    model: EdgeModel,
    on_record: Callable[[AnswerRecord], None],
    metrics: Metrics,
    log: logs.Logger,
    bar: bool,
    uplinks: list[Uplink],
    done: Answered,
) -> Summary:
    budget = _budget(chosen, metrics, log)
    uplink = Uplink(
        model.layout,
        dial_insecure(chosen.server),
        _store(chosen, log),
        metrics,
        log,
        RetryPolicy(
            give_up_s=_GIVE_UP_S if chosen.give_up_s is None else chosen.give_up_s,
            retries=chosen.retries,
            backoff_s=chosen.backoff_s,
            backoff_max_s=chosen.backoff_max_s,
            answer_timeout_s=chosen.answer_timeout_s,
            connect_timeout_s=chosen.connect_timeout_s,
        ),
        chosen.in_flight,
        budget=budget,
    )
    uplinks.append(uplink)
    plan = Plan(
        chosen.point,
        chosen.highest_point,
        chosen.selector,
        chosen.token_budget,
        chosen.token_threshold,
        PictureCodec(chosen.picture_codec, chosen.picture_quality, chosen.picture_px),
        chosen.max_new_tokens,
        chosen.delta,
        Guard(chosen.guard, chosen.guard_limit),
    )
    with _progress(len(source), bar, log) as advance:
        agent = Agent(
            source,
            model,
            uplink,
            plan,
            on_record,
            metrics,
            log,
            questions=chosen.questions,
            ask_mode=chosen.question_mode == "ask",
            feedback_mode=chosen.question_mode == "feedback",
            feedback_point=chosen.feedback_point,
            edge_only_too=chosen.edge_only_too,
            edge_fallback=chosen.edge_fallback,
            budget=budget,
            on_capture=advance,
            done=done,
        )
        _stop_on_signals(agent, log)
        return await agent.run()


def _store(chosen: Settings, log: logs.Logger) -> EncoderStore:
    if chosen.state_dir is not None:
        return EncoderStore(expanded(chosen.state_dir))
    store = EncoderStore.of_user(os.environ)
    if store.directory is None:
        log.warning("no_state_dir", cause="no home folder that can be written: give --state-dir")
    return store


def _budget(chosen: Settings, metrics: Metrics, log: logs.Logger) -> Budget:
    def switched(before: str, after: str) -> None:
        if before:
            metrics.point.labels(before).set(0)
            metrics.point_switches.inc()
        metrics.point.labels(after).set(1)
        log.info("point", before=before, after=after)

    objective_ms = chosen.latency_objective_ms
    return Budget(
        objective_ms / 1000 if objective_ms is not None else None,
        chosen.distortion_limit,
        on_switch=switched,
    )


class _progress:
    """A bar on standard error, one step a capture; where it is not wanted, a log line at times."""

    def __init__(
        self,
        total: int,
        wanted: bool,
        log: logs.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total, disable=not wanted, file=sys.stderr, unit="capture", dynamic_ncols=True
        )
        self._total, self._wanted, self._log, self._clock = total, wanted, log, clock
        self._done, self._begun = 0, clock()
        self._next_s = EVERY_S

    def __enter__(self) -> Callable[[], None]:
        return self._advance

    def _advance(self) -> None:
        self._bar.update(1)
        self._done += 1
        spent = self._clock() - self._begun
        if not self._wanted and spent >= self._next_s and self._done < self._total:
            self._next_s = spent + EVERY_S
            left_s = spent / self._done * (self._total - self._done)
            self._log.info("progress", captures=self._done, of=self._total, left_s=round(left_s))

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _stop_on_signals(agent: Agent, log: logs.Logger) -> None:
    """The first SIGINT or SIGTERM ends the run after what is in flight; the second at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def asked(number: signal.Signals) -> None:
        log.warning("stopping", signal=number.name)
        agent.stop()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)
        if number is signal.SIGTERM and task is not None:
            loop.add_signal_handler(signal.SIGTERM, task.cancel)

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, asked, each)


def _model_path(chosen: Settings) -> Path:
    if chosen.model is None:
        raise ConfigError(
            f"no model: give --model, {settings.PREFIX}MODEL or 'model' in the configuration file"
        )
    if not (chosen.model / "config.json").is_file():
        raise ModelError(f"{chosen.model} holds no config.json: it is not a checkpoint")
    return chosen.model


def _model(chosen: Settings, log: logs.Logger | None = None) -> EdgeModel:
    path = _model_path(chosen)
    used = use_threads(chosen.threads)
    if log is not None:
        threads.tell(used, log)
    # Off a terminal standard error holds JSON lines alone.
    with Waiting(f"loading {path}") if on_terminal() else nullcontext():
        return load(path, chosen.device, chosen.dtype, chosen.target_tokenizer, chosen.text_tokens)


def _source(chosen: Settings) -> str:
    if not chosen.source:
        raise SourceError(
            f"no source: give --source, {settings.PREFIX}SOURCE or 'source' in the configuration "
            "file"
        )
    return chosen.source


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
        epilog="exit codes: 0 where every question was answered, otherwise that of the first "
        f"error;\n{console.INTERRUPTED} or {console.TERMINATED} where a second SIGINT or SIGTERM "
        f"cut the run short:\n{console.exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"%(prog)s {configuration.installed_version()}"
    parser.add_argument("--version", action="version", version=version)
    configuration.add_config_flags(parser, Settings)
    parser.set_defaults(command=_no_command)
    commands = parser.add_subparsers(title="commands", metavar="run | ask | feedback | inspect")

    run = _command(commands, "run", "answer questions about every capture of a source", _run)
    _add_settings(run)

    ask = _command(commands, "ask", "one picture or text, one question: print the answer", _ask)
    _add_settings(ask, leave_out=(*_OF_A_RUN, "feedback_point"))

    feedback = _command(
        commands,
        "feedback",
        "one picture, one question, answered here from the state that the server sends back",
        _ask,
    )
    _add_settings(feedback, leave_out=_OF_A_RUN)
    feedback.set_defaults(question_mode="feedback")
    for command in (ask, feedback):
        command.add_argument("picture", nargs="?", help="a PNG, JPEG, WebP, BMP or TIFF file")
        command.add_argument("question", nargs="?", help="asked about the picture")
        command.add_argument("--question", dest="asked", metavar="QUESTION", help="the same")
        command.add_argument("--text", help="a text in the picture's place")
        command.add_argument("--text-file", type=Path, metavar="FILE", help="likewise, in UTF-8")
        command.add_argument("--json", action="store_true", help="print the whole record instead")

    inspect = _command(
        commands, "inspect", "print a model's cache layout and its fingerprint", _inspect
    )
    inspect.add_argument("path", nargs="?", type=Path, help="the checkpoint (instead of --model)")
    _add_settings(inspect, only=("model", "device", "dtype", "text_tokens"))
    return parser


def _command(
    commands: Any, name: str, text: str, function: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Flags beat the environment, which beats the "
        "configuration file, which beats the defaults.",
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
        leave_out=leave_out,
        aliases={"questions": "--question"},
        metavars={"point": f"{AUTO}|raw_kv_fp8|{PICTURE}|NAME"},
    )


if __name__ == "__main__":
    sys.exit(main())
