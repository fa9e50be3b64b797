"""Soak test of memory: the real service, a real agent and a client run for a long time.

The agent watches a fixed camera and sends delta frames with questions. The client sends frames with
questions, sends pictures, and asks again about held scenes; its frames keep pushing older scenes
out. Every second the memory of the front end, the engine and the agent is read. The test fails if
the engine ever exceeds its base plus caps by more than 15 % or was restarted, or if the front end
or the agent has grown by more than 15 % from the first half of the run to its end.
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import command
from benchmarks.compare.arms import Pair
from benchmarks.compare.measure import quiet_libraries
from benchmarks.compare.wire import Service, Shot
from edge_agent.picture import PictureCodec
from projector.bundle.load import Bundle
from protos.process.memory import MARGIN, resident_bytes
from reference.demo.halves import (
    BUNDLE,
    CLOUD_MODEL,
    EDGE_MODEL,
    cloud_server,
    edge_agent,
    ready,
)
from reference.demo.processes import ChildError
from reference.demo.testset import TestSet
from reference.report.parts import Table, show

PROCESSES = ("engine", "front_end", "agent")
_PREFIX = "neural_bridge_cloud_"
_READY_S = 600.0
_ROUND = 32
_ASKS, _PICTURES = 6, 4
_SAMPLE_S = 1.0
_LEAST_SAMPLES = 6
_SAY_S = 15.0
_MB = 1e6


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, in bytes, and the answers until then."""

    seconds: float
    answers: int
    engine: int
    front_end: int
    agent: int
    scenes: int
    scene_bytes: int
    pool_bytes: int
    restarts: int = 0


@dataclass
class Soak:
    """What was measured.

    Attributes:
        caps_bytes: the set caps of scenes and latents together.
        samples: in order; the first is from before the first answer.
    """

    caps_bytes: int
    samples: list[Sample] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Base, limit and highest value of each process, in bytes, and what is wrong."""
        table: dict[str, dict[str, int]] = {}
        half = len(self.samples) // 2
        for name in PROCESSES:
            held = [int(getattr(sample, name)) for sample in self.samples]
            early, late = held[1 : half + 1], held[half + 1 :]
            limit = (
                held[0] + self.caps_bytes if name == "engine" else max(early, default=held[0])
            ) * (1 + MARGIN)
            table[name] = {
                "base": held[0],
                "early": max(early, default=0),
                "highest": max(late if name != "engine" else held, default=0),
                "limit": int(limit),
            }
        last = self.samples[-1]
        problems = [
            f"{name} held {row['highest'] / _MB:.0f} MB, its limit is {row['limit'] / _MB:.0f} MB"
            for name, row in table.items()
            if row["highest"] > row["limit"]
        ]
        problems += [
            f"no memory of {name} was read" for name, row in table.items() if not row["base"]
        ]
        if last.pool_bytes > self.caps_bytes * 1.02 + (64 << 20):
            problems.append(f"the pool has {last.pool_bytes / _MB:.0f} MB, more than the caps")
        if last.restarts:
            problems.append(f"the engine was started again {last.restarts} times, with new memory")
        if len(self.samples) < _LEAST_SAMPLES:
            problems.append(f"{len(self.samples)} samples are too few to tell: let it run longer")
        return {
            "answers": last.answers,
            "seconds": round(last.seconds, 1),
            "caps_bytes": self.caps_bytes,
            "processes": table,
            "problems": problems,
        }


def soak(
    out: Path,
    *,
    answers: int = 0,
    minutes: float = 0.0,
    scene_bytes: int = 256 << 20,
    latent_bytes: int = 64 << 20,
    say: Any = print,
) -> dict[str, Any]:
    """Run for a number of answers or of minutes, whichever is given.

    Returns:
        `Soak.figures`, with every sample.

    Raises:
        ChildError: a process ended early.
        BridgeError: a request was refused for good.
    """
    out.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    shots, questions = _prepare(say)
    server = ["--log-level", "warning", "--scene-memory-bytes", str(scene_bytes)]
    server += ["--latent-memory-bytes", str(latent_bytes)]
    result = Soak(scene_bytes + latent_bytes)
    with cloud_server(out / "soak-server.log", *server) as service:
        told = ready(service)
        address, metrics = told.address, told.metrics
        agent = [
            *("--source", "yard://test?sequence=3&count=8000000", "--delta"),
            *("--question", "is there a fire ?", "--question", "how many cars are there ?"),
            *("--output", str(out / "soak-agent.jsonl"), "--state-dir", str(out / "soak-state")),
            *("--threads", "1", "--in-flight", "2", "--log-level", "error", "--no-progress"),
        ]
        (out / "soak-agent.jsonl").unlink(missing_ok=True)
        with edge_agent(out / "soak-agent.log", address, *agent) as edge:
            _until_it_answers(out / "soak-agent.jsonl", metrics)
            with Service(address, Bundle.peek(BUNDLE).source, out / "soak-state") as client:
                _drive(client, shots, questions, metrics, edge.pid, result, answers, minutes, say)
    return result.figures() | {"samples": [asdict(sample) for sample in result.samples]}


def _prepare(say: Any) -> tuple[list[list[Shot]], list[str]]:
    """Frames of test pictures at the bundle's default point, and pictures as files."""
    say("soak: loading both models here, to make the client's frames")
    pair = Pair.load(EDGE_MODEL, CLOUD_MODEL, BUNDLE)
    test = TestSet.load("test", 2 * _ROUND, 2)
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    frames = [pair.encode(state, point).shot for state in pair.states(test.pictures)]
    files = [Shot.of_picture(PictureCodec("webp", 80).encode(p)) for p in test.pictures]
    return [frames, files], [q.text for q in test.asked]


def _until_it_answers(records: Path, metrics: str) -> None:
    """Wait for the agent's first answer and for a heartbeat with the engine's memory."""
    deadline = time.monotonic() + _READY_S
    while not (records.is_file() and records.stat().st_size and _read(metrics)["engine"]):
        if time.monotonic() > deadline:
            raise SystemExit("soak: the agent got no answer; see its log")
        time.sleep(0.2)


def _drive(
    client: Service,
    shots: list[list[Shot]],
    questions: list[str],
    metrics: str,
    agent: int,
    result: Soak,
    answers: int,
    minutes: float,
    say: Any,
) -> None:
    frames, files = shots
    rng = np.random.default_rng(0)
    started = said = time.monotonic()
    sampled = 0.0
    while True:
        now = time.monotonic()
        if now - sampled >= _SAMPLE_S or not result.samples:
            sampled = now
            held = resident_bytes(agent)
            if not held:
                raise ChildError("the agent ended; soak-agent.log says why")
            result.samples.append(Sample(round(now - started, 1), agent=held, **_read(metrics)))
        last = result.samples[-1]
        done = last.answers / answers if answers else (now - started) / (60 * minutes)
        if now - said >= _SAY_S:
            said = now
            left = (now - started) * (1 / max(done, 1e-9) - 1)
            say(
                f"soak: {100 * min(1, done):.0f} %, {last.answers} answers, "
                f"{left / 60:.1f} minutes to go; MB: engine {last.engine / _MB:.0f}, "
                f"front end {last.front_end / _MB:.0f}, agent {last.agent / _MB:.0f}; "
                f"{last.scenes} scenes"
            )
        if done >= 1:
            return
        chosen = rng.integers(0, len(frames), _ROUND)
        sent = [files[i] if row < _PICTURES else frames[i] for row, i in enumerate(chosen)]
        asked = [questions[(2 * i + int(rng.integers(2))) % len(questions)] for i in chosen]
        replies = client.infer(sent, asked, in_flight=int(rng.integers(1, 17)))
        again = rng.choice(len(replies), _ASKS, replace=False)
        client.ask([replies[k].frame_number for k in again], [asked[k - 1] for k in again])


def _read(metrics: str) -> dict[str, int]:
    """The numbers of a sample that come from the service's metrics."""
    with urllib.request.urlopen(metrics, timeout=30) as page:
        lines = page.read().decode().splitlines()
    values = {}
    for line in lines:
        if line.startswith(_PREFIX):
            name, _, value = line.removeprefix(_PREFIX).rpartition(" ")
            values[name] = int(float(value))
    return {
        "answers": sum(v for name, v in values.items() if name.startswith("answers_total")),
        "engine": values.get('resident_memory_bytes{process="engine"}', 0),
        "front_end": values.get('resident_memory_bytes{process="front_end"}', 0),
        "scenes": values.get("scenes", 0),
        "scene_bytes": values.get("scene_memory_bytes", 0),
        "pool_bytes": values.get("pool_memory_bytes", 0),
        "restarts": values.get("engine_restarts_total", 0),
    }


def bench(args: argparse.Namespace) -> int:
    """Run a soak; returns 1 if memory exceeded a limit."""
    report = soak(
        args.out,
        answers=args.answers,
        minutes=args.minutes,
        say=lambda text: print(text, flush=True),
    )
    command.write(report, args.out / "soak.json")
    sizes = ("base", "early", "highest", "limit")
    rows = [
        (name, *(f"{row[key] / _MB:.0f}" for key in sizes))
        for name, row in report["processes"].items()
    ]
    show([Table("Memory, MB", ("process", *(f"#{key}" for key in sizes)), rows)], Console())
    print(f"\n{report['answers']} answers in {report['seconds'] / 60:.1f} minutes")
    for problem in report["problems"]:
        print(f"soak: {problem}")
    return 1 if report["problems"] else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command.parser("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="default: %(default)s")
    parser.add_argument("--answers", type=int, default=0, help="end after this many instead")
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    return command.run(parser, bench, argv)


if __name__ == "__main__":
    sys.exit(main())
