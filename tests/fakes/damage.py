"""Damage to a folder of files: what copying, disks and careless hands do, and what strangers may.

`damages` lists every way in which one file of a folder can be spoilt, always the same ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEEP = "[" * 50_000 + "]" * 50_000
VALUES: tuple[Any, ...] = (
    *(None, "text", -1, 0, 10**12, 1e300, True),
    *([], {}, [[["x"]]], float("nan")),
)
TEMPLATES = (
    "{% for",
    "{{ x.y.z }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ '%99999999999d' % 3 }}",
    "{{ 'x' | center(99999999999) }}",
    "{% include 'other' %}",
    "{{ raise_exception('no pictures here') }}",
    "{{ messages[5]['content'] }}",
    "{{ 1 / 0 }}",
    "words alone",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "{% if a %}" * 200 + "{% endif %}" * 200,
    "{{ messages[0].content[1].text }}<image>",
    "<image><image>{{ messages[0].content[1].text }}",
)

Damage = Callable[[Path], None]
"""Spoils a file of a copy, given its path."""


def damages(
    file: Path, other: Path | None, flips: int = 4, keys: int = 6
) -> Iterator[tuple[str, Damage]]:
    """Ways to spoil a file, each with its name.

    Args:
        file: the sound file.
        other: the file of that name in another folder, to be swapped with.
        flips: how many single bits are flipped.
        keys: of JSON, how many fields get other values.
    """
    sound = file.read_bytes()
    draw = random.Random(file.name)
    yield "missing", lambda at: at.unlink()
    yield "a folder", _replaced(lambda at: at.mkdir())
    yield "a link to itself", _replaced(lambda at: at.symlink_to(at.name))
    yield "a pipe", _replaced(lambda at: os.mkfifo(at))
    yield "empty", _written(b"")
    yield "cut in half", _written(sound[: len(sound) // 2])
    yield "one byte short", _written(sound[:-1])
    yield "with more after it", _written(sound + b"more")
    if other is not None and other.is_file():
        yield "another model's", _written(other.read_bytes())
    for index in range(flips):
        spoilt = bytearray(sound)
        at = draw.randrange(len(sound) if index % 2 else min(len(sound), 2000))
        spoilt[at] ^= 1 << draw.randrange(8)
        yield f"bit flipped in byte {at}", _written(bytes(spoilt))
    if file.suffix == ".json":
        yield from _json(sound, draw, keys)
    if file.suffix == ".jinja":
        for template in TEMPLATES:
            yield f"template {template[:60]}", _written(template.encode())
    if file.suffix == ".safetensors":
        yield from _safetensors(sound, draw)


def copy(folder: Path, to: Path) -> Path:
    """A copy of a folder that may be spoilt, in place of an earlier one."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


def _written(blob: bytes) -> Damage:
    return lambda at: _unused(at.write_bytes(blob))


def _replaced(make: Damage) -> Damage:
    def spoil(at: Path) -> None:
        at.unlink()
        make(at)

    return spoil


def _unused(_: object) -> None:
    """Nothing is done with it."""


def _json(sound: bytes, draw: random.Random, keys: int) -> Iterator[tuple[str, Damage]]:
    for whole in ("[]", "null", '"x"', "{}", DEEP, '{"a": ' + "1" * 6000 + "}"):
        yield f"all of it {whole[:10]}", _written(whole.encode())
    plain = json.loads(sound)
    places = list(_places(plain))
    for place in draw.sample(places, min(keys, len(places))):
        shown = ".".join(map(str, place))
        yield f"{shown} left out", _written(json.dumps(_put(plain, place)).encode())
        for value in draw.sample(VALUES, 3):
            blob = json.dumps(_put(plain, place, value)).encode()
            yield f"{shown} = {value!r}", _written(blob)


def _places(plain: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield (*at, key)
            yield from _places(value, (*at, key))
    elif isinstance(plain, list) and plain:
        yield from _places(plain[0], (*at, 0))


def _put(plain: Any, place: tuple[Any, ...], *value: Any) -> Any:
    made = json.loads(json.dumps(plain))
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    if value:
        inner[place[-1]] = value[0]
    else:
        del inner[place[-1]]
    return made


def _safetensors(sound: bytes, draw: random.Random) -> Iterator[tuple[str, Damage]]:
    size = int.from_bytes(sound[:8], "little")
    header, body = json.loads(sound[8 : 8 + size]), sound[8 + size :]

    def with_header(plain: Any) -> Damage:
        blob = json.dumps(plain).encode()
        return _written(struct.pack("<Q", len(blob)) + blob + body)

    names = sorted(name for name in header if name != "__metadata__")
    for name in draw.sample(names, min(2, len(names))):
        lies: tuple[tuple[str, Any], ...] = (
            *(("dtype", kind) for kind in ("I64", "F16", "MADE_UP")),
            *(("shape", shape) for shape in ([1], [10**9, 10**9], [-1], header[name]["shape"][1:])),
            *(("data_offsets", span) for span in ([0, 10**15], [0, 0], [-4, 4])),
        )
        for field, value in lies:
            changed = {**header, name: {**header[name], field: value}}
            yield f"header says {field} {value} of {name}", with_header(changed)
        renamed = {key: value for key, value in header.items() if key != name}
        yield f"{name} has another name", with_header({**renamed, name + "x": header[name]})
    yield "header of 2^62 bytes", _written(struct.pack("<Q", 1 << 62) + sound[8:])
    yield "header of 0 bytes", _written(struct.pack("<Q", 0) + sound[8:])
    for value in (float("nan"), float("inf")):
        at = 8 + size + 4 * (len(body) // 8)
        number = struct.pack("<f", value)
        yield f"a weight is {value}", _written(sound[:at] + number + sound[at + 4 :])
