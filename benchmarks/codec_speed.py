"""How many frames per second one core encodes and decodes.

Edge: everything after the prefill (select, project, quantize, measure, code, header, seal,
serialize). Cloud: parse, verify, header, decode. The entropy coder alone is compared with
constriction (native code) on the same symbols and probabilities. Each time is the best of several
rounds on one thread, in CPU time. `--cameras` also measures what delta frames save.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from tqdm import tqdm

from benchmarks import command
from benchmarks.compare.measure import quiet_libraries
from benchmarks.timing import least_seconds
from edge_agent.encode import encode_state
from edge_agent.frame import Frame
from edge_agent.plan import Plan
from edge_agent.sources import open_source
from edge_agent.uplink.session import Base
from projector.bundle.load import Bundle
from projector.codec.encoder import Encoder
from projector.models.vlm import VLM
from protos.digest import CONSTANTS_BYTES, verify
from protos.distortion import Distortion
from protos.entropy.rans import TOTAL, ClassCoder
from protos.errors import ConfigError
from protos.header import Header, pack_header
from protos.points import OperatingPoint
from protos.quantize import UniformQuantizer
from protos.requests import parse_infer_request, seal
from protos.state import KVState
from reference.demo.halves import BUNDLE, EDGE_MODEL
from reference.demo.testset import TestSet
from reference.report.parts import Table, show

CONSTANTS = bytes(CONSTANTS_BYTES)


def ways(
    encoder: Encoder, point: OperatingPoint, states: Sequence[KVState]
) -> tuple[dict[str, Any], tuple[Callable[[], object], Callable[[], object]]]:
    """An operating point's sizes, and the two timed calls: encode all states, decode all frames.

    Returns:
        `point`, `payload_bytes`, `request_bytes`; the two calls.
    """
    plan = Plan()
    sizes: list[int] = []

    def there(number: int, state: KVState) -> bytes:
        coded = encode_state(state, encoder, point, plan)
        sizes.append(len(coded.payload))
        header = Header(point.index, number, coded.kept, 33, coded.distortion or Distortion())
        request = seal(CONSTANTS, b"", *pack_header(header, coded.payload))
        return bytes(request.SerializeToString())

    def back(raw: bytes) -> npt.NDArray[np.float32]:
        request, header, body = parse_infer_request(raw)
        verify(request, CONSTANTS)
        return encoder.decode(body, header.kept, point)

    requests = [there(number, state) for number, state in enumerate(states)]
    row = {
        "point": point.name,
        "payload_bytes": round(float(np.mean(sizes)), 1),
        "request_bytes": round(float(np.mean([len(raw) for raw in requests])), 1),
    }
    return row, (over(there, range(len(states)), states), over(back, requests))


def over(run: Callable[..., object], *arguments: Sequence[Any]) -> Callable[[], object]:
    """One call that makes a call per element of the sequences, which are read in step."""
    return lambda: [run(*some) for some in zip(*arguments, strict=True)]


def speeds(frames: int, there: float, back: float) -> dict[str, int]:
    """Frames per second, from the seconds that all frames took."""
    return {
        "encoded_per_second": round(frames / there),
        "decoded_per_second": round(frames / back),
    }


def measure_coder(
    encoder: Encoder, point: OperatingPoint, states: Sequence[KVState], rounds: int
) -> dict[str, Any]:
    """The entropy coder of a `uniform` point against constriction's ANS coder.

    Both code classes and symbols of every frame's whole grid, rounded without a dead zone. The
    rival gets its probability models looked up beforehand, in decoding too; our coder has to read
    each token's class first.

    Returns:
        `point`, `symbols` (per frame, without classes), and for `ours` and `constriction` each
        `bytes`, `encoded_per_second`, `decoded_per_second` (frames).
    """
    quantizer = encoder.quantizer(point)
    if not isinstance(quantizer, UniformQuantizer):
        raise TypeError(f"point '{point.name}' codes no symbols")
    tables, steps = quantizer.tables, encoder.steps_of(point)
    centre = encoder.centre[:, : len(steps)]
    coder = ClassCoder(tables.frequency, tables.prior)
    ours, theirs = [], []
    for state in states:
        moved = encoder.project(state.flat())[:, : len(steps)] - centre
        classes, symbols, _ = tables.classify(np.rint(moved / steps).astype(np.int64))
        escaped = np.zeros(int((symbols == tables.escape).sum()), dtype=np.int64)
        ours.append((classes, symbols, escaped))
        p = tables.frequency[classes].reshape(-1, tables.escape + 1) / TOTAL
        theirs.append((classes.astype(np.int32), symbols.reshape(-1).astype(np.int32), p))
    family = constriction.stream.model.Categorical(perfect=True)
    # constriction refuses a table of one symbol: add one that never occurs.
    prior = constriction.stream.model.Categorical(np.append(tables.prior, 0) / TOTAL, perfect=True)

    def their_stream(classes: Any, symbols: Any, p: npt.NDArray[np.float64]) -> Any:
        ans = constriction.stream.stack.AnsCoder()
        ans.encode_reverse(symbols, family, p)
        ans.encode_reverse(classes, prior)
        return ans.get_compressed()

    def their_symbols(words: Any, tokens: int, p: npt.NDArray[np.float64]) -> Any:
        ans = constriction.stream.stack.AnsCoder(words)
        return ans.decode(prior, tokens), ans.decode(family, p)

    streams = [coder.encode(*frame) for frame in ours]
    words = [their_stream(*frame) for frame in theirs]
    tokens = [len(classes) for classes, _, _ in ours]
    probabilities = [p for *_, p in theirs]
    calls = (
        over(coder.encode, *zip(*ours, strict=True)),
        over(coder.decode, streams, tokens),
        over(their_stream, *zip(*theirs, strict=True)),
        over(their_symbols, words, tokens, probabilities),
    )
    spent = least_seconds(rounds, calls, "entropy coders")
    frames = len(states)
    totals = {"ours": sum(map(len, streams)), "constriction": 4 * sum(map(len, words))}
    return {
        "point": point.name,
        "symbols": int(sum(symbols.size for _, symbols, _ in ours) / frames),
        **{
            name: {"bytes": round(total / frames, 1), **speeds(frames, *both)}
            for (name, total), both in zip(totals.items(), (spent[:2], spent[2:]), strict=True)
        },
    }


def measure_deltas(
    encoder: Encoder, point: OperatingPoint, cameras: Sequence[Sequence[KVState]]
) -> dict[str, Any]:
    """Sizes of delta frames of fixed cameras, each a delta to the frame before it.

    Returns:
        `point`, `key_bytes` (if every frame is a key frame), `bytes`, `key_frames` among all
        `frames`, `tokens` of a delta, share of `differences`, and the latents' error, `key_error`
        and `error`. Bytes (header and payload), tokens and errors are means.
    """
    plan = Plan()
    keys: list[Frame] = []
    sent: list[Frame] = []
    for states in cameras:
        base = None
        for number, state in enumerate(states):
            keys.append(encode_state(state, encoder, point, plan))
            sent.append(encode_state(state, encoder, point, plan, base=base))
            if (held := sent[-1].held) is not None:
                base = Base(number, held)

    def size(coded: Frame) -> int:
        number = 100
        base = number - 1 if coded.base is not None else None
        measured = coded.distortion or Distortion()
        header = Header(point.index, number, coded.kept, 33, measured, base, coded.differences)
        return sum(map(len, pack_header(header, coded.payload)))

    def error(frames: Sequence[Frame]) -> float:
        return round(float(np.mean([f.distortion.quantize for f in frames if f.distortion])), 3)

    deltas = [coded for coded in sent if coded.base is not None]
    return {
        "point": point.name,
        "frames": len(sent),
        "key_frames": len(sent) - len(deltas),
        "key_bytes": round(float(np.mean([size(coded) for coded in keys])), 1),
        "bytes": round(float(np.mean([size(coded) for coded in sent])), 1),
        "tokens": round(float(np.mean([coded.kept.sum() for coded in deltas] or [0])), 2),
        "differences": round(float(np.mean([int(c.differences) for c in deltas] or [0])), 2),
        "key_error": error(keys),
        "error": error(sent),
    }


def measure(
    encoder: Encoder, default_point: int, states: Sequence[KVState], rounds: int = 10
) -> dict[str, Any]:
    """Every operating point except the picture point, and the coder at the default point.

    Returns:
        `machine`, `frames`, `default_point`, `frames_per_second_one_core` (edge side, default
        point), `points[]`, `coder`.
    """
    points = [point for point in encoder.points if point.kind != "picture"]
    made = [ways(encoder, point, states) for point in points]
    spent = least_seconds(rounds, [call for _, both in made for call in both], "operating points")
    rows = [row | speeds(len(states), *spent[2 * i : 2 * i + 2]) for i, (row, _) in enumerate(made)]
    default = encoder.point(default_point)
    by_name = {row["point"]: row for row in rows}
    coder = None
    if isinstance(encoder.quantizer(default), UniformQuantizer):
        coder = measure_coder(encoder, default, states, rounds)
    return {
        "machine": f"{platform.machine()}, {platform.system()}, NumPy {np.__version__}",
        "frames": len(states),
        "default_point": default.name,
        "frames_per_second_one_core": by_name[default.name]["encoded_per_second"],
        "points": rows,
        "coder": coder,
    }


def of_bundle(
    edge: Path, bundle: Path, pictures: int, rounds: int, cameras: int = 0
) -> dict[str, Any]:
    """`measure` for a bundle on validation pictures, and `deltas` if cameras are given."""
    model = VLM.load(edge)
    loaded = Bundle.load(bundle, model.layout, Bundle.peek(bundle).target)
    shown = TestSet.load("validation", pictures, 1).pictures

    def see(pictures: Sequence[Image.Image], what: str) -> list[KVState]:
        shown = tqdm(pictures, desc=what, unit="picture")
        return [model.states(model.prefill([each], attention=True))[0] for each in shown]

    encoder = loaded.encoder
    report = measure(encoder, loaded.info.default_point, see(shown, "prefill"), rounds)
    films = [
        see(
            [
                c.picture
                for c in open_source(f"yard://validation?sequence={n}&count=100")
                if c.picture
            ],
            f"camera {n}",
        )
        for n in range(cameras)
    ]
    report["deltas"] = [
        measure_deltas(encoder, point, films)
        for point in encoder.points
        if films and encoder.has_levels(point)
    ]
    return report


def parts(report: dict[str, Any]) -> list[Table]:
    """The figures as tables."""
    made = [
        Table(
            "Frames per second, one core",
            ("point", "#payload bytes", "#request bytes", "#edge", "#cloud"),
            [_said(row) for row in report["points"]],
        )
    ]
    if coder := report["coder"]:
        made.append(
            Table(
                f"Entropy coder alone, {coder['symbols']} symbols a frame",
                ("coder", "#bytes", "#encoded", "#decoded"),
                [(name, *_said(coder[name])) for name in ("ours", "constriction")],
            )
        )
    if deltas := report.get("deltas"):
        heads = [f"#{name.replace('_', ' ')}" for name in deltas[0]]
        title = f"Delta frames of {deltas[0]['frames']}, header and payload"
        made.append(Table(title, heads, [_said(row) for row in deltas]))
    return made


def _said(row: dict[str, Any]) -> list[str]:
    return [value if isinstance(value, str) else f"{value:,}" for value in row.values()]


def main() -> int:
    """Command line."""
    parser = command.parser("codec_speed", __doc__)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--edge", type=Path, default=EDGE_MODEL, help="the edge model")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="its bundle")
    parser.add_argument("--pictures", type=int, default=64, help="validation pictures")
    parser.add_argument("--rounds", type=int, default=10, help="rounds; the best counts")
    parser.add_argument(
        "--out", type=Path, default=command.REPORTS / "codec-speed.json", help="the report"
    )
    parser.add_argument(
        "--cameras", type=int, default=0, help="fixed cameras of 100 frames, for delta frames"
    )
    return command.run(parser, bench)


def bench(given: argparse.Namespace) -> int:
    """Measure, write, print.

    Raises:
        ConfigError: nothing would be measured.
    """
    if given.pictures < 1 or given.rounds < 1 or given.cameras < 0:
        raise ConfigError("--pictures and --rounds are at least 1, --cameras at least 0")
    quiet_libraries()
    report = of_bundle(given.edge, given.bundle, given.pictures, given.rounds, given.cameras)
    show(parts(report), Console())
    command.write(report, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
