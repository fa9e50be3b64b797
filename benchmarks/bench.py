"""`make bench`: every arm over the full test split, and the picture codecs' frontier.

Which codecs are measured is chosen on validation, never on test.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

from rich.console import Console

from benchmarks.command import REPORTS
from benchmarks.compare.arms import decoded_answers, seeing
from benchmarks.compare.figures import WITHIN
from benchmarks.compare.measure import CODECS, Plan, quiet_libraries
from benchmarks.compare.run import arguments, run
from edge_agent.picture import PictureCodec
from projector.models.vlm import VLM
from projector.validation.estimate import pareto, thin
from reference.demo.terminal import Terminal
from reference.demo.testset import TestSet

TEST_PICTURES = 2048
QUESTIONS = 6
VALIDATION_PICTURES = 256
LATENCY_PICTURES = 256
FRONTIER = 8
SWEEP = "codec-sweep.json"
TTFT_ROUNDS = {1: 200, 16: 40}
QUALITIES = (5, 10, 20, 35, 50, 70, 90)
SIZES_PX = (16, 24, 32, 48, 64, 96, 144)


def sweep(cloud: VLM, test: TestSet, terminal: Terminal) -> tuple[float, list[dict[str, Any]]]:
    """Accuracy and size of JPEG and WebP at every quality and size, on validation pictures.

    Returns:
        The accuracy from the pictures themselves, and one row per codec with `codec`, `quality`,
        `size_px`, `bytes` (of the file, mean) and `accuracy`.
    """
    codecs = [
        PictureCodec(codec, quality, px)
        for codec, quality, px in product(("jpeg", "webp"), QUALITIES, SIZES_PX)
    ]
    with terminal.stage("validation: the pictures themselves", len(test.asked)) as advance:
        right = test.right(seeing(cloud, test.pictures, test.asked, advance))
    reference = sum(right) / len(right)
    rows = []
    with terminal.stage("validation: JPEG and WebP", len(codecs)) as advance:
        for codec in codecs:
            files = [codec.encode(picture) for picture in test.pictures]
            right = test.right(decoded_answers(cloud, files, test.asked, lambda _: None))
            rows.append(
                {
                    "codec": codec.codec,
                    "quality": codec.quality,
                    "size_px": codec.longest_px,
                    "bytes": round(sum(map(len, files)) / len(files), 1),
                    "accuracy": round(sum(right) / len(right), 5),
                }
            )
            advance(1)
    return reference, rows


def frontier(rows: Sequence[dict[str, Any]], reference: float, most: int) -> list[PictureCodec]:
    """The codecs worth measuring on test: at most `most`, some of them near the limit `WITHIN`."""
    chosen = thin(rows, pareto(rows), most, reference - WITHIN)
    return [PictureCodec(rows[i]["codec"], rows[i]["quality"], rows[i]["size_px"]) for i in chosen]


def choose(given: argparse.Namespace, terminal: Terminal) -> tuple[PictureCodec, ...]:
    """Sweep the codecs on validation; a sweep of the same model and pictures is used again."""
    quiet_libraries()
    given.out.mkdir(parents=True, exist_ok=True)
    cloud = VLM.load(given.cloud)
    made_for = {"pictures": given.validation_pictures, "cloud": cloud.layout.fingerprint}
    file = given.out / SWEEP
    swept = json.loads(file.read_text()) if file.exists() else {}
    if swept.get("made_for") == made_for:
        terminal.say(f"picture codecs: the sweep in {file} is of this model and these pictures")
    else:
        terminal.say(f"picture codecs on {given.validation_pictures} validation pictures")
        test = TestSet.load("validation", given.validation_pictures, QUESTIONS)
        reference, rows = sweep(cloud, test, terminal)
        swept = {"made_for": made_for, "reference": round(reference, 5), "codecs": rows}
        file.write_text(json.dumps(swept, indent=1) + "\n")
    chosen = frontier(swept["codecs"], swept["reference"], FRONTIER)
    names = ", ".join(f"{c.codec} q{c.quality} {c.longest_px} px" for c in chosen)
    terminal.say(f"the frontier: {names}")
    return tuple(chosen)


def main() -> int:
    """Command line."""
    parser = arguments(
        "Every arm over the full test split, and the picture codecs' frontier.",
        REPORTS,
        TEST_PICTURES,
    )
    parser.add_argument(
        "--validation-pictures", type=int, default=VALIDATION_PICTURES, help="default: %(default)s"
    )
    parser.add_argument(
        "--sweep-only", action="store_true", help="only the picture codecs, on validation"
    )
    given = parser.parse_args()
    terminal = Terminal(Console())
    swept = choose(given, terminal)
    if given.sweep_only:
        return 0
    plan = Plan(
        out=given.out,
        pictures=given.pictures,
        questions=QUESTIONS,
        latency_pictures=min(LATENCY_PICTURES, given.pictures),
        codecs=CODECS[:1],
        swept_codecs=tuple(codec for codec in swept if codec not in CODECS[:1]),
        ttft_rounds=TTFT_ROUNDS,
        edge=given.edge,
        cloud=given.cloud,
        bundle=given.bundle,
    )
    return run(plan, terminal)


if __name__ == "__main__":
    sys.exit(main())
