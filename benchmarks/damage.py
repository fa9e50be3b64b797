"""Damages a bundle in many ways and counts how often loading still accepts it.

It treats a bundle's files as bytes and loads them by `Bundle.load_from`, as everything else does.
Each acceptance is a hole; the expected count is zero.

| Kind | Damaged |
|---|---|
| `bit flips` | one bit of one file |
| `truncations` | one file cut to a shorter length, or longer by a byte |
| `missing files` | one file left out |
| `mixed files` | some files of one valid bundle, the rest of another for the same models |
| `mixed fields` | `bundle.json` with a value of another bundle's; also with its digest made anew |
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from projector.bundle.describe import canonical_json
from projector.bundle.files import DESCRIPTION, FEEDBACK_FILES, FILES, SIGNATURE
from projector.bundle.keys import TrustedKeys
from projector.bundle.load import Bundle
from protos.errors import BridgeError
from protos.layout import KVLayout

Files = Mapping[str, bytes]
Case = tuple[str, Files]
"""What was done, and the files after it."""
Load = Callable[[Files], Bundle]
Place = tuple[str | int, ...]


@dataclass
class Tally:
    """Result of one kind of damage.

    Attributes:
        tried: number of damaged bundles that were offered to the loader.
        accepted: for each bundle that it took, what was done to it.
    """

    tried: int = 0
    accepted: list[str] = field(default_factory=list)


def read_files(folder: Path) -> dict[str, bytes]:
    """A bundle's files, with its signature if it has one."""
    names = (DESCRIPTION, *FILES, *FEEDBACK_FILES, SIGNATURE)
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def loader(
    source: KVLayout | str, target: KVLayout | str, trusted: TrustedKeys | None = None
) -> Load:
    """`Bundle.load` for files in memory, by the same code."""

    def load(files: Files) -> Bundle:
        def read(name: str, most: int) -> bytes:
            if name not in files:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            return files[name][:most]

        return Bundle.load_from(read, Path("bundle"), source, target, trusted=trusted)

    return load


def survey(
    load: Load,
    one: Files,
    other: Files,
    *,
    signed: bool,
    most: int | None = None,
    seed: int = 0,
) -> dict[str, Tally]:
    """Every kind of damage to `one`.

    Args:
        load: from `loader`.
        one: a valid bundle's files.
        other: files of another valid bundle for the same two models.
        signed: both are signed, and `load` requires it.
        most: about how many bits and lengths to try per file, drawn at random; None for all.
        seed: seed of these draws.

    Returns:
        Per kind of damage, what was tried and what was accepted.

    Raises:
        BridgeError: `one` or `other` is not valid to begin with.
    """
    load(one)
    load(other)
    kinds = {
        "bit flips": flips(one, most, seed),
        "truncations": truncations(one, most, seed),
        "missing files": missing(one),
        "mixed files": mixed_files(one, other),
        "mixed fields": mixed_fields(one, other, reseal=signed),
    }
    return {kind: tally(load, cases) for kind, cases in kinds.items()}


def tally(load: Load, cases: Iterable[Case]) -> Tally:
    """Offer damaged bundles; only a `BridgeError` is a refusal, other exceptions propagate."""
    result = Tally()
    for done, files in cases:
        result.tried += 1
        try:
            load(files)
        except BridgeError:
            continue
        result.accepted.append(done)
    return result


def flips(files: Files, most: int | None = None, seed: int = 0) -> Iterator[Case]:
    """One bit of one file."""
    for name, blob in files.items():
        for bit in _chosen(8 * len(blob), most, seed):
            broken = bytearray(blob)
            broken[bit // 8] ^= 1 << bit % 8
            yield f"bit {bit} of {name} flipped", {**files, name: bytes(broken)}


def truncations(files: Files, most: int | None = None, seed: int = 0) -> Iterator[Case]:
    """One file cut to each shorter length, and one byte longer."""
    for name, blob in files.items():
        for length in _chosen(len(blob), most, seed):
            yield f"{name} cut to {length} bytes", {**files, name: blob[:length]}
        for more in (b"\0", b"\n", blob[-1:]):
            yield f"{name} longer by {more!r}", {**files, name: blob + more}


def missing(files: Files) -> Iterator[Case]:
    """One file left out."""
    for name in files:
        yield f"without {name}", {key: blob for key, blob in files.items() if key != name}


def mixed_files(one: Files, other: Files) -> Iterator[Case]:
    """Every mixture of two bundles' files that is neither of the two."""
    differing = [name for name in one if one[name] != other.get(name)]
    for count in range(1, len(differing)):
        for names in combinations(differing, count):
            taken = {name: other[name] for name in names if name in other}
            yield f"{', '.join(names)} of another bundle", {**one, **taken}


def mixed_fields(one: Files, other: Files, reseal: bool) -> Iterator[Case]:
    """`bundle.json` with one value of the other's, at every depth.

    Args:
        one: a bundle's files.
        other: another's.
        reseal: also with the digest computed anew, which only a signature can reveal.
    """
    ours, theirs = (json.loads(files[DESCRIPTION]) for files in (one, other))
    for path in _differing(ours, theirs):
        mixed = json.loads(one[DESCRIPTION])
        _at(mixed, path[:-1])[path[-1]] = _at(theirs, path)
        done = f"{DESCRIPTION} with {'.'.join(map(str, path))} of another bundle"
        yield done, {**one, DESCRIPTION: canonical_json(mixed)}
        if reseal and path != ("digest",):
            del mixed["digest"]
            mixed["digest"] = hashlib.sha256(canonical_json(mixed)).hexdigest()
            yield f"{done}, sealed", {**one, DESCRIPTION: canonical_json(mixed)}


def _differing(ours: Any, theirs: Any, path: Place = ()) -> Iterator[Place]:
    """Paths to the values that differ, from the outside in."""
    if ours == theirs:
        return
    if path:
        yield path
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(set(ours) & set(theirs)):
            yield from _differing(ours[key], theirs[key], (*path, key))
    elif isinstance(ours, list) and isinstance(theirs, list):
        for at, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
            yield from _differing(mine, other, (*path, at))


def _at(plain: Any, path: Place) -> Any:
    for key in path:
        plain = plain[key]
    return plain


def _chosen(count: int, most: int | None, seed: int) -> Sequence[int]:
    if most is None or count <= most:
        return range(count)
    drawn = np.random.default_rng(seed).choice(count, size=most, replace=False)
    return sorted({0, count - 1, *map(int, drawn)})
