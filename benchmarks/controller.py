"""The controller over bandwidth traces, against every fixed operating point.

`python -m benchmarks.controller` runs the agent's own `PointController` with a simulated clock: a
camera, a first-in first-out uplink of changing rate, a server of constant time. The traces are
**synthetic** (made here from seeds, shaped like published 4G and 5G uplinks), unless `--trace`
names recorded ones in Mahimahi's format (Winstein et al., 2013): each line is the millisecond at
which one packet of 1,500 bytes could leave. A frame answered after the objective counts as wrong;
one answered in time counts by its point's measured accuracy.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from rich.console import Console
from tqdm import tqdm

from benchmarks import command
from edge_agent.picture import PictureCodec
from edge_agent.uplink.point_controller import PointController, Rung
from projector.bundle.load import Bundle
from protos.errors import ConfigError
from reference.demo.halves import BUNDLE
from reference.demo.testset import TestSet
from reference.report.parts import Table, percent, show
from reference.report.plot import CLOUD, OURS, QUIET, plot

STEP_S = 0.1
FRAMES_PER_S = 10.0
SERVER_S = 0.03
OBJECTIVE_S = 0.5
IN_FLIGHT = 8
SECONDS = 300
PICTURES = 64
PICTURE = "picture"
PACKET_BYTES = 1500
RECORDED_RTT_S = 0.06
LONGEST_TRACE_S = 24 * 3600
FRAMING_BYTES = 42.0
"""Bytes of a picture on the wire beside the file (docs/log.md, "half of the framing")."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """An uplink over time, in steps of `STEP_S`.

    Attributes:
        name: for tables.
        bytes_per_s: `[steps]`, rate; 0 while it is down.
        rtt_s: `[steps]`, round-trip time without queueing.
    """

    name: str
    bytes_per_s: Doubles
    rtt_s: Doubles


@dataclass(frozen=True)
class Run:
    """Figures of one arm on one trace.

    Attributes:
        score: mean accuracy over all frames; a frame that was late or never sent counts 0.
        late_share: share of frames that were late.
        bytes_per_frame: mean over the frames sent.
        switches: number of changes of the point.
    """

    score: float
    late_share: float
    bytes_per_frame: float
    switches: int


def traces(seconds: int, seed: int) -> list[Trace]:
    """The synthetic traces; rates are a camera's share of the uplink.

    `steps`: plateaus from 0.6 to 60 kB/s. `4g`, `5g`: log-normal rates that wander (AR(1), a
    correlation time of some seconds), 4g with shadowing down to a few kB/s, 5g fast with blockages
    of one to four seconds at a thousandth of the rate. `narrow`: about 2 kB/s, as LTE-M or a shared
    radio link. `outage`: 4g, down for 3 to 20 seconds about every minute.
    """
    rng = np.random.default_rng(seed)
    count = round(seconds / STEP_S)
    kilo = 1000.0

    def wander(mean: float, sigma: float, seconds_kept: float) -> Doubles:
        keep = np.exp(-STEP_S / seconds_kept)
        noise = rng.normal(0.0, sigma * np.sqrt(1 - keep**2), count)
        log = np.empty(count)
        log[0] = rng.normal(0.0, sigma)
        for i in range(1, count):
            log[i] = keep * log[i - 1] + noise[i]
        return mean * np.exp(log)

    def gaps(every_s: float, low_s: float, high_s: float) -> npt.NDArray[np.bool_]:
        down = np.zeros(count, dtype=np.bool_)
        at = rng.exponential(every_s)
        while at < seconds:
            length = rng.uniform(low_s, high_s)
            down[round(at / STEP_S) : round((at + length) / STEP_S)] = True
            at += length + rng.exponential(every_s)
        return down

    def rtt(mean_s: float) -> Doubles:
        return mean_s * np.exp(rng.normal(0.0, 0.25, count))

    plateaus = np.array([60.0, 6.0, 1.2, 0.6, 2.5, 30.0, 1.0, 60.0]) * kilo
    steps = np.repeat(plateaus, -(-count // len(plateaus)))[:count]
    lte, fast = wander(60 * kilo, 1.3, 8.0), wander(800 * kilo, 0.7, 4.0)
    blocked = gaps(15.0, 1.0, 4.0)
    cut = wander(60 * kilo, 1.0, 8.0) * ~gaps(60.0, 3.0, 20.0)
    return [
        Trace("steps", steps, rtt(0.06)),
        Trace("4g", lte, rtt(0.06)),
        Trace("5g", np.where(blocked, fast / 1000, fast), rtt(0.02)),
        Trace("narrow", wander(2 * kilo, 0.5, 10.0), rtt(0.12)),
        Trace("outage", cut, rtt(0.06)),
    ]


def recorded(path: Path, share: float, seconds: int) -> list[Trace]:
    """A recorded uplink, cut into pieces; a rest shorter than half a piece is left out.

    A recording holds no round-trip times: `RECORDED_RTT_S` is used.

    Args:
        path: a text file; each line is when one packet could leave, in ms, never falling.
        share: the camera's share of the recorded rate, above 0 and at most 1.
        seconds: length of a piece; a shorter recording is one piece.

    Raises:
        ConfigError: the file holds no such times.
    """
    try:
        times = np.array(path.read_text().split(), dtype=np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{path} is no recorded trace: {error}") from error
    if not times.size or times[0] < 0 or (np.diff(times) < 0).any():
        raise ConfigError(f"{path} is no recorded trace: times are missing, negative or falling")
    if times[-1] > LONGEST_TRACE_S * 1000:
        raise ConfigError(f"{path} lasts longer than a day: cut it")
    packets = np.bincount((times / (1000 * STEP_S)).astype(np.int64))
    rate = share * PACKET_BYTES / STEP_S * packets.astype(np.float64)
    piece = round(seconds / STEP_S)
    pieces = max(1, (len(rate) + piece // 2) // piece)
    cuts = [rate[i * piece : (i + 1) * piece] for i in range(pieces)]
    return [Trace(path.stem, cut, np.full(len(cut), RECORDED_RTT_S)) for cut in cuts]


def simulate(trace: Trace, rungs: Sequence[Rung], fixed: str | None = None, start: str = "") -> Run:
    """Simulate one camera over one trace; `fixed` names the point, None: the controller chooses.

    It begins on `start`, as an agent begins on the point that the server advises. As in the agent,
    a frame waits until a request ends if `IN_FLIGHT` are on their way, or if it would queue behind
    others (with a fixed point too). Frames that the camera takes meanwhile are never sent.
    """
    by_name = {rung.name: rung for rung in rungs}
    offered = [rung for rung in rungs if rung.name != PICTURE]  # as `Session.rungs`
    highest = max(offered, key=lambda r: r.wire_bytes).name
    now = 0.0
    budget = PointController(OBJECTIVE_S, clock=lambda: now)
    edges = np.arange(len(trace.rtt_s) + 1) * STEP_S
    carried = np.concatenate([[0.0], np.cumsum(trace.bytes_per_s * STEP_S)])
    flying: list[tuple[float, int]] = []
    scores = np.zeros(round(edges[-1] * FRAMES_PER_S))
    free_at, sizes, waiting = 0.0, [], -1

    def send(number: int) -> bool:
        nonlocal free_at
        if len(flying) >= IN_FLIGHT or not budget.may_send(offered):
            return False
        rung = by_name[fixed or budget.choose(offered, highest, start)]
        leaves = max(now, free_at)
        due = float(np.interp(leaves, edges, carried)) + rung.wire_bytes
        step = int(np.searchsorted(carried, due))
        if step < len(carried):
            before = carried[step - 1]
            share = (due - before) / (carried[step] - before)
            free_at = float(edges[step - 1] + share * STEP_S)
        else:
            free_at = float("inf")
        rtt_s = float(trace.rtt_s[min(int(min(free_at, edges[-1]) / STEP_S), len(trace.rtt_s) - 1)])
        ended = free_at + rtt_s + SERVER_S
        budget.sent(number, round(rung.wire_bytes))
        heapq.heappush(flying, (ended, number))
        if ended - number / FRAMES_PER_S <= OBJECTIVE_S:
            scores[number] = rung.accuracy
        sizes.append(rung.wire_bytes)
        return True

    for number in range(len(scores)):
        while flying and flying[0][0] <= number / FRAMES_PER_S:
            now, key = heapq.heappop(flying)
            budget.ended(key, SERVER_S)
            if waiting >= 0 and send(waiting):
                waiting = -1
        now = number / FRAMES_PER_S
        if waiting < 0 and not send(number):
            waiting = number
    return Run(
        score=round(float(scores.mean()), 4),
        late_share=round(float((scores == 0).mean()), 4),
        bytes_per_frame=round(float(np.mean(sizes)), 1),
        switches=budget.switches,
    )


def ladder(bundle: Path, pictures: int) -> tuple[list[Rung], str]:
    """The bundle's latent points as calibration measured them (on validation), and the picture.

    The picture's bytes are those of WebP at quality 80; its accuracy is the calibration's for the
    picture itself. That flatters the picture point a little, in every arm.

    Args:
        bundle: a bundle's folder.
        pictures: number of validation pictures whose WebP size is measured.

    Returns:
        The rungs, and the name of the bundle's default point.

    Raises:
        ConfigError: the bundle's points were never measured.
    """
    info = Bundle.peek(bundle)
    certificate = json.loads((bundle / "certificate.json").read_text())
    rungs = [
        Rung(
            p.name,
            p.measured.wire_bytes,
            p.measured.accuracy,
            hypot(p.measured.quantize, p.measured.dropped_attention),
        )
        for p in info.points
        if p.kind == "latent" and p.measured is not None
    ]
    if not rungs:
        raise ConfigError(f"{bundle}: no measured ladder; `projector calibrate` makes one")
    seen = TestSet.load("validation", pictures, 1).pictures
    file_bytes = float(np.mean([len(PictureCodec().encode(picture)) for picture in seen]))
    seeing = certificate["controls"]["cloud_image"]
    default = next(point.name for point in info.points if point.index == info.default_point)
    return [*rungs, Rung(PICTURE, file_bytes + FRAMING_BYTES, seeing, 0.0)], default


def measure(rungs: Sequence[Rung], start: str, drawn: Iterable[Trace]) -> dict[str, Any]:
    """Every arm on every trace; the controller begins on `start`.

    Returns:
        `adaptive` and `best_fixed` (mean score over the kinds of trace; the fixed point is chosen
        with hindsight, on these traces), `best_fixed_point`, and `traces`: by kind and arm, mean
        figures over the traces of that kind.
    """
    arms: list[str | None] = [None, *(rung.name for rung in rungs)]
    found: dict[str, dict[str, list[Run]]] = {}
    for trace in drawn:
        rows = found.setdefault(trace.name, {})
        for arm in arms:
            rows.setdefault(arm or "adaptive", []).append(simulate(trace, rungs, arm, start))
    by_trace = {
        name: {
            arm: {
                key: round(float(np.mean([asdict(r)[key] for r in runs])), 4)
                for key in Run.__dataclass_fields__
            }
            for arm, runs in rows.items()
        }
        for name, rows in found.items()
    }
    means = {
        arm: float(np.mean([rows[arm]["score"] for rows in by_trace.values()]))
        for arm in next(iter(by_trace.values()))
    }
    best = max((rung.name for rung in rungs), key=lambda name: means[name])
    return {
        "adaptive": round(means["adaptive"], 4),
        "best_fixed": round(means[best], 4),
        "best_fixed_point": best,
        "best_fixed_per_trace": round(
            float(np.mean([max(r[g.name]["score"] for g in rungs) for r in by_trace.values()])), 4
        ),
        "mean_score": {arm: round(score, 4) for arm, score in means.items()},
        "traces": by_trace,
    }


def drawn(report: dict[str, Any]) -> str:
    """Every arm's score on every trace, as SVG."""
    names = list(report["traces"])

    def draw(axes: Axes) -> None:
        for arm in report["mean_score"]:
            ours, best = arm == "adaptive", arm == report["best_fixed_point"]
            colour = OURS if ours else CLOUD if best else QUIET
            scores = [100 * report["traces"][name][arm]["score"] for name in names]
            label = "the controller" if ours else f"fixed: {arm}"
            size = 9 if ours else 6
            axes.plot(names, scores, "D" if ours else "o", color=colour, markersize=size)
            axes.annotate(
                label, (names[-1], scores[-1]), fontsize=7, color=colour, xytext=(9, -2),
                textcoords="offset points",
            )  # fmt: skip
        axes.set_ylabel(f"right within {OBJECTIVE_S:g} s, % of frames")
        axes.set_xlabel(f"trace ({report['traces_are'].split(',')[0]})")
        axes.margins(x=0.12)

    return plot("controller", draw, height=3.6)


def table(report: dict[str, Any]) -> Table:
    """The scores."""
    rows = []
    for arm, mean in report["mean_score"].items():
        scores = (each[arm]["score"] for each in report["traces"].values())
        rows.append((arm, *map(percent, scores), percent(mean)))
    heads = ("arm", *(f"#{name}" for name in report["traces"]), "#mean")
    return Table(f"Right within {OBJECTIVE_S:g} s, % of all frames", heads, rows)


def _above_zero(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def _share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share above 0 and at most 1")
    return value


def main() -> int:
    """Command line."""
    parser = command.parser("controller", __doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="default: the reference")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="measured as WebP")
    parser.add_argument("--seconds", type=_above_zero, default=SECONDS, help="length of a trace")
    parser.add_argument("--seeds", type=_above_zero, default=5, help="draws of every trace")
    parser.add_argument(
        "--trace", type=Path, nargs="+", help="recorded uplinks, in Mahimahi's format"
    )
    parser.add_argument(
        "--share", type=_share, default=1.0, help="the camera's share of a recorded uplink"
    )
    parser.add_argument("--out", type=Path, default=command.REPORTS / "controller.json")
    return command.run(parser, bench)


def bench(given: argparse.Namespace) -> int:
    """Simulate, write, print."""
    rungs, start = ladder(given.bundle, given.pictures)
    drawn_traces = (
        [one for path in given.trace for one in recorded(path, given.share, given.seconds)]
        if given.trace
        else [one for seed in range(given.seeds) for one in traces(given.seconds, seed)]
    )
    report = {
        "command": command.command("controller"),
        "traces_are": (
            f"recorded, {100 * given.share:g} % of the uplink"
            if given.trace
            else "synthetic, made from seeds; none was recorded"
        ),
        "objective_s": OBJECTIVE_S,
        "frames_per_s": FRAMES_PER_S,
        "rungs": [asdict(rung) for rung in rungs],
        "start": start,
        **measure(rungs, start, tqdm(drawn_traces, desc="traces", unit="trace")),
    }
    show([table(report)], Console())
    command.write(report, given.out)
    given.out.with_suffix(".svg").write_text(drawn(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
