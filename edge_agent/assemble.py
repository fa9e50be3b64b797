"""Put an agent together from its settings, run it, and say how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

from edge_agent import settings
from edge_agent.agent import Agent
from edge_agent.cascade import Cascade
from edge_agent.device.beside import beside
from edge_agent.device.pulse import WatchedModel
from edge_agent.device.reload import Reload
from edge_agent.device.upkeep import Upkeep
from edge_agent.guard import Guard
from edge_agent.identity.enrolled import Enrolled
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.identity.renewal import Renewal
from edge_agent.identity.trust import foreign_roots
from edge_agent.memory_preflight import require_memory
from edge_agent.metrics import Metrics
from edge_agent.output import Answered
from edge_agent.picture import PictureCodec
from edge_agent.plan import Plan
from edge_agent.prefill import load, use_threads
from edge_agent.progress import Progress
from edge_agent.record import AnswerRecord
from edge_agent.remote.kept import RemoteSettings
from edge_agent.remote.look_after import look_after
from edge_agent.settings import Settings
from edge_agent.shadowing import follow, shadows_for
from edge_agent.sight import EdgeModel
from edge_agent.sources import Source, endless
from edge_agent.sources.turns import Turns
from edge_agent.spool.prepare import Kept, prepare
from edge_agent.start_limit import start_limit
from edge_agent.stop import stop_on_signals
from edge_agent.summary import Summary
from edge_agent.tracing import FrameTraces
from edge_agent.update.boot import Slots
from edge_agent.update.from_service import updates_for
from edge_agent.update.health import begin_health, running_slot
from edge_agent.uplink.crops import Crops
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.dial import (
    InsecureDial,
    SecureDial,
    dial_insecure,
    dial_secure,
)
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.keepalive import Keepalive
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.restraint import Restraint
from edge_agent.uplink.retry import RetryPolicy
from edge_agent.uplink.servers import Servers
from projector.models.exported.manifest import is_export
from protos.errors import ConfigError, ModelError
from protos.identity import name_from
from protos.process import addresses, console, logs, proxies, threads
from protos.process.environment import service_links
from protos.process.files import expanded
from protos.process.health import HealthServer
from protos.process.memory import keep_heap_compact
from protos.process.progress import Waiting, on_terminal
from protos.process.trace_export import Traces

_GIVE_UP_S = 180.0
_HERE = "127.0.0.1:50051"


def run_agent(
    chosen: Settings,
    source: Source,
    on_record: Callable[[AnswerRecord], None],
    done: Answered,
    kept: Kept | None = None,
    again: Callable[[], Settings] | None = None,
    remote: RemoteSettings | None = None,
) -> int:
    """Run an agent over a source.

    Args:
        chosen: the settings.
        source: yields the captures.
        on_record: gets every record.
        done: questions that an earlier run answered; they are not asked again.
        kept: where frames wait on the disk; None: they wait in memory.
        again: reads the settings again, for a run that stays: its log and crash reports are kept in
            the state directory, and it can be asked how it is. None for one question.
        remote: the service's settings, for a run that takes the service's orders.

    Returns:
        0, or the exit code of the first error that left a question without an answer.
    """
    keep_heap_compact()
    bar = sys.stderr.isatty() if chosen.progress is None else chosen.progress
    metrics = Metrics()
    state = None if again is None else state_directory(chosen)
    upkeep = Upkeep(metrics, chosen.without_secrets(), state, chosen.log_bytes)
    log = logs.configure(
        chosen.log_level,
        "edge_agent",
        bar=bar,
        on_drop=metrics.log_lines_dropped.inc,
        also=upkeep.ring,
    )
    logs.adopt_libraries(log)
    if links := service_links(os.environ, settings.PREFIX):
        log.info("service_links_ignored", variables=links)
    slots = Slots(chosen.slots)
    slot = running_slot(slots) if again is not None else None
    if slot is not None:
        on_record = begin_health(slots, slot, state, metrics, log, on_record)
    if isinstance(source, Turns):
        source.attach(metrics, log)
    if skipped := getattr(source, "skipped", None):
        log.warning("entries of the source passed over", source=list(chosen.source), **skipped)
        for kind, number in skipped.items():
            metrics.entries_skipped.labels(kind).inc(number)
    with ExitStack() as stack:
        stack.push(lambda _, error, __: upkeep.end(error))
        upkeep.begin(log, chosen.start_limit_s)
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
        model = WatchedModel(load_model(chosen, log, metrics), upkeep.pulse)
        upkeep.loaded(model.running)
        summary = asyncio.run(
            _drive(
                chosen,
                source,
                model,
                on_record,
                metrics,
                log,
                bar,
                uplinks,
                done,
                kept,
                upkeep,
                again,
                remote,
            )
        )
        log.info(
            "done",
            captures=summary.captures,
            answered=summary.answered,
            fallbacks=summary.fallbacks,
            confident=summary.confident,
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
    kept: Kept | None,
    upkeep: Upkeep,
    again: Callable[[], Settings] | None,
    remote: RemoteSettings | None,
) -> Summary:
    controller = _controller(chosen, metrics, log)
    restraint = Restraint(
        upkeep.sensors.latest, metrics, log, chosen.joules_per_answer, chosen.celsius_limit
    )
    controller.rungs_down = lambda: restraint.rungs
    keepalive = None
    if chosen.keepalive_s:
        keepalive = Keepalive(state_directory(chosen), metrics, log, start_s=chosen.keepalive_s)
    dials = [replace(dial, keepalive=keepalive) for dial in choose_dials(chosen)]
    servers = Servers(dials, chosen.server_back_s)
    for dial in dials:
        if isinstance(dial, InsecureDial) and not addresses.loopback(dial.address):
            metrics.plain_text.set(1)
            log.warning("plain_text", server=dial.address, cause=_why_plain(chosen))
    store = _store(chosen, log)

    crops = None
    if chosen.allow_crop:
        held = chosen.crop_memory_mib << 20
        crops = Crops(chosen.crop_bytes, chosen.crop_share, held, metrics, log)

    shadows = shadows_for(chosen, state_directory(chosen), metrics, log)
    tracing = _tracing(chosen, metrics, log)

    def make_uplink(keep: str = "") -> Uplink:
        made = Uplink(
            model.layout,
            servers,
            store,
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
            controller=None if keep else controller,
            device=chosen.device_name or name_from(socket.gethostname()),
            keep=keep,
            linger_s=0.0 if keep else chosen.linger_ms / 1000,
            ack_wait_s=chosen.ack_wait_ms / 1000,
            crops=crops,
            shadows=shadows,
        )
        made.connection.context = None if tracing is None else tracing.context
        return made

    uplink = make_uplink()
    uplinks.append(uplink)
    if shadows is not None:
        follow(uplink, shadows)
    renewal, dial, now = None, dials[0], time.time
    if isinstance(dial, SecureDial) and dial.enrolled is not None:
        now = dial.enrolled.clock.now
        identity = dial.enrolled.now
        log.info("identity", tenant=identity.tenant, device=identity.device, serial=identity.serial)
        metrics.certificate_end.set(identity.not_after_s)
        renewal = Renewal(
            dial.enrolled,
            servers,
            lambda: uplink.connection.answers,
            metrics,
            log,
            chosen.connect_timeout_s,
        )
    updates = None
    if renewal is not None and again is not None:
        updates = updates_for(chosen, state_directory(chosen), servers, uplink, metrics, log, now)
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
        chosen.priority_number,
    )
    outgoing = None
    if kept is not None:
        outgoing, waits = prepare(kept, chosen, uplink, make_uplink, model, store, metrics, log)
        outgoing.pulse, outgoing.now = upkeep.pulse, now
        if controller.latency_s is not None:  # without an objective, auto stays where it is
            restraint.oldest_s = outgoing.spool.oldest_s
        done = done.and_these(waits)
    closing = outgoing.spool if outgoing is not None else nullcontext()
    with closing, Progress(None if endless(source) else len(source), bar, log) as advance:
        agent = Agent(
            source,
            model,
            uplink,
            plan,
            upkeep.telling(on_record),
            metrics,
            log,
            questions=chosen.questions,
            ask_mode=chosen.question_mode == "ask",
            feedback_mode=chosen.question_mode == "feedback",
            feedback_point=chosen.feedback_point,
            hold_every_s=chosen.hold_every_s if chosen.question_mode == "hold" else None,
            edge_only_too=chosen.edge_only_too,
            edge_fallback=chosen.edge_fallback,
            cascade=_cascade(chosen, model, metrics, log),
            controller=controller,
            pace=restraint.wait,
            on_capture=advance,
            done=done,
            outgoing=outgoing,
            tracing=tracing,
            now=now,
        )
        attendance = None
        if again is not None:
            reload = Reload(chosen, again, agent, upkeep.notify, log)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.read)
            if remote is not None:
                upkeep.set_from_afar = remote.stand
                attendance = look_after(remote, agent, reload, upkeep, metrics, log)
        in_memory = None if outgoing is not None else uplink
        stop_on_signals(agent, log, upkeep.stopping, in_memory, remote)
        upkeep.ready(source.broken if isinstance(source, Turns) else str)
        async with AsyncExitStack() as others:
            if tracing is not None:
                others.push_async_callback(asyncio.to_thread, tracing.close)
            await others.enter_async_context(beside("upkeep", upkeep.beat, log))
            if renewal is not None:
                await renewal.before_connecting()
                await others.enter_async_context(beside("renewal", renewal.run, log))
            if updates is not None:
                upkeep.updating = lambda: updates.shown
                await others.enter_async_context(beside("updates", updates.run, log))
            if shadows is not None:
                await others.enter_async_context(beside("shadows", shadows.run, log))
            if attendance is not None:
                await others.enter_async_context(beside("attendance", attendance.run, log))
            summary = await agent.run()
        if renewal is not None and uplink.connection.session is not None:
            await renewal.turn()  # a short run may end before `renewal.run` looks
        return summary


def _tracing(chosen: Settings, metrics: Metrics, log: logs.Logger) -> FrameTraces | None:
    """Traces of frames, if there is a collector to send them to.

    Raises:
        ConfigError: OpenTelemetry's SDK is not installed.
    """
    if not chosen.otlp_endpoint:
        return None
    counted = metrics.traces.labels
    return FrameTraces(Traces(chosen, "neural-bridge-agent", log, lambda why: counted(why).inc()))


def _cascade(
    chosen: Settings, model: EdgeModel, metrics: Metrics, log: logs.Logger
) -> Cascade | None:
    """The cascade, if the settings ask for it.

    Raises:
        ConfigError: the model has no calibrated confidence.
    """
    if not chosen.cascade:
        return None
    if model.confidence is None:
        raise ConfigError(
            f"--cascade needs a calibrated confidence, which {chosen.model} has not: "
            f"projector calibrate-edge {chosen.model} PICTURES"
        )
    return Cascade(model.confidence, chosen.cascade_limit, metrics, log)


def choose_dials(chosen: Settings) -> list[InsecureDial | SecureDial]:
    """Choose how to reach each server: over TLS if this device is enrolled or `ca` is given.

    Raises:
        CertificateError: the identity or the roots cannot be used.
        ConfigError: `insecure` and `ca` are both given, or the proxy is no URL.
    """
    proxy = proxy_in(chosen)
    if chosen.insecure:
        if chosen.ca:
            raise ConfigError("--insecure is plain text, --ca is for TLS: give one of them")
        return [dial_insecure(each, proxy=proxy) for each in chosen.server or (_HERE,)]
    enrolled = None
    store = _state(chosen)
    if store.directory is not None:
        enrolled = Enrolled.read(IdentityFile.under(store.directory))
    told = enrolled.now.server if enrolled is not None else ""
    servers = chosen.server or (told or _HERE,)
    if enrolled is None and not chosen.ca:
        return [dial_insecure(each, proxy=proxy) for each in servers]
    roots = foreign_roots(chosen.ca) if chosen.ca else b""
    return [dial_secure(each, enrolled, roots, chosen.server_name, proxy=proxy) for each in servers]


def proxy_in(chosen: Settings) -> str:
    """The proxy's URL in the settings; empty if they name none.

    Raises:
        ConfigError: it is no URL.
    """
    url = chosen.proxy.get_secret_value()
    return proxies.checked(url) if url else ""


def state_directory(chosen: Settings) -> Path | None:
    """The directory of this device's identity, encoders and frames; None if none can be written."""
    return _state(chosen).directory


def identity_file(chosen: Settings) -> IdentityFile:
    """The file of this device's identity, which need not exist.

    Raises:
        ConfigError: there is no state directory.
    """
    directory = _state(chosen).directory
    if directory is None:
        raise ConfigError("no home folder that can be written: give --state-dir")
    return IdentityFile.under(directory)


def _why_plain(chosen: Settings) -> str:
    if chosen.insecure:
        return "--insecure: everybody on the way can read and change frames and answers"
    return "this device is not enrolled: everybody on the way can read and change frames"


def _store(chosen: Settings, log: logs.Logger) -> EncoderStore:
    store = _state(chosen)
    if store.directory is None:
        log.warning("no_state_dir", cause="no home folder that can be written: give --state-dir")
    return store


def _state(chosen: Settings) -> EncoderStore:
    if chosen.state_dir is not None:
        return EncoderStore(expanded(chosen.state_dir))
    return EncoderStore.of_user(os.environ)


def _controller(chosen: Settings, metrics: Metrics, log: logs.Logger) -> PointController:
    def switched(before: str, after: str) -> None:
        if before:
            metrics.point.labels(before).set(0)
            metrics.point_switches.inc()
        metrics.point.labels(after).set(1)
        log.info("point", before=before, after=after)

    objective_ms = chosen.latency_objective_ms
    return PointController(
        objective_ms / 1000 if objective_ms is not None else None,
        chosen.distortion_limit,
        on_switch=switched,
    )


def model_path(chosen: Settings) -> Path:
    """The directory of the small model: an edge export, or a checkpoint.

    Raises:
        ConfigError: the settings name no model.
        ModelError: the directory holds neither.
    """
    if chosen.model is None:
        raise ConfigError(
            f"no model: give --model, {settings.PREFIX}MODEL or 'model' in the configuration file"
        )
    if not is_export(chosen.model) and not (chosen.model / "config.json").is_file():
        raise ModelError(
            f"{chosen.model} holds no config.json and no export.json: it is neither a checkpoint "
            "nor an edge export"
        )
    return chosen.model


def load_model(
    chosen: Settings, log: logs.Logger | None = None, metrics: Metrics | None = None
) -> EdgeModel:
    """Load the small model that the settings name; log and metrics are told where it runs."""
    path = model_path(chosen)
    used = use_threads(chosen.threads, path)
    if log is not None:
        threads.tell(used, log)
    if chosen.memory_check:
        need, free = require_memory(path, chosen.device, chosen.dtype, chosen.max_new_tokens)
        if log is not None and free is not None:
            log.info("memory", need_bytes=need.host + need.gpu, free_bytes=free.bytes)
    # Without a terminal, standard error holds only JSON lines.
    waiting = Waiting(f"loading {path}") if on_terminal() else nullcontext()
    began = time.monotonic()
    with start_limit(chosen.start_limit_s, str(path)), waiting:
        model = load(
            path,
            chosen.device,
            chosen.dtype,
            chosen.target_tokenizer,
            chosen.text_tokens,
            chosen.threads,
            None if (state := state_directory(chosen)) is None else state / "engines",
        )
    running = model.running
    if metrics is not None:
        metrics.model_device.labels(running.device).set(1)
        metrics.device_fallback.set(bool(running.fallback))
    if log is not None:
        load_ms = round(1000 * (time.monotonic() - began), 1)
        told = {"device": running.device, "wanted": running.wanted, "load_ms": load_ms}
        log.info("model", path=str(path), **told)
        if running.fallback:
            log.warning("device_fallback", device=running.device, cause=running.fallback)
    return model
