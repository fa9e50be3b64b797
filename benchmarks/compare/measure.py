"""One whole comparison: both processes, every arm, one report, for `make demo` and `make bench`.

In order: the server starts while the models load here → the agent answers every question (relayed)
→ the measuring client sends frames alone (bytes), then every arm that crosses the wire, then arms
in turn (time to first token) → the arms that need no wire → the report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from benchmarks.compare.arms import Frame, Pair, decoded_answers
from benchmarks.compare.figures import (
    bytes_ratio,
    codec_row,
    compared,
    first_token_figures,
    targets,
)
from benchmarks.compare.wire import Service, Shot
from edge_agent.picture import PictureCodec
from protos.errors import ConfigError
from protos.points import RAW_KV_FP8, OperatingPoint
from reference.demo.figures import agent_texts, distortions, first_questions, latencies, sequential
from reference.demo.halves import (
    BUNDLE,
    CLOUD_MODEL,
    EDGE_MODEL,
    MAX_NEW_TOKENS,
    agent_answers,
    cloud_server,
    keep_page,
    read_answers,
    ready,
    threads,
)
from reference.demo.relay import Relay
from reference.demo.run import SHOWN, circumstances
from reference.demo.terminal import Terminal
from reference.demo.testset import TestSet, source_uri

ROOT = Path(__file__).resolve().parents[2]
CHUNK_PICTURES = 16
WARM_UP_ROUNDS = 2
CODECS = (
    PictureCodec("webp", 80),
    PictureCodec("jpeg", 50, 96),
    PictureCodec("webp", 20, 64),
)


@dataclass(frozen=True)
class Plan:
    """What is measured, on how many pictures.

    Attributes:
        out: directory of the report, logs and answers.
        split: split of the yard.
        pictures: number of pictures.
        questions: questions about each picture.
        latency_pictures: number of pictures that the agent sends one at a time, for the latencies.
        answers: an agent's earlier answers; None starts an agent.
        byte_frames: number of frames sent alone to count bytes.
        codecs: the picture codecs beside ours, measured over the wire.
        swept_codecs: picture codecs whose accuracy is measured in this process and whose bytes are
            measured over the wire.
        ttft_rounds: rounds of the time-to-first-token comparison, by batch size.
        edge: checkpoint of the edge model.
        cloud: checkpoint of the cloud model.
        bundle: the bundle between them.
    """

    out: Path
    split: str = "test"
    pictures: int = 60
    questions: int = 6
    latency_pictures: int = 60
    answers: Path | None = None
    byte_frames: int = 512
    codecs: tuple[PictureCodec, ...] = ()
    swept_codecs: tuple[PictureCodec, ...] = ()
    ttft_rounds: dict[int, int] = field(default_factory=lambda: {1: 30, 16: 8})
    edge: Path = EDGE_MODEL
    cloud: Path = CLOUD_MODEL
    bundle: Path = BUNDLE


@dataclass
class Wire:
    """The measuring client behind a counting relay."""

    service: Service
    relay: Relay
    test: TestSet
    show: Terminal

    def answers(self, name: str, shots: Sequence[Shot]) -> tuple[list[str], float]:
        """Answers to every question: frames are sent and held, then asked about.

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

    def frame_bytes(self, shots: Sequence[Shot], most: int) -> dict[str, float]:
        """Uplink bytes per frame at the relay, for frames sent one after the other, alone.

        Returns:
            `mean` and `p95` on the wire, `payload_mean` and `payload_p95` of the payload. `p95` is
            the messages' 95th percentile plus what the wire adds on average.
        """
        used = list(shots[:most])
        self.service.hold(used[:1])  # flushes what the previous phase left unacknowledged
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

    def first_tokens(
        self, arms: dict[str, list[Shot]], batch: int, rounds: int
    ) -> dict[str, list[float]]:
        """Time to first token of every request, the arms in turn within each round.

        Returns:
            By arm, milliseconds from the last byte of the request to the first token, as the
            server's front end measures them.
        """
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


def measure(plan: Plan, show: Terminal) -> dict[str, Any]:
    """Run everything that `plan` asks for.

    Returns:
        The report, as `report.json` holds it (`benchmarks.compare.schema` says which keys).

    Raises:
        ChildError: the server or the agent failed.
        BridgeError: a model, the bundle or a request was refused.
    """
    started = time.monotonic()
    plan.out.mkdir(parents=True, exist_ok=True)
    show.say("starting the cloud server (front end and engine) and loading both models here")
    quiet_libraries()
    log = plan.out / "cloud-server.log"
    with cloud_server(log, model=plan.cloud, bundle=plan.bundle, threads=threads()) as server:
        pair = Pair.load(plan.edge, plan.cloud, plan.bundle)
        test = TestSet.load(plan.split, plan.pictures, plan.questions)
        found = ready(server)
        show.say(f"cloud server ready at {found.address}, its metrics at {found.metrics}")
        loaded_s = time.monotonic() - started
        with Relay(found.address) as relay:
            report = _measure(plan, show, pair, test, relay)
        keep_page(found.metrics, plan.out / "cloud-metrics.txt")
    report["made"] |= {
        "seconds": round(time.monotonic() - started, 1),
        "seconds_loading": round(loaded_s, 1),
        "metrics": found.metrics,
    }
    return report


def _measure(plan: Plan, show: Terminal, pair: Pair, test: TestSet, relay: Relay) -> dict[str, Any]:
    records = read_answers(plan.answers) if plan.answers else _agents(plan, show, relay, test)
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    points = {
        "injected": point,
        "injected_float": _float_point(pair),
        "raw_kv_fp8": RAW_KV_FP8,
    }
    frames: dict[str, list[Frame]] = {name: [] for name in points}
    with show.stage("edge model and encoder", len(test.pictures)) as advance:
        for state in pair.states(test.pictures):
            for name, one in points.items():
                frames[name].append(pair.encode(state, one))
            advance(1)
    shots = {name: [frame.shot for frame in encoded] for name, encoded in frames.items()}
    shots["cloud_image"] = _pictures(PictureCodec("png"), test)
    webp = _pictures(PictureCodec("webp", 80), test)

    before = relay.counts()
    folder = plan.out / "state" / str(time.time_ns())
    with Service(relay.address, pair.edge.layout, folder) as service:
        service.hold(shots["injected"][:1])
        setup = relay.counts() - before
        wire = Wire(service, relay, test, show)
        with show.stage("bytes of frames sent alone", len(shots)) as advance:
            bytes_of = {}
            for name, sent in shots.items():
                bytes_of[name] = wire.frame_bytes(sent, plan.byte_frames)
                advance(1)
        answers, question_bytes = {}, 0.0
        for name in ("cloud_image", "injected_float", "raw_kv_fp8"):
            answers[name], question_bytes = wire.answers(f"{name} over the wire", shots[name])
        codecs = [_codec(one, plan, pair, wire) for one in (*plan.codecs, *plan.swept_codecs)]
        arms = {
            "injected": shots["injected"],
            "picture_png": shots["cloud_image"],
            "picture_webp": webp,
        }
        ttft = {
            batch: wire.first_tokens(arms, batch, rounds)
            for batch, rounds in plan.ttft_rounds.items()
        }

    answers["injected"], problems = agent_texts(records, test)
    others = test.others()
    with show.stage("arms without a wire", 4 * len(test.asked)) as advance:
        answers["edge_only"] = pair.edge_only(test, advance)
        answers["blind"] = pair.blind(test, advance)
        answers["other_picture"] = pair.other_picture(test, frames["injected"], others, advance)
        answers["mean_state"] = pair.mean_state(test, advance)
    answers["other_picture_labels"] = [
        test.truth_in(j, q.text) or "" for j, q in zip(others, test.asked, strict=True)
    ]
    with show.stage("distance from the cloud model's own cache", 1) as advance:
        actual, layers = pair.fidelity(test.pictures, frames["injected"])
        advance(1)

    first, ours = test.asked[0], bytes_of["injected"]
    report = compared(test, answers) | {
        "whole": not problems,
        "problems": problems,
        "wire_bytes_per_frame": {k: ours[k] for k in ("mean", "p95")},
        "payload_bytes_per_frame": {k: ours[f"payload_{k}"] for k in ("mean", "p95")},
        "wire_bytes_per_frame_by_arm": {arm: found["mean"] for arm, found in bytes_of.items()},
        "wire_bytes_per_question": round(question_bytes, 2),
        "setup_bytes": setup.uplink_bytes + setup.downlink_bytes,
        "setup_bytes_by_direction": {
            "uplink": setup.uplink_bytes,
            "downlink": setup.downlink_bytes,
        },
        "image_codecs": codecs,
        "latency_ms": latencies(sequential(records, test)),
        "flops": pair.flops(test.pictures[0], first.text, frames["injected"][first.picture]),
        "distortion": distortions(records) | {"actual": round(actual, 5)},
        "distortion_by_layer": layers,
        "first_questions": first_questions(
            test, {arm: answers[arm] for arm in ("injected", "cloud_image", "edge_only")}, SHOWN
        ),
        "operating_point": {
            "name": point.name,
            "quantizer": point.quantizer,
            "rank": point.rank,
            "tokens": point.tokens or pair.edge.image_tokens,
        },
        "made": {
            **circumstances(plan.split),
            "edge_parameters": sum(p.numel() for p in pair.edge.model.parameters()),
            "cloud_parameters": sum(p.numel() for p in pair.cloud.model.parameters()),
            "bundle": pair.bundle.digest,
        },
        **first_token_figures(ttft),
    }
    report["bytes_ratio"] = bytes_ratio(report)
    report["targets"] = targets(report)
    return report


def _agents(plan: Plan, show: Terminal, relay: Relay, test: TestSet) -> list[dict[str, Any]]:
    """Run the agent over every picture; the pictures for latencies one request at a time."""
    count = len(test.pictures)
    alone = min(plan.latency_pictures, count)
    records: list[dict[str, Any]] = []
    for pictures, in_flight in ((alone, 1), *(((count, 8),) if count > alone else ())):
        source = source_uri(plan.split, pictures, plan.questions)
        total = sum(1 for q in test.asked if q.picture < pictures)
        records += agent_answers(relay.address, source, total, plan.out, plan.edge, show, in_flight)
    return records


def _pictures(codec: PictureCodec, test: TestSet) -> list[Shot]:
    return [Shot.of_picture(codec.encode(picture)) for picture in test.pictures]


def _codec(codec: PictureCodec, plan: Plan, pair: Pair, wire: Wire) -> dict[str, Any]:
    """One picture codec: answers over the wire, or in this process if it was only swept."""
    shots = _pictures(codec, wire.test)
    size = f" {codec.longest_px} px" if codec.longest_px else ""
    name = f"{codec.codec} q{codec.quality}{size}"
    if codec in plan.codecs:
        given, _ = wire.answers(name, shots)
    else:
        files, asked = [shot.payload for shot in shots], wire.test.asked
        with wire.show.stage(f"{name} in this process", len(asked)) as advance:
            given = decoded_answers(pair.cloud, files, asked, advance)
    return codec_row(codec, wire.test, given, wire.frame_bytes(shots, plan.byte_frames))


def _float_point(pair: Pair) -> OperatingPoint:
    """The bundle's point that sends every latent of every token as it is.

    Raises:
        ConfigError: the bundle has none.
    """
    for point in pair.bundle.encoder.points:
        if point.kind == "latent" and point.quantizer == "none" and point.tokens == 0:
            return point
    raise ConfigError("the bundle has no operating point that sends all latents unquantized")


def quiet_libraries() -> None:
    """Keep model libraries from writing over the progress bars, and to their share of threads."""
    torch.set_num_threads(threads())
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
