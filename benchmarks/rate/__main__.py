"""`make bench-rate`: accuracy against bytes, ours and every rival.

The results of each stage are kept, so an interrupted run goes on where it stopped. With a second
core a second process helps. The picture codecs to measure are chosen on validation; all figures are
measured on test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import codec_speed, command, controller, guard
from benchmarks.compare.arms import Pair, decoded_answers, seeing
from benchmarks.compare.figures import WITHIN
from benchmarks.compare.measure import Wire, quiet_libraries
from benchmarks.compare.wire import Service, Shot
from benchmarks.rate import arms, docs, presses, sequences, tensors
from benchmarks.rate.keep import Keep, TakenError
from benchmarks.rate.pictures import RIVALS, Rival, sweep
from edge_agent.picture import PictureCodec
from projector.codec.encoder import Encoder
from projector.models.autocast import quick_kernels
from projector.models.vlm import VLM
from projector.validation.estimate import pareto, thin
from protos.errors import BridgeError
from reference.demo.halves import (
    BUNDLES,
    CLOUD_MODEL,
    ENVIRONMENT,
    MODELS,
    cloud_server,
    ready,
    threads,
)
from reference.demo.relay import Relay
from reference.demo.terminal import Terminal
from reference.demo.testset import TestSet
from reference.report.parts import Plot, html, show

QUESTIONS = 6
FRONTIER = 5
ROUNDS = 40
HEADLINES: dict[str, tuple[str, ...]] = {
    "within_two_points": (),
    "sequences_within_two_points": (),
    "cachegen": (),
    "frames_per_second_one_core": (),
    "guard": (
        *("auroc", "auroc_test", "auroc_shifted"),
        *("accuracy_mixed", "bytes_mixed", "cloud_image_mixed"),
    ),
    "controller": ("adaptive", "best_fixed", "best_fixed_point"),
}
"""Keys of the report that are printed beside the tables; no keys: all of them."""


class Stages:
    """The stages of one run."""

    def __init__(self, args: argparse.Namespace, terminal: Terminal) -> None:
        """Loads the cloud model and the test pictures."""
        self.args, self.show = args, terminal
        self.keep = Keep(args.out / "rate", str(args.pictures), terminal.say)
        quiet_libraries()
        self.cloud = VLM.load(CLOUD_MODEL)
        self.test = TestSet.load("test", args.pictures, QUESTIONS)
        self.edges = {
            path.name: BUNDLES / f"{path.name}-cloud"
            for path in sorted(MODELS.glob("edge-*"))
            if (BUNDLES / f"{path.name}-cloud").is_dir() and path.name in (args.edges or path.name)
        }
        if not self.edges:
            raise BridgeError(f"no edge model with a bundle under {MODELS} and {BUNDLES}")
        self.digests = {
            name: hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
            for name, bundle in self.edges.items()
        }

    @property
    def judge(self) -> arms.Baseline:
        """The questions, and which the cloud model answers right when it sees the pictures."""
        native = self.keep("native", self.cloud.layout.fingerprint, self._native)
        return arms.Baseline(self.test, native)

    def jobs(self) -> list[Callable[[], object]]:
        """All independent stages, the longest first; two processes share them."""
        return [
            *(partial(self.points, name) for name in self.edges),
            *(partial(self.described, name) for name in self.edges),
            self.pictures,
            *(partial(self.ours, name) for name in self.edges),
            *(partial(self.guard, name) for name in self.edges),
            *(partial(self.presses, name) for name in self.edges),
            self.sequences,
            *(partial(self.tensors, name) for name in self.edges),
            self.controller,
        ]

    def _native(self) -> list[bool]:
        with self.show.stage("the pictures themselves", len(self.test.asked)) as advance:
            return self.test.right(seeing(self.cloud, self.test.pictures, self.test.asked, advance))

    def frontier(self) -> list[Rival]:
        """Picture codecs worth measuring: chosen on validation."""
        made_for = f"{self.cloud.layout.fingerprint} {RIVALS} {self.args.validation_pictures}"
        swept = self.keep("sweep", made_for, self._sweep)
        chosen: list[int] = []
        for size in ("bytes", "bare_bytes"):
            rows = [{**row, "bytes": row[size]} for row in swept["rows"]]
            chosen += thin(rows, pareto(rows), FRONTIER, swept["native"] - WITHIN)
        rows = [swept["rows"][i] for i in dict.fromkeys(chosen)]
        return [Rival(row["codec"], row["quality"], row["px"]) for row in rows]

    def _sweep(self) -> dict[str, Any]:
        test = TestSet.load("validation", self.args.validation_pictures, QUESTIONS)

        def accuracy(pictures: Sequence[Any]) -> float:
            right = test.right(seeing(self.cloud, pictures, test.asked, lambda _: None))
            return sum(right) / len(right)

        with self.show.stage("validation: JPEG, WebP, AVIF", len(RIVALS)) as advance:
            rows = sweep(RIVALS, test.pictures, accuracy, advance)
        return {"native": accuracy(test.pictures), "rows": rows}

    def sent(self) -> dict[str, Any]:
        """Pictures as an agent would send them: which answers are `right`, `bytes` of each."""
        found: dict[str, Any] = self.keep("sent", self.cloud.layout.fingerprint, self._sent)
        return found

    def _sent(self) -> dict[str, Any]:
        codec = PictureCodec()
        files = [codec.encode(picture) for picture in self.test.pictures]
        with self.show.stage("pictures as agents send them", len(self.test.asked)) as advance:
            answers = decoded_answers(self.cloud, files, self.test.asked, advance)
        return {"right": self.test.right(answers), "bytes": [len(file) for file in files]}

    @cached_property
    def coded(self) -> dict[str, str]:
        """By edge model, a digest of all that frames and answers depend on; the guard is not."""
        found = {}
        for name, bundle in self.edges.items():
            info = json.loads((bundle / "bundle.json").read_text())
            half = Encoder.from_bytes((bundle / "edge.safetensors").read_bytes())
            plan = [info["default_point"], info["files"]["cloud.safetensors"]["sha256"]]
            parts = guard.bare(half), json.dumps(plan).encode()
            found[name] = hashlib.sha256(b"".join(parts)).hexdigest()
        return found

    def ours(self, name: str) -> list[dict[str, Any]]:
        """Every operating point of one edge model, without and with its guard."""
        rows: list[dict[str, Any]] = [dict(row) for row in self.points(name)]
        found: list[dict[str, Any]] = self.keep(
            f"guarded-{name}", self.digests[name], partial(self._guarded, name, rows)
        )
        merged = [row | figures for row, figures in zip(rows, found, strict=True)]
        return [{k: v for k, v in row.items() if k != "right"} for row in merged]

    def points(self, name: str) -> list[dict[str, Any]]:
        """Every operating point of one edge model, and the edge alone; `right` of each."""
        made_for = f"{self.coded[name]} {self.args.byte_frames}"
        rows: list[dict[str, Any]] = self.keep(
            f"points-{name}", made_for, partial(self._points, name)
        )
        return rows

    def _edge(self, name: str) -> arms.Edge:
        with self.show.stage(f"{name}: prefill", len(self.test.pictures)) as advance:
            return arms.Edge(name, MODELS, self.edges[name], self.test, advance)

    def _points(self, name: str) -> list[dict[str, Any]]:
        judge, edge = self.judge, self._edge(name)
        folder = self.keep.folder
        log, state = folder / f"cloud-server-{name}.log", folder / "state" / str(time.time_ns())
        with (
            cloud_server(log, bundle=self.edges[name], threads=threads()) as server,
            Relay(ready(server).address) as relay,
            Service(relay.address, edge.pair.edge.layout, state) as service,
        ):
            wire = Wire(service, relay, self.test, self.show)
            count = partial(wire.frame_bytes, most=self.args.byte_frames)
            webp = PictureCodec("webp", 50, 48)
            counted = count([Shot.of_picture(webp.encode(p)) for p in self.test.pictures])
            overhead = counted["mean"] - counted["payload_mean"]
            rows = arms.ours(edge, judge, count, self.show)
        with self.show.stage(f"{name}: its own answers", len(self.test.asked)) as advance:
            answers = edge.pair.edge_only(self.test, advance)
        alone = judge.row(
            "edge alone", "control", answers, edge_model=name, payload_bytes=0, wire_bytes=0
        )
        return [{**row, "picture_overhead_bytes": round(overhead, 2)} for row in (*rows, alone)]

    def _guarded(self, name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The guard's figures for each row; empty for rows that are not points."""
        sent, edge = self.sent(), self._edge(name)
        sizes = np.array(sent["bytes"]) + rows[0]["picture_overhead_bytes"]
        with self.show.stage(f"{name}: how sure it is", len(self.test.asked)) as advance:
            guarded = arms.Guarded.of(edge, self.test, sent["right"], sizes, advance)
        points = {point.name: point for point in edge.points}
        found = []
        with self.show.stage(f"{name}: what its guard sends", len(rows)) as advance:
            for row in rows:
                figures: dict[str, Any] = {}
                if row["kind"] == "ours":
                    right = np.array([digit == "1" for digit in row["right"]])
                    frames = edge.frames(points[row["name"]])
                    figures = guarded.figures(frames, right, row["wire_bytes"])
                found.append(figures)
                advance(1)
        return found

    def described(self, name: str) -> list[dict[str, Any]]:
        """Lists of things read off the edge's states, without the transport's bytes."""
        made_for = f"{self.coded[name]} {self.args.head_pictures} {self.args.head_steps}"

        def make() -> list[dict[str, Any]]:
            return arms.described(self._edge(name), self.judge, self.args, self.show)

        rows: list[dict[str, Any]] = self.keep(
            f"described-{name}", f"{made_for} {self.args.seeds}", make
        )
        return rows

    def pictures(self) -> list[dict[str, Any]]:
        """The frontier on test, and PNG, without the transport's bytes."""
        rows = []
        for rival in (*self.frontier(), Rival("png", 100, 0)):
            name = f"picture-{rival.codec}-{rival.quality}-{rival.px}"
            make = partial(arms.picture_row, rival, self.cloud, self.judge, self.show)
            rows.append(self.keep(name, self.cloud.layout.fingerprint, make))
        return rows

    def sequences(self) -> dict[str, Any]:
        """A fixed camera over time, against video, without the transport's bytes."""
        pairs = {
            name: (self.coded[name], partial(Pair.load, MODELS / name, CLOUD_MODEL, bundle))
            for name, bundle in self.edges.items()
        }
        return sequences.measure(self.args, self.cloud, pairs, self.keep, self.show)

    def presses(self, name: str) -> list[dict[str, Any]]:
        """Tokens chosen by kvpress, at equal budgets; empty if it cannot run (it prints why)."""
        made_for = f"{self.coded[name]} {self.args.press_pictures}"
        try:
            rows: list[dict[str, Any]] = self.keep(
                f"presses-{name}", made_for, partial(self._presses, name)
            )
        except BridgeError as error:
            self.show.say(f"{name}: no presses, {error}")
            return []
        return rows

    def _presses(self, name: str) -> list[dict[str, Any]]:
        vlm = VLM.load(MODELS / name)
        test = TestSet.load("test", min(self.args.press_pictures, self.args.pictures), QUESTIONS)
        judge = arms.Baseline(test, self.judge.native[: len(test.asked)])
        self.show.say(f"{name}: tokens scored by kvpress")
        found = presses.scores(vlm, test.pictures)
        with self.show.stage(f"{name}: prefill", len(test.pictures)) as advance:
            edge = arms.Edge(name, MODELS, self.edges[name], test, advance)
        return presses.rows(edge, judge, found, self.show)

    def tensors(self, name: str) -> dict[str, Any]:
        """Coders of an edge model's raw caches, ours beside the rivals'."""
        missing = not tensors.RIVALS_PYTHON.exists()
        vlm = VLM.load(MODELS / name)
        kept = "tensors-without-rivals" if missing else "tensors"
        made_for = f"{vlm.layout.fingerprint} {self.args.cache_pictures}"
        make = partial(tensors.measure, vlm, self.args, self.show.say)
        found: dict[str, Any] = self.keep(f"{kept}-{name}", made_for, make)
        return found

    def guard(self, name: str) -> dict[str, Any]:
        """The bundle's risk model on test and shifted pictures; empty if it has none."""
        made_for = f"{self.digests[name]} {self.args.guard_pictures}"
        found: dict[str, Any] = self.keep(f"guard-{name}", made_for, partial(self._guard, name))
        return found

    def _guard(self, name: str) -> dict[str, Any]:
        pair = Pair.load(MODELS / name, CLOUD_MODEL, self.edges[name])
        if pair.bundle.encoder.risk is None:
            self.show.say(f"{name}: its bundle holds no risk model, so nothing is guarded")
            return {}
        folder = self.keep.folder / "guard" / guard.made_for(pair)
        return guard.evaluate(pair, self.args.guard_pictures, folder, self.show)

    def controller(self) -> dict[str, Any]:
        """The controller on synthetic traces against every fixed point, of the first edge model."""
        name = next(iter(self.edges))
        rungs, start = controller.ladder(self.edges[name], controller.PICTURES)
        seconds, seeds = self.args.trace_seconds, self.args.seeds
        drawn = [one for seed in range(seeds) for one in controller.traces(seconds, seed)]
        found: dict[str, Any] = self.keep(
            "controller",
            f"{self.coded[name]} {seconds} {seeds} from {start}",
            partial(controller.measure, rungs, start, drawn),
        )
        return {"edge_model": name, "traces_are": "synthetic", **found}

    def speed(self, name: str) -> dict[str, Any]:
        """Frames coded per second on one core, while nothing runs on the other."""
        count = self.args.cache_pictures
        make = partial(codec_speed.of_bundle, MODELS / name, self.edges[name], count, ROUNDS)
        found: dict[str, Any] = self.keep(
            f"speed-{name}", f"{self.coded[name]} {count} undisturbed", make
        )
        return found


def summary(rows: Sequence[dict[str, Any]], cloud_image: float) -> dict[str, Any]:
    """The smallest of each kind within two points of the cloud model seeing the pictures."""
    found: dict[str, Any] = {}
    floor = cloud_image - WITHIN
    for kind, size in (("image", "wire_bytes"), ("image", "bare_bytes")):
        fit = [r for r in rows if r["kind"] == kind and r["accuracy"] >= floor]
        best = min(fit, key=lambda r: r[size], default=None)
        found[f"{kind}_{size}"] = best and {"name": best["name"], size: best[size]}
    for edge in sorted({r["edge_model"] for r in rows if r["kind"] == "ours"}):
        mine = [r for r in rows if r["kind"] == "ours" and r["edge_model"] == edge]
        fit = [r for r in mine if r["accuracy"] >= floor]
        best = min(fit, key=lambda r: r["wire_bytes"], default=None)
        image = found["image_wire_bytes"]
        found[edge] = best and {
            **{k: best[k] for k in ("name", "payload_bytes", "wire_bytes", "accuracy")},
            "image_over_ours": image and round(image["wire_bytes"] / best["wire_bytes"], 2),
        }
    return found


def help_out(bench: Stages) -> int:
    """Do stages that nobody has begun, from the last on; leave the others to the first process."""
    bench.keep.waits = False
    for job in reversed(bench.jobs()):
        with suppress(TakenError):
            job()
    return 0


def run(args: argparse.Namespace) -> int:
    """Every stage, then the tables, `rate.json`, `rate.svg` and `rate.html`."""
    begun, console = time.monotonic(), Console()
    quick_kernels()
    bench = Stages(args, Terminal(console))
    if args.helping:
        return help_out(bench)
    native = bench.judge.native  # all else is compared with this
    helper = _helper(bench) if len(os.sched_getaffinity(0)) > 1 and not args.alone else None
    for job in bench.jobs():
        job()
    if helper is not None:
        helper.wait()
    report = gather(bench, native)
    report["minutes"] = round((time.monotonic() - begun) / 60, 1)
    parts = docs.page(report)
    page = html("Accuracy against bytes", f"`{report['command']}`", parts)
    command.write(report, args.out / "rate.json", page)
    (args.out / "rate.svg").write_text(next(p.svg for p in parts if isinstance(p, Plot)))
    show(parts, console)
    for name, keys in HEADLINES.items():
        if found := report.get(name):
            console.print_json(data={name: {key: found[key] for key in keys} if keys else found})
    return 0


def _helper(bench: Stages) -> subprocess.Popen[bytes]:
    """Start a second process for the second core; its output goes to a log."""
    started = [sys.executable, "-m", "benchmarks.rate", *sys.argv[1:], "--helping"]
    environment = {**os.environ, **ENVIRONMENT}
    with (bench.keep.folder / "helper.log").open("wb") as log:
        return subprocess.Popen(started, stdout=log, stderr=log, env=environment, cwd=command.ROOT)


def gather(bench: Stages, native: Sequence[bool]) -> dict[str, Any]:
    """The report, from the results of all stages."""
    rows = [row for name in bench.edges for row in bench.ours(name)]
    overhead = rows[0]["picture_overhead_bytes"]
    transport = sequences.transport_bytes(overhead)
    rows += [carried(row, overhead) for row in bench.pictures()]
    for name in bench.edges:
        rows += [carried(row, overhead) for row in bench.described(name)]
        rows += [carried(row, transport) for row in bench.presses(name)]
    film = bench.sequences()
    film["sequences"] = [
        carried(row, transport if row["kind"] == "ours" else overhead) for row in film["sequences"]
    ]
    film["sequences_within_two_points"] = sequences.summary(
        film["sequences"], film["sequences_cloud_image"]
    )
    coders = {name: bench.tensors(name) for name in bench.edges}
    guards = {name: found for name in bench.edges if (found := bench.guard(name))}
    speeds = {name: bench.speed(name) for name in bench.edges}  # last, when nothing else runs
    cloud_image = sum(native) / len(native)
    return {
        "command": command.command("rate"),
        "pictures": bench.args.pictures,
        "questions": len(bench.test.asked),
        "bundles": bench.digests,
        "cloud_image": round(cloud_image, 5),
        "rows": rows,
        "within_two_points": summary(rows, cloud_image),
        "per_halving": halvings(rows),
        **film,
        "tensors": coders,
        "cachegen": tensors.headline(coders),
        "guard": guards and {**next(iter(guards.values())), "by_edge_model": guards},
        "controller": bench.controller(),
        "frames_per_second_one_core": min(
            one["frames_per_second_one_core"] for one in speeds.values()
        ),
        "codec_speed": speeds,
        "stages": bench.keep.spent,
        "cpu_minutes": round(sum(s["cpu_seconds"] for s in bench.keep.spent.values()) / 60, 1),
    }


def carried(row: dict[str, Any], transport: float) -> dict[str, Any]:
    """A row with the transport's bytes added to its bytes on the wire."""
    sizes = [key for key in ("wire_bytes", "bytes_per_frame") if key in row]
    return {**row, **{key: round(row[key] + transport, 2) for key in sizes}}


def halvings(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """By edge model, from each low-rate point to the next smaller: points lost per halving."""
    found: dict[str, list[dict[str, float]]] = {}
    for edge in sorted({row["edge_model"] for row in rows if row["kind"] == "ours"}):
        mine = [r for r in rows if r["edge_model"] == edge and r.get("quantizer") == "uniform"]
        mine = sorted((r for r in mine if r["kind"] == "ours"), key=lambda r: -r["payload_bytes"])
        found[edge] = [
            {
                "from_bytes": large["payload_bytes"],
                "to_bytes": small["payload_bytes"],
                "points_lost_per_halving": round(
                    100
                    * (large["accuracy"] - small["accuracy"])
                    / np.log2(large["payload_bytes"] / small["payload_bytes"]),
                    2,
                ),
            }
            for large, small in pairwise(mine)
            if large["payload_bytes"] > small["payload_bytes"]
        ]
    return found


def main() -> int:
    """Command line."""
    parser = command.parser("rate", __doc__)
    parser.add_argument("--edges", nargs="*", help="default: all with a bundle")
    parser.add_argument("--pictures", type=int, default=2048, help="of the test split")
    parser.add_argument("--validation-pictures", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3, help="of what is random")
    parser.add_argument(
        "--byte-frames", type=int, default=256, help="counted at the relay, per row"
    )
    parser.add_argument("--head-pictures", type=int, default=arms.HEAD_PICTURES)
    parser.add_argument("--head-steps", type=int, default=1500)
    parser.add_argument("--press-pictures", type=int, default=256, help="of the test split")
    parser.add_argument("--sequences", type=int, default=24, help="of the test split")
    parser.add_argument("--sequence-frames", type=int, default=64, help="per sequence")
    parser.add_argument("--cache-pictures", type=int, default=63, help="coded as raw caches")
    parser.add_argument("--guard-pictures", type=int, default=512, help="per split")
    parser.add_argument("--trace-seconds", type=int, default=controller.SECONDS)
    parser.add_argument("--alone", action="store_true", help="one process, even with two cores")
    parser.add_argument("--helping", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=command.REPORTS)
    return command.run(parser, run)


if __name__ == "__main__":
    sys.exit(main())
