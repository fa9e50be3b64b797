"""One whole measurement: both processes, every arm, one report. The demo and the bench share it.

Knows what is run in which order and how each figure is counted; knows nothing of tables or pages.

In order: the server starts while the models load here → the real agent answers every question
(relayed) → the measuring client sends frames alone (bytes), then every arm that crosses the wire,
then two arms in turn (time to first token) → the arms that need no wire → the report.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from benchmarks.arms import Encoded, Pair, decoded_answers
from benchmarks.figures import (
    accuracies,
    bytes_ratio,
    codec_row,
    distortions,
    first_questions,
    first_token_figures,
    latencies,
    targets,
)
from benchmarks.wire import Service, Shot
from edge_agent.picture import PictureCodec
from protos.errors import ConfigError
from protos.frame import RAW_KV_FP8, OperatingPoint
from protos.process.threads import choose
from reference.demo.processes import Child
from reference.demo.relay import Counts, Relay
from reference.demo.testset import TestSet, source_uri

ROOT = Path(__file__).resolve().parent.parent
EDGE_MODEL = ROOT / "reference" / "models" / "edge-a"
CLOUD_MODEL = ROOT / "reference" / "models" / "cloud"
BUNDLE = ROOT / "reference" / "bundles" / "edge-a-cloud"

CHUNK_PICTURES = 16
MAX_NEW_TOKENS = 8
WARM_UP_ROUNDS = 2
ENVIRONMENT = {
    "GRPC_VERBOSITY": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
    "TOKENIZERS_PARALLELISM": "false",
}
SERVER_START_S = 300.0

Advance = Callable[[int], None]


class Show(Protocol):
    """Where progress goes."""

    def say(self, text: str) -> None:
        """One line about what happens next."""

    def stage(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """A bar of `total` units; the block gets a function that advances it."""


@dataclass(frozen=True)
class Plan:
    """What is measured, on how much.

    Attributes:
        split: of the yard.
        pictures: how many.
        questions: about each picture.
        latency_pictures: of those, how many the agent sends one at a time, for the latencies.
        byte_frames: how many frames are sent alone to count bytes.
        codecs: the picture codecs beside ours, measured over the wire.
        swept_codecs: picture codecs whose accuracy is measured in this process and whose bytes are
            measured over the wire.
        ttft_rounds: rounds of the time-to-first-token comparison, by batch size.
        out: directory of the report, logs and answers.
        edge: checkpoint of the small model.
        cloud: checkpoint of the large model.
        bundle: the bundle between them.
    """

    out: Path
    split: str = "test"
    pictures: int = 60
    questions: int = 6
    latency_pictures: int = 60
    byte_frames: int = 512
    codecs: tuple[PictureCodec, ...] = ()
    swept_codecs: tuple[PictureCodec, ...] = ()
    ttft_rounds: dict[int, int] = field(default_factory=lambda: {1: 30, 16: 8})
    edge: Path = EDGE_MODEL
    cloud: Path = CLOUD_MODEL
    bundle: Path = BUNDLE


@dataclass
class Bench:
    """What a running measurement has at hand."""

    plan: Plan
    pair: Pair
    test: TestSet
    relay: Relay
    service: Service
    show: Show
    problems: list[str]

    def over_wire(self, name: str, shots: Sequence[Shot]) -> tuple[list[str], float]:
        """Answers to every question, by frames that are held and then asked about.

        Returns:
            The answers, and the mean uplink bytes of one question.
        """
        asked = self.test.asked
        answers = [""] * len(asked)
        rows: dict[int, list[int]] = {}
        for i, question in enumerate(asked):
            rows.setdefault(question.picture, []).append(i)
        spent = 0
        with self.show.stage(name, len(asked)) as advance:
            for start in range(0, len(shots), CHUNK_PICTURES):
                held = self.service.hold(shots[start : start + CHUNK_PICTURES])
                before = self.relay.counts()
                todo = [
                    (i, reply.frame_number)
                    for picture, reply in enumerate(held, start)
                    for i in rows.get(picture, [])
                ]
                replies = self.service.ask(
                    [number for _, number in todo],
                    [asked[i].text for i, _ in todo],
                    in_flight=16,
                    max_new_tokens=MAX_NEW_TOKENS,
                    done=lambda: advance(1),
                )
                for (i, _), reply in zip(todo, replies, strict=True):
                    answers[i] = reply.text
                spent += (self.relay.counts() - before).uplink_bytes
        return answers, spent / max(1, len(asked))

    def frame_bytes(self, shots: Sequence[Shot]) -> dict[str, float]:
        """Uplink bytes per frame at the relay, of frames sent one after the other, alone.

        Returns:
            `mean` and `p95` on the wire, `payload_mean` and `payload_p95` of the payload. The 95th
            percentile is that of the messages plus what the wire adds to them on average.
        """
        used = list(shots[: self.plan.byte_frames])
        self.service.hold(used[:1])  # whatever the previous phase left unacknowledged
        before = self.relay.counts()
        replies = self.service.hold(used, in_flight=1)
        mean = (self.relay.counts() - before).uplink_bytes / len(used)
        messages = np.array([reply.message_bytes for reply in replies], dtype=np.float64)
        payloads = np.array([len(shot.payload) for shot in used], dtype=np.float64)
        return {
            "mean": round(mean, 2),
            "p95": round(float(np.percentile(messages, 95) + mean - messages.mean()), 2),
            "payload_mean": round(float(payloads.mean()), 2),
            "payload_p95": round(float(np.percentile(payloads, 95)), 2),
        }

    def first_tokens(self, arms: dict[str, list[Shot]], batch: int) -> dict[str, list[float]]:
        """Time to first token of every request, the arms in turn within each round.

        Returns:
            By arm, milliseconds from the last byte of the request to the first token, as the
            server's front end measures them.
        """
        rounds = self.plan.ttft_rounds[batch]
        found: dict[str, list[float]] = {name: [] for name in arms}
        names = list(arms)
        questions = {q.picture: q.text for q in self.test.asked}
        with self.show.stage(f"time to first token, batch {batch}", rounds) as advance:
            for turn in range(-WARM_UP_ROUNDS, rounds):
                pictures = [(turn * batch + k) % len(self.test.pictures) for k in range(batch)]
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    shots = [arms[name][p] for p in pictures]
                    asked = [questions.get(p, self.test.asked[0].text) for p in pictures]
                    replies = self.service.infer(shots, asked, in_flight=batch, max_new_tokens=1)
                    if turn >= 0:
                        found[name] += [reply.timings_ms["ttft"] for reply in replies]
                if turn >= 0:
                    advance(1)
        return found


def measure(plan: Plan, show: Show) -> dict[str, Any]:
    """Run everything that `plan` asks for.

    Returns:
        The report, as `report.json` holds it (`benchmarks.report.schema` says which keys).

    Raises:
        ChildError: the server or the agent failed.
        BridgeError: a model, the bundle or a request was refused.
    """
    started = time.monotonic()
    plan.out.mkdir(parents=True, exist_ok=True)
    show.say("starting the cloud server (front end and engine) and loading both models here")
    arguments = [
        *("cloud_server", "serve", "--model", str(plan.cloud), "--bundles", str(plan.bundle)),
        *("--port", "0", "--metrics-port", "0", "--threads", str(threads())),
    ]
    quiet_libraries()
    with Child("cloud-server", arguments, plan.out / "cloud-server.log", ENVIRONMENT) as server:
        pair = Pair.load(plan.edge, plan.cloud, plan.bundle)
        test = TestSet.load(plan.split, plan.pictures, plan.questions)
        ready = server.ready(SERVER_START_S)
        address = f"127.0.0.1:{ready['port']}"
        metrics = f"http://127.0.0.1:{ready['metrics_port']}/metrics"
        show.say(f"cloud server ready at {address}, its metrics at {metrics}")
        loaded_s = time.monotonic() - started
        with Relay(address) as relay:
            report = _measure(plan, show, pair, test, relay)
        _keep_page(metrics, plan.out / "cloud-metrics.txt")
    report["made"] |= {
        "seconds": round(time.monotonic() - started, 1),
        "seconds_loading": round(loaded_s, 1),
        "metrics": metrics,
    }
    return report


def _command() -> str:
    """What anyone can run to get the same figures: this process's own command line."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec else Path(sys.argv[0]).name
    return shlex.join([*program.split(), *sys.argv[1:]])


def _measure(plan: Plan, show: Show, pair: Pair, test: TestSet, relay: Relay) -> dict[str, Any]:
    problems: list[str] = []
    records = _agents(plan, show, relay, test, problems)
    point = _default_point(pair)
    with show.stage("edge model and encoder", len(test.pictures)) as advance:
        states = pair.states(test.pictures)
        frames: dict[str, list[Encoded]] = {
            name: [] for name in ("injected", "injected_float", "raw_kv_fp8")
        }
        points = {
            "injected": point,
            "injected_float": _float_point(pair),
            "raw_kv_fp8": RAW_KV_FP8,
        }
        for state in states:
            for name, one in points.items():
                frames[name].append(pair.encode(state, one))
            advance(1)
    png = [Shot.of_picture(PictureCodec("png").encode(p)) for p in test.pictures]
    webp = [Shot.of_picture(PictureCodec("webp", 80).encode(p)) for p in test.pictures]

    before = relay.counts()
    with Service(
        relay.address, pair.edge.layout, plan.out / "state" / str(time.time_ns())
    ) as service:
        service.hold([frames["injected"][0].shot])
        setup = relay.counts() - before
        bench = Bench(plan, pair, test, relay, service, show, problems)
        answers, bytes_of, codecs, question_bytes = _over_the_wire(bench, frames, png)
        shots = [f.shot for f in frames["injected"]]
        arms = {"injected": shots, "picture_png": png, "picture_webp": webp}
        ttft = {batch: bench.first_tokens(arms, batch) for batch in plan.ttft_rounds}

    answers["injected"] = _agent_answers(records, test, problems)
    others = test.others()
    with show.stage("arms without a wire", 4 * len(test.asked)) as advance:
        answers["edge_only"] = pair.edge_only(test, advance)
        answers["blind"] = pair.blind(test, advance)
        answers["other_picture"] = pair.other_picture(test, frames["injected"], others, advance)
        answers["mean_state"] = pair.mean_state(test, advance)
    answers["other_picture_labels"] = [
        test.truth_in(j, q.text) or "" for j, q in zip(others, test.asked, strict=True)
    ]
    with show.stage("distance from the large model's own cache", 1) as advance:
        actual, layers = pair.fidelity(test.pictures, frames["injected"])
        advance(1)

    report = accuracies(test, answers)
    first = test.asked[0]
    report |= {
        "whole": not problems,
        "problems": problems,
        "wire_bytes_per_frame": {k: bytes_of["injected"][k] for k in ("mean", "p95")},
        "payload_bytes_per_frame": {
            k: bytes_of["injected"][f"payload_{k}"] for k in ("mean", "p95")
        },
        "wire_bytes_per_frame_by_arm": {arm: found["mean"] for arm, found in bytes_of.items()},
        "wire_bytes_per_question": round(question_bytes, 2),
        "setup_bytes": setup.uplink_bytes + setup.downlink_bytes,
        "setup_bytes_by_direction": _directions(setup),
        "image_codecs": codecs,
        "latency_ms": latencies(_sequential(records, test, plan)),
        "flops": pair.flops(test.pictures[0], first.text, frames["injected"][first.picture]),
        "distortion": distortions(records, actual),
        "distortion_by_layer": layers,
        "first_questions": first_questions(test, answers, 10),
        "operating_point": {
            "name": point.name,
            "quantizer": point.quantizer,
            "rank": point.rank,
            "tokens": point.tokens or pair.edge.image_tokens,
        },
        "made": {
            "split": plan.split,
            "command": _command(),
            "machine": f"{platform.machine()}, {platform.system()}, {_cores()} cores",
            "threads_per_process": threads(),
            "python": platform.python_version(),
            "edge_parameters": _parameters(pair.edge.model),
            "cloud_parameters": _parameters(pair.cloud.model),
            "bundle": pair.bundle.digest,
        },
        **first_token_figures(ttft),
    }
    report["bytes_ratio"] = bytes_ratio(report)
    report["targets"] = targets(report)
    return report


# ------------------------------------------------------------------------------------ the agent


def _agents(
    plan: Plan, show: Show, relay: Relay, test: TestSet, problems: list[str]
) -> list[dict[str, Any]]:
    """The real agent over every picture, one request at a time as far as latencies need it."""
    count = len(test.pictures)
    alone = min(plan.latency_pictures, count)
    records = _agent(plan, show, relay, test, alone, 1)
    if count > alone:
        records += _agent(plan, show, relay, test, count, 8)
    failed = [r for r in records if r.get("error")]
    for record in failed[:5]:
        problems.append(f"{record['capture']}: {record['question']!r}: {record['error']}")
    return records


def _agent(
    plan: Plan, show: Show, relay: Relay, test: TestSet, count: int, in_flight: int
) -> list[dict[str, Any]]:
    output = plan.out / f"answers-{in_flight}.jsonl"
    output.unlink(missing_ok=True)
    port = _free_port()
    arguments = [
        *("edge_agent", "run", "--server", relay.address, "--model", str(plan.edge)),
        *("--source", source_uri(plan.split, count, plan.questions), "--question-mode", "infer"),
        *("--in-flight", str(in_flight), "--max-new-tokens", str(MAX_NEW_TOKENS)),
        *("--output", str(output), "--state-dir", str(plan.out / "state" / "agent")),
        *("--metrics-port", str(port)),
    ]
    log = plan.out / f"edge-agent-{in_flight}.log"
    total = sum(1 for q in test.asked if q.picture < count)
    metrics = f"http://127.0.0.1:{port}/metrics"
    show.say(f"the edge agent answers {total} questions about {count} pictures; metrics: {metrics}")
    with (
        Child("edge-agent", arguments, log, ENVIRONMENT) as agent,
        show.stage(f"edge agent, {in_flight} in flight", total) as advance,
    ):
        seen = 0
        kept_at = time.monotonic()

        def tick() -> None:
            nonlocal seen, kept_at
            lines = _lines(output)
            if lines > seen:
                advance(lines - seen)
                seen = lines
            if time.monotonic() - kept_at > 1:
                _keep_page(metrics, plan.out / "edge-metrics.txt")
                kept_at = time.monotonic()

        agent.check(agent.wait(tick, timeout_s=120 + total))
    with output.open(encoding="utf-8") as file:
        return [{**json.loads(line), "_in_flight": in_flight} for line in file]


def _agent_answers(records: list[dict[str, Any]], test: TestSet, problems: list[str]) -> list[str]:
    found = {
        (r["capture"], r["question"]): r["answer"] for r in records if r.get("answer") is not None
    }
    answers = [found.get((test.names[q.picture], q.text)) for q in test.asked]
    missing = sum(1 for answer in answers if answer is None)
    if missing:
        problems.append(f"{missing} of {len(answers)} questions have no answer from the agent")
    fallbacks = sum(1 for r in records if r.get("fallback"))
    if fallbacks:
        problems.append(f"{fallbacks} answers are not the projected frame's")
    return [answer or "" for answer in answers]


def _sequential(records: list[dict[str, Any]], test: TestSet, plan: Plan) -> list[dict[str, Any]]:
    """The records sent one at a time, without the first picture's (every cache is cold there)."""
    alone = [r for r in records if r["_in_flight"] == 1 and r.get("answer") is not None]
    later = [r for r in alone if r["capture"] != test.names[0]]
    return later or alone


# ------------------------------------------------------------------------------------- the wire


def _over_the_wire(
    bench: Bench, frames: dict[str, list[Encoded]], png: list[Shot]
) -> tuple[dict[str, list[str]], dict[str, dict[str, float]], list[dict[str, Any]], float]:
    test, answers = bench.test, {}
    shots = {name: [f.shot for f in encoded] for name, encoded in frames.items()}
    shots["cloud_image"] = png
    bytes_of = {}
    with bench.show.stage("bytes of frames sent alone", len(shots)) as advance:
        for name, sent in shots.items():
            bytes_of[name] = bench.frame_bytes(sent)
            advance(1)
    question_bytes = 0.0
    for name in ("cloud_image", "injected_float", "raw_kv_fp8"):
        answers[name], question_bytes = bench.over_wire(f"{name} over the wire", shots[name])
    codecs = []
    for codec in (*bench.plan.codecs, *bench.plan.swept_codecs):
        files = [codec.encode(p) for p in test.pictures]
        sent = [Shot.of_picture(f) for f in files]
        if codec in bench.plan.codecs:
            given, _ = bench.over_wire(_codec_name(codec), sent)
        else:
            given = _in_process(bench, codec, files)
        counted = bench.frame_bytes(sent)
        codecs.append(codec_row(codec, test, given, counted))
    return answers, bytes_of, codecs, question_bytes


def _in_process(bench: Bench, codec: PictureCodec, files: list[bytes]) -> list[str]:
    with bench.show.stage(
        f"{_codec_name(codec)} in this process", len(bench.test.asked)
    ) as advance:
        return decoded_answers(bench.pair.cloud, files, bench.test.asked, advance)


def _codec_name(codec: PictureCodec) -> str:
    size = f" {codec.longest_px} px" if codec.longest_px else ""
    return f"{codec.codec} q{codec.quality}{size}"


# ---------------------------------------------------------------------------------- small things


def _default_point(pair: Pair) -> OperatingPoint:
    return pair.bundle.encoder.point(pair.bundle.info.default_point)


def _float_point(pair: Pair) -> OperatingPoint:
    """The bundle's point that sends every latent of every token as it is.

    Raises:
        ConfigError: the bundle has none.
    """
    for point in pair.bundle.encoder.points:
        if point.kind == "latent" and point.quantizer == "none" and point.tokens == 0:
            return point
    raise ConfigError("the bundle has no operating point that sends all latents unquantized")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens pages of this machine: no proxy is asked for them."""


def _keep_page(url: str, path: Path) -> None:
    """Keep a copy of a metrics page, for when its process is gone; without one, nothing is lost."""
    try:
        with _DIRECT.open(url, timeout=2) as page:
            path.write_bytes(page.read())
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _directions(counts: Counts) -> dict[str, int]:
    return {"uplink": counts.uplink_bytes, "downlink": counts.downlink_bytes}


def threads() -> int:
    """Threads of each process that runs a model: half of the cores.

    A client, a relay, a front end and an engine share the machine; with as many threads as cores in
    each, they wait for one another and every latency measures that.
    """
    return max(1, choose().share.threads // 2)


def quiet_libraries() -> None:
    """Keep model libraries from writing over the progress bars, and to their share of threads."""
    torch.set_num_threads(threads())
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _parameters(model: Any) -> int:
    return int(sum(p.numel() for p in model.parameters()))
