"""What a package says: nonsense is refused, even with every digest and checksum made to fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import package as packages
from projector.package import CONFIG, KEYS, MASK, METADATA, PROVENANCE, VALUES
from protos.errors import BundleLayoutError, NonFiniteError, PackageCorruptError, PackageFormatError
from tests.projector.package.conftest import (
    CERTIFIED,
    LARGE,
    SMALL,
    archive,
    forged,
    make,
    no_files,
    random_state,
    refused,
    with_member,
)

# ---------------------------------------------------------------------- refusing to make nonsense


@pytest.mark.parametrize(
    "over",
    [
        {"id": "../x"},
        {"id": ""},
        {"version": 0},
        {"created": "yesterday"},
        {"created": "2026-1-31T12:00:00Z"},
        {"creator": ""},
        {"royalty_percent": 101},
        {"royalty_percent": float("nan")},
        {"transformation_quality": 1.5},
        {"codec": "int3"},
        {"description": "x" * 5000},
        {"kept": (False, False, False)},
        {"kept": (True, True)},
        {"parent": "abc"},
    ],
)
def test_fields_that_make_no_sense_are_refused(over: dict[str, Any]) -> None:
    with pytest.raises(PackageFormatError):
        make(**over)


@pytest.mark.parametrize(
    "over", [{"tier": "wood"}, {"epsilon": -1.0}, {"retention": 3.0}, {"verified_at": "now"}]
)
def test_a_certification_that_makes_no_sense_is_refused(over: dict[str, Any]) -> None:
    with pytest.raises(PackageFormatError):
        dataclasses.replace(CERTIFIED, **over)


def test_dropped_tokens_cannot_make_a_small_file_a_large_state() -> None:
    meta = make().info.metadata
    with pytest.raises(PackageFormatError, match="at most"):
        dataclasses.replace(meta, grid=(1024, 1024), head_dim=1024)


def test_a_state_with_nan_or_of_another_model_is_refused() -> None:
    state = random_state(SMALL)
    state.values[0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError):
        make(state=state)
    with pytest.raises(PackageFormatError):
        make(state=random_state(LARGE))
    with pytest.raises(BundleLayoutError, match="large"):
        make(bundle=no_files(LARGE, SMALL))


# ------------------------------------------------------- consistent forgeries: all digests re-made


def test_the_forger_of_these_tests_makes_what_is_accepted(file: Path) -> None:
    file.write_bytes(forged(make(), lambda plain: plain.update(description="else")))
    assert packages.verify(file).info.metadata.description == "else"
    file.write_bytes(forged(make(), lambda plain: plain.update(creator="else"), PROVENANCE))
    assert packages.verify(file).info.provenance.creator == "else"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"tokens": 3},
        {"tokens": True},
        {"compression_ratio": 0.1},
        {"created": 5},
        {"source": {"model_id": "x"}},
        {"source": []},
        {"kv_cache": None},
        {"certification": {"tier": "gold"}},
        {"certification": [1]},
        {"transformation_quality": 7},
        {"transformation_quality": 1e999},
        {"more": 1},
    ],
)
def test_metadata_that_contradicts_the_rest_is_refused(file: Path, change: dict[str, Any]) -> None:
    refused(file, forged(make(), lambda plain: plain.update(change)))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 2},
        {"head_dim": 1},
        {"head_dim": 4096, "layers": 1024, "kv_heads": 1024},
        {"codec": "float16"},
        {"codec": "none"},
        {"grid": [1, 4]},
        {"grid": [3, 1]},
        {"grid": [1024, 1024]},
        {"grid": "13"},
        {"grid": [1]},
        {"grid": [True, 3]},
        {"grid": [1.0, 3]},
        {"layers": "1"},
    ],
)
def test_a_shape_that_contradicts_the_tensors_is_refused(
    file: Path, change: dict[str, Any]
) -> None:
    def apply(plain: dict[str, Any]) -> None:
        plain["kv_cache"].update(change)
        grid = change.get("grid")
        if grid in ([1, 4], [1024, 1024]):
            plain["compression_ratio"] = 2 / (grid[0] * grid[1])

    assert isinstance(refused(file, forged(make(), apply)), PackageFormatError)


@pytest.mark.parametrize(
    "change",
    [
        {"derivation": ["select"]},
        {"parent": "ab" * 32},
        {"parent": "ab" * 32, "derivation": ["stolen"]},
        {"parent": "ab" * 32, "derivation": ["select", "select"]},
        {"parent": "ab" * 32, "derivation": "select"},
        {"royalty_percent": -1},
        {"royalty_percent": 5},
        {"members": {}},
        {"members": []},
        {"members": {KEYS: {"bytes": "x", "sha256": ""}}},
        {"signature": {"key": "a"}},
        {"signature": "x"},
        {"signature": {"key": "a", "value": "b"}},
        {"signature": {"key": 5, "value": None}},
        {"creator": None},
    ],
)
def test_provenance_that_makes_no_sense_is_refused(file: Path, change: dict[str, Any]) -> None:
    refused(file, forged(make(), lambda plain: plain.update(change), PROVENANCE))


@pytest.mark.parametrize("name", [METADATA, CONFIG, PROVENANCE])
@pytest.mark.parametrize(
    "blob", [b"", b"{", b"[]", b"5", b'{"a":1,"a":2}', b"\xff", b"[" * 60000, b'"\\ud800"']
)
def test_members_that_are_no_such_json_are_refused(file: Path, name: str, blob: bytes) -> None:
    made = make()
    if name == PROVENANCE:
        refused(file, archive({**made.members, PROVENANCE: blob}))
    else:
        refused(file, with_member(made, name, blob))


def test_json_of_another_form_is_refused(file: Path) -> None:
    made = make()
    for name in (METADATA, CONFIG):
        plain = json.loads(bytes(made.members[name]))
        assert isinstance(
            refused(file, with_member(made, name, json.dumps(plain, sort_keys=True).encode())),
            PackageCorruptError,
        )


@pytest.mark.parametrize("name", [KEYS, VALUES, MASK])
def test_tensors_of_another_form_are_refused(file: Path, name: str) -> None:
    made = make()
    blob = bytearray(made.members[name])
    blob[10] ^= 1  # the header's text
    assert isinstance(refused(file, with_member(made, name, bytes(blob))), PackageFormatError)
    refused(file, with_member(made, name, bytes(made.members[name]) + b"\0"))


@pytest.mark.parametrize("value", [2, 0])
def test_a_mask_that_contradicts_the_count_is_refused(file: Path, value: int) -> None:
    made = make()
    blob = bytes(made.members[MASK])[:-1] + bytes([value])
    assert isinstance(refused(file, with_member(made, MASK, blob)), PackageFormatError)


def test_numbers_that_are_nan_are_refused_when_they_are_used(file: Path) -> None:
    made = make()
    blob = bytes(made.members[KEYS])[:-1] + b"\x7f"
    file.write_bytes(with_member(made, KEYS, blob))
    with pytest.raises(PackageFormatError, match="NaN"):
        packages.read(file).state()
