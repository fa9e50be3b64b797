"""`make bench-rate`: one table and one plot of accuracy against bytes.

Knows the stages and keeps what each has found, so that an interrupted run goes on. Choices (which
picture codecs) are made on validation; everything in the table is measured on test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.rate import arms, page, presses, sequences, tensors
from benchmarks.rate.pictures import RIVALS, Rival, sweep
from deploy.arms import Pair, seeing
from deploy.demo import Terminal
from deploy.figures import WITHIN
from deploy.measure import (
    CLOUD_MODEL,
    EDGE_MODEL,
    ENVIRONMENT,
    ROOT,
    SERVER_START_S,
    Plan,
    quiet_libraries,
    threads,
)
from deploy.processes import Child, ChildError
from deploy.relay import Relay
from deploy.testset import TestSet
from deploy.wire import Service, Shot
from edge_agent.picture import PictureCodec
from projector.estimate import pareto, thin
from projector.vlm import VLM
from protos.errors import BridgeError

QUESTIONS = 6
FRONTIER = 12
MODELS, BUNDLES = EDGE_MODEL.parent, ROOT / "reference" / "bundles"


class Bench:
    """One run: what was asked for, what has been found."""

    def __init__(self, args: argparse.Namespace, terminal: Terminal) -> None:
        """Loads the large model and the test pictures."""
        self.args, self.show = args, terminal
        self.kept = args.out / "rate"
        self.kept.mkdir(parents=True, exist_ok=True)
        quiet_libraries()
        self.cloud = VLM.load(CLOUD_MODEL)
        self.test = TestSet.load("test", args.pictures, QUESTIONS)
        self.edges = [
            path.name
            for path in sorted(MODELS.glob("edge-*"))
            if (BUNDLES / f"{path.name}-cloud").is_dir() and path.name in (args.edges or path.name)
        ]
        native = self.stage("native", self.cloud.layout.fingerprint, self._native)
        self.judge = arms.Judge(self.test, native)

    def stage(self, name: str, made_for: str, make: Callable[[], Any]) -> Any:
        """What `make` finds, or found before for the same models, bundle and pictures."""
        key = hashlib.sha256(f"{made_for} {self.args.pictures}".encode()).hexdigest()[:16]
        path = self.kept / f"{name}-{key}.json"
        if path.exists():
            self.show.say(f"{name}: found by an earlier run, {path}")
            return json.loads(path.read_text())
        found = make()
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(found))
        draft.replace(path)
        return found

    def _native(self) -> list[bool]:
        with self.show.stage("the pictures themselves", len(self.test.asked)) as advance:
            return self.test.right(seeing(self.cloud, self.test.pictures, self.test.asked, advance))

    def frontier(self) -> list[Rival]:
        """Picture codecs worth measuring: chosen on validation."""
        swept = self.stage("sweep", f"{self.cloud.layout.fingerprint} {len(RIVALS)}", self._sweep)
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

    def ours(self, name: str) -> list[dict[str, Any]]:
        """Every operating point of one edge model, and what is read off the same states."""
        bundle = BUNDLES / f"{name}-cloud"
        made_for = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
        rows: list[dict[str, Any]] = self.stage(
            f"ours-{name}", made_for, lambda: self._ours(name, bundle)
        )
        return rows

    def _ours(self, name: str, bundle: Path) -> list[dict[str, Any]]:
        arguments = [
            *("cloud_server", "serve", "--model", str(CLOUD_MODEL), "--bundles", str(bundle)),
            *("--port", "0", "--metrics-port", "0", "--threads", str(threads())),
        ]
        with self.show.stage(f"{name}: prefill", len(self.test.pictures)) as advance:
            edge = arms.Edge(name, MODELS, bundle, self.test, advance)
        log = self.kept / f"cloud-server-{name}.log"
        with Child("cloud-server", arguments, log, ENVIRONMENT) as server:
            ready = server.ready(SERVER_START_S)
            with (
                Relay(f"127.0.0.1:{ready['port']}") as relay,
                Service(
                    relay.address,
                    edge.pair.edge.layout,
                    self.kept / "state" / str(time.time_ns()),
                ) as service,
            ):
                plan = Plan(out=self.kept, byte_frames=self.args.byte_frames)
                wire = arms.counter(plan, edge.pair, self.test, relay, service, self.show)
                rows = arms.ours(edge, self.judge, wire, self.show)
                webp = PictureCodec("webp", 50, 48)
                pictures = [Shot.of_picture(webp.encode(p)) for p in self.test.pictures]
                counted = wire(pictures)
        overhead = counted["mean"] - counted["payload_mean"]
        self.show.say(f"{name}: heads that read lists of things off its states")
        rows += arms.described(edge, self.judge, overhead, self.args)
        with self.show.stage(f"{name}: its own answers", len(self.test.asked)) as advance:
            answers = edge.pair.edge_only(self.test, advance)
        rows.append(
            self.judge.row(
                "edge alone", "control", answers, edge_model=name, payload_bytes=0, wire_bytes=0
            )
        )
        for row in rows:
            row["picture_overhead_bytes"] = round(overhead, 2)
        return rows

    def pictures(self, overhead: float) -> list[dict[str, Any]]:
        """The frontier on test, and PNG."""
        rows = []
        for rival in (*self.frontier(), Rival("png", 100, 0)):
            made_for = f"{self.cloud.layout.fingerprint} {overhead}"
            name = f"picture-{rival.codec}-{rival.quality}-{rival.px}"
            rows.append(
                self.stage(
                    name,
                    made_for,
                    partial(arms.picture_row, rival, self.cloud, self.judge, overhead, self.show),
                )
            )
        return rows

    def sequences(self, overhead: float) -> dict[str, Any]:
        """A fixed camera over time, against video."""
        pairs = {}
        for name in self.edges:
            bundle = BUNDLES / f"{name}-cloud"
            digest = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
            pairs[name] = (digest, partial(Pair.load, MODELS / name, CLOUD_MODEL, bundle))
        return sequences.measure(self.args, self.cloud, pairs, overhead, self.stage, self.show)

    def presses(self, overhead: float) -> list[dict[str, Any]]:
        """Tokens chosen by kvpress, at equal budgets; none, and why, where it cannot run."""
        rows: list[dict[str, Any]] = []
        for name in self.edges:
            bundle = BUNDLES / f"{name}-cloud"
            digest = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
            make = partial(self._presses, name, bundle, sequences.transport_bytes(overhead))
            try:
                rows += self.stage(f"presses-{name}", f"{digest} {overhead}", make)
            except BridgeError as error:
                self.show.say(f"{name}: no presses, {error}")
        return rows

    def _presses(self, name: str, bundle: Path, transport: float) -> list[dict[str, Any]]:
        vlm = VLM.load(MODELS / name)
        self.show.say(f"{name}: tokens scored by kvpress")
        found = presses.scores(vlm, self.test.pictures)
        with self.show.stage(f"{name}: prefill", len(self.test.pictures)) as advance:
            edge = arms.Edge(name, MODELS, bundle, self.test, advance)
        return presses.rows(edge, self.judge, found, transport, self.show)

    def tensors(self) -> dict[str, Any]:
        """Coders of the raw caches of each edge model, ours beside the rivals'."""
        missing = not tensors.RIVALS_PYTHON.exists()
        found = {}
        for name in self.edges:
            vlm = VLM.load(MODELS / name)
            self.show.say(f"{name}: coders of its raw caches")
            make = partial(tensors.measure, vlm, self.args, self.show.say)
            kept = "tensors-without-rivals" if missing else "tensors"
            made_for = f"{vlm.layout.fingerprint} {self.args.cache_pictures}"
            found[name] = self.stage(f"{kept}-{name}", made_for, make)
        return {"tensors": found, "cachegen": tensors.headline(found)}


def summary(rows: Sequence[dict[str, Any]], cloud_image: float) -> dict[str, Any]:
    """The smallest of each kind within two points of the large model seeing the pictures."""
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


def run(args: argparse.Namespace, console: Console) -> int:
    """Every stage, then the table, `rate.json` and `rate.html`."""
    begun = time.monotonic()
    bench = Bench(args, Terminal(console))
    rows: list[dict[str, Any]] = []
    for name in bench.edges:
        rows += bench.ours(name)
    if not rows:
        raise BridgeError(f"no edge model with a bundle under {MODELS} and {BUNDLES}")
    overhead = rows[0]["picture_overhead_bytes"]
    rows += bench.pictures(overhead) + bench.presses(overhead)
    native = sum(bench.judge.native) / len(bench.judge.native)
    report = {
        "command": "python -m benchmarks.rate " + " ".join(sys.argv[1:]),
        "pictures": args.pictures,
        "questions": len(bench.test.asked),
        "cloud_image": round(native, 5),
        "rows": rows,
        "within_two_points": summary(rows, native),
        **bench.sequences(overhead),
        **bench.tensors(),
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }
    (args.out / "rate.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "rate.html").write_text(page.render(report))
    page.show(report, console)
    console.print(f"wrote {args.out / 'rate.json'} and rate.html")
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate", description=__doc__)
    parser.add_argument("--edges", nargs="*", help="default: all that have a bundle")
    parser.add_argument("--pictures", type=int, default=2048, help="of the test split")
    parser.add_argument("--validation-pictures", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3, help="of what is random")
    parser.add_argument(
        "--byte-frames", type=int, default=256, help="counted at the relay, per row"
    )
    parser.add_argument("--head-pictures", type=int, default=arms.HEAD_PICTURES)
    parser.add_argument("--head-steps", type=int, default=1500)
    parser.add_argument("--sequences", type=int, default=48, help="of the test split")
    parser.add_argument("--sequence-frames", type=int, default=64, help="of each sequence")
    parser.add_argument("--cache-pictures", type=int, default=63, help="coded as raw caches")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    args = parser.parse_args()
    try:
        return run(args, Console())
    except (BridgeError, ChildError) as error:
        print(f"bench-rate: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)


if __name__ == "__main__":
    sys.exit(main())
