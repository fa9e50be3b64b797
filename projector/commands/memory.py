"""`projector memory`: adds a basis of long memories to a bundle."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projector.commands.arguments import add_pair_command, add_text_tokens, whole
from projector.commands.models import open_pair
from projector.training import preflight
from protos.errors import ConfigError, CorpusError, FrameMalformedError
from protos.process.console import printable
from protos.process.folders import open_file
from protos.strict_json import read_json

if TYPE_CHECKING:
    from projector.models.frozen import FrozenModel

MOST_BYTES = 64 << 20
_LINE_BYTES = 1 << 16
_EVERY_S = 2.0


def register(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = add_pair_command(
        commands,
        "memory",
        "add a basis of long memories to a bundle: how facts that are told become keys",
        _memory,
        "projector memory bundles/mine phrasings.jsonl --source models/edge-a "
        "--target models/cloud",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument(
        "phrasings",
        type=Path,
        metavar="PHRASINGS",
        help="a file with a JSON list of texts on each line: a statement and questions that are "
        "about the same thing; three or more texts on a line, 20 lines or more",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the new bundle (default: BUNDLE itself; a signature is removed)",
    )
    parser.add_argument(
        "--layers",
        type=_layers,
        default=(),
        metavar="N,N,…",
        help="layers of the small model whose states become keys, from 0; default: three, at a "
        "sixth, a third and a half of its depth",
    )
    parser.add_argument(
        "--rank",
        type=whole,
        default=128,
        help="entries of a key, a byte each; default: %(default)s",
    )
    parser.add_argument(
        "--gain",
        type=float,
        default=0.15,
        help="length of what is added to the large model's last state, as a share of it; "
        "default: %(default)s",
    )
    add_text_tokens(parser)


def _layers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def read_phrasings(path: Path) -> list[list[str]]:
    """The phrasings of each thing.

    Raises:
        CorpusError: not such a file; the line is named.
    """
    try:
        with open_file(path) as stream:
            raw = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from error
    if len(raw) > MOST_BYTES:
        raise CorpusError(f"{path}: more than {MOST_BYTES >> 20} MiB of phrasings")
    things: list[list[str]] = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            texts = read_json(line, _LINE_BYTES, f"{path}, line {number}")
        except FrameMalformedError as error:
            raise CorpusError(error.message) from error
        good = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
        if not good or len(texts) < 3:
            raise CorpusError(f"{path}, line {number}: expected a JSON list of three or more texts")
        things.append(texts)
    return things


def _memory(args: argparse.Namespace) -> int:
    from projector.bundle.load import Bundle
    from projector.bundle.write import write_next
    from projector.memory.basis import ReadSettings
    from projector.memory.learn import learn

    things = read_phrasings(args.phrasings)
    info = Bundle.peek(args.bundle)
    out = args.out or args.bundle
    preflight.writable(out)
    reading = ReadSettings(gain=args.gain)
    if not 0 < args.gain <= 100:
        raise ConfigError(f"--gain {args.gain}: expected a number above 0, at most 100")
    source, target = open_pair(args, info.source.of_text)
    bundle = Bundle.load(args.bundle, source.layout, target.layout)
    count = source.layout.layers
    layers = args.layers or tuple(sorted({count // 6, count // 3, count // 2}))
    if min(layers) < 0 or max(layers) >= count or len(set(layers)) != len(layers):
        raise ConfigError(f"--layers: the small model has the layers 0 to {count - 1}")
    rows, labels = _features(source, things, layers)
    learnt = learn(rows, labels, layers, source.layout, target.layout, args.rank, reading)
    made = write_next(
        bundle,
        out,
        encoder=bundle.encoder,
        service_risk=bundle.service_risk,
        canary=bundle.canary,
        memory=learnt.basis,
    )
    size, _ = made.files["memory.safetensors"]
    print(
        f"wrote bundle {printable(made.id)} version {made.version} to {out}: a basis of memories, "
        f"{size:,} bytes, keys of {args.rank} bytes, gate at {learnt.basis.reading.threshold:.2f}"
    )
    print(
        f"of {learnt.told} things told and asked for in words left out of the fit "
        f"{learnt.found:.1%} are found, {learnt.answered:.1%} with the gate; it opens for "
        f"{learnt.opened:.1%} of questions about untold things"
    )
    if bundle.key is not None:
        print("it is not signed any more: sign it again with `projector sign`")
    return 0


def _features(
    source: FrozenModel, things: list[list[str]], layers: tuple[int, ...]
) -> tuple[Any, list[int]]:
    """Features of every phrasing, and which thing it is about."""
    import numpy as np

    from projector.memory.basis import text_features

    total, done = sum(map(len, things)), 0
    began = told = time.monotonic()
    rows, labels = [], []
    for number, texts in enumerate(things):
        for text in texts:
            rows.append(text_features(source.text_state(text), layers))
            labels.append(number)
            done += 1
            now = time.monotonic()
            if now - told > _EVERY_S:
                told = now
                left = (now - began) / done * (total - done)
                print(f"memory: {done} of {total} texts read, {left:.0f} s to go", flush=True)
    return np.stack(rows), labels
