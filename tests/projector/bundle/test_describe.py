"""A description is believed only if it is canonical, sealed and possible."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.describe import canonical_json
from projector.bundle.load import Bundle
from projector.bundle.write import write_bundle
from protos.errors import (
    BundleCorruptError,
    BundleFormatError,
)
from protos.layout import KVLayout
from tests.projector.bundle.conftest import edit, rewrite


def test_another_version_of_the_format_is_refused(
    folder: Path, source: KVLayout, target: KVLayout
) -> None:
    file = folder / "bundle.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(BundleFormatError, match="format 2, this version reads 1"):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize(
    "change",
    [
        {"default_point": 9},
        {"ladder": [0, 9]},
        {"rank": "8"},
        {"rank": 9},
        {"files": {}},
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"operating_points": []},
        {"source_layout": {}},
        {"target_layout": None},
        {"extra": 1},
    ],
    ids=lambda change: json.dumps(change)[:30],
)
def test_a_description_that_is_sealed_but_wrong_is_refused(
    folder: Path, source: KVLayout, target: KVLayout, change: dict[str, Any]
) -> None:
    file = folder / "bundle.json"
    plain = {**json.loads(file.read_text()), **change}
    del plain["digest"]
    plain["digest"] = hashlib.sha256(canonical_json(plain)).hexdigest()
    file.write_bytes(canonical_json(plain))
    with pytest.raises(BundleFormatError):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize(
    "change",
    [
        *({"id": name} for name in (["a"], "", "x" * 257, "two\nlines", 3)),
        *({"version": -5}, {"version": True}, {"format": True}, {"format": "1"}),
    ],
)
def test_a_description_whose_fields_cannot_be_is_refused(
    folder: Path,
    two_way: dict[str, Any],
    source: KVLayout,
    target: KVLayout,
    change: dict[str, Any],
) -> None:
    write_bundle(folder, **two_way)
    rewrite(folder, **change)
    with pytest.raises(BundleFormatError, match=r"604\.4"):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize("ladder", [[], [1, 1]])
def test_a_ladder_of_nothing_or_of_one_point_twice_is_refused(
    folder: Path, two_way: dict[str, Any], source: KVLayout, target: KVLayout, ladder: list[int]
) -> None:
    write_bundle(folder, **two_way)
    rewrite(folder, ladder=ladder)
    with pytest.raises(BundleFormatError, match=r"604\.5"):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_reads_as_infinity_is_refused(
    folder: Path, source: KVLayout, target: KVLayout, number: str
) -> None:
    edit(folder, "bundle.json", '"version": 3', f'"version": {number}')
    with pytest.raises(BundleCorruptError, match="602.4"):
        Bundle.load(folder, source, target)
