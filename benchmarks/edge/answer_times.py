"""A narrow link with losses: how soon the answer comes, from our frames and from pictures.

Both arms are the product's agent on the same link, with the same captures, questions and service.
Pictures go as WebP at the cheapest setting within two points of seeing them (docs/rate.md).
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

from benchmarks.edge.device import DeviceJob
from benchmarks.edge.figures import at_most, percentile
from benchmarks.edge.narrow import Shape
from benchmarks.edge.stage import pictures, right, rounds, stage
from benchmarks.edge.stills import FILE
from protos.errors import BridgeError
from reference.demo.testset import TestSet

BITS_PER_S, LOSS = 100_000.0, 0.01
_SET_UP_BITS_PER_S = 10e6
"""Until the device has its encoder: once in its life, a minute at 100 kbit/s."""
PACES = {1.0: 200, 5.0: 400, 15.0: 600}
"""Captures a second, and how many: one camera; a fast one; a link that pictures fill by two thirds.
"""
ARMS: dict[str, dict[str, Any]] = {
    "ours": {"give_up_s": 0.0},
    "picture": {
        "give_up_s": 0.0,
        "point": "picture",
        "picture_codec": FILE.codec,
        "picture_quality": FILE.quality,
        "picture_px": FILE.px,
    },
}


def answer_times(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure; returns the times of each arm at each pace, and `figures`."""
    test = TestSet.load("test", 80, 2)
    found: dict[str, Any] = {}
    figures = []
    with stage(folder, Shape(BITS_PER_S, loss=LOSS)) as at:
        shown = pictures(folder, test)
        for pace, count in PACES.items():
            captures = rounds(test, arrivals(pace, count // 8 if quick else count))
            arms = {}
            for arm, settings in ARMS.items():
                link = at.link.up
                print(f"edge: {arm}, {pace:g} captures a second, {len(captures)}", flush=True)
                chosen = at.settings(f"{arm}-{pace:g}", **settings)
                at.link.shape(_SET_UP_BITS_PER_S)
                with at.device(DeviceJob(chosen, shown, captures)) as device:
                    device.watching()
                    at.link.shape(BITS_PER_S)
                    packets, carried = link.packets, link.carried_bytes
                    device.go()
                    device.wait(captures[-1].at_s + 300)
                answers = device.answers
                if failed := [one for one in answers if one["error"] is not None]:
                    raise BridgeError(f"{arm}: {failed[0]['error']}")
                arms[arm] = _times(answers) | {
                    "right": round(sum(right(test, one) for one in answers) / len(answers), 4),
                    "ip_bytes_up": round((link.carried_bytes - carried) / len(answers), 1),
                    "packets_up": round((link.packets - packets) / len(answers), 2),
                }
            found[f"{pace:g}/s"] = arms
            ratio = arms["ours"]["p95_ms"] / arms["picture"]["p95_ms"]
            name = f"100 kbit/s, 1 % loss, {pace:g} frames/s: p95 time to answer, of pictures' time"
            figures.append(at_most(name, ratio, 0.35, "ratio"))
    return {"arms": found, "picture": FILE.name, "figures": figures}


def arrivals(pace: float, count: int, seed: int = 0) -> list[float]:
    """Times of captures that come at random, so many a second in the mean (Poisson)."""
    rng = random.Random(seed)
    return list(itertools.accumulate(rng.expovariate(pace) for _ in range(count)))


def _times(answers: list[dict[str, Any]]) -> dict[str, float]:
    """From the capture to its answer; from sending; and the service's own part, milliseconds."""
    whole = [1000 * one["took_s"] for one in answers]
    sent = [one["edge_ms"]["uplink"] for one in answers]
    server = [one["server_ms"] for one in answers]
    return {
        "answers": len(answers),
        **{
            f"{name}p{100 * share:.0f}_ms": round(percentile(values, share), 1)
            for name, values in (("", whole), ("sent_", sent), ("server_", server))
            for share in (0.5, 0.95)
        },
    }
