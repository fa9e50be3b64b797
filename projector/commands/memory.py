"""`projector memory`: adds a basis of long memories to a bundle."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
        help="a file with a JSON object on each line: `about`, `asks` and `texts`, a statement and "
        "questions that are about the same one and ask the same; three or more texts on a line",
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
        help="most entries of a key, a byte each; default: %(default)s",
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


@dataclass(frozen=True)
class Phrasings:
    """Texts that are about the same one and ask the same."""

    about: str
    asks: str
    texts: tuple[str, ...]


def read_phrasings(path: Path) -> list[Phrasings]:
    """The lines of a file of phrasings.

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
    things: list[Phrasings] = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = read_json(line, _LINE_BYTES, f"{path}, line {number}")
        except FrameMalformedError as error:
            raise CorpusError(error.message) from error
        things.append(_phrasings(row, f"{path}, line {number}"))
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
    rows = _features(source, things, layers)
    about, asks = _numbers([one.about for one in things]), _numbers([one.asks for one in things])
    sizes = [len(one.texts) for one in things]
    learnt = learn(
        rows,
        np.repeat(about, sizes).tolist(),
        np.repeat(asks, sizes).tolist(),
        layers,
        source.layout,
        target.layout,
        args.rank,
        reading,
    )
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
        f"{size:,} bytes, keys of {learnt.basis.rank} bytes, gate at "
        f"{learnt.basis.reading.threshold:.2f}"
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
    source: FrozenModel, things: Sequence[Phrasings], layers: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Features of every text, in their order, [n, F]."""
    from projector.memory.basis import text_features

    texts = [text for one in things for text in one.texts]
    began = told = time.monotonic()
    rows = []
    for done, text in enumerate(texts, 1):
        rows.append(text_features(source.text_state(text), layers))
        now = time.monotonic()
        if now - told > _EVERY_S:
            told, left = now, (now - began) / done * (len(texts) - done)
            print(f"memory: {done} of {len(texts)} texts read, {left:.0f} s to go", flush=True)
    return np.stack(rows)


def _numbers(names: Sequence[str]) -> list[int]:
    """A number for each different name."""
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [known[name] for name in names]


def _phrasings(row: Any, where: str) -> Phrasings:
    if isinstance(row, dict) and set(row) == {"about", "asks", "texts"}:
        texts = row["texts"]
        names = (row["about"], row["asks"], *texts) if isinstance(texts, list) else ()
        if len(names) >= 5 and all(isinstance(one, str) and one.strip() for one in names):
            return Phrasings(row["about"], row["asks"], tuple(texts))
    raise CorpusError(
        f"{where}: expected an object with `about`, `asks` and `texts`, three or more of them"
    )
