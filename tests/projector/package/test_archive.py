"""Package files: not one bit can be altered unnoticed, and a disk that fills up harms nothing."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import package as packages
from projector.bundle.keys import SigningKey
from projector.package import KEYS, PROVENANCE, VALUES
from protos.errors import (
    ConfigError,
    DiskFullError,
    PackageCorruptError,
    PackageFormatError,
    SignatureError,
)
from tests.projector.package.conftest import SMALL, archive, make, members_of, refused

# ---------------------------------------------------------------------- every bit


@pytest.mark.parametrize("every", [89, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_no_flipped_bit_is_accepted(file: Path, key: SigningKey, signed: bool, every: int) -> None:
    made = make(certification=None)
    packages.write(packages.sign(made, key) if signed else made, file)
    blob = file.read_bytes()
    accepted, tried = [], 0
    handle = os.open(file, os.O_RDWR)
    for at, byte in list(enumerate(blob))[::every]:
        for bit in range(8):
            os.pwrite(handle, bytes([byte ^ 1 << bit]), at)
            tried += 1
            try:
                packages.verify(file)
                accepted.append((at, bit))
            except (PackageCorruptError, PackageFormatError, SignatureError):
                pass
        os.pwrite(handle, bytes([byte]), at)
    os.close(handle)
    packages.verify(file)
    assert tried == 8 * len(blob[::every])
    assert not accepted, f"{len(accepted)} of {tried} flips were accepted, first {accepted[:3]}"


@pytest.mark.quick(1)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_no_flipped_bit_is_accepted_when_the_checksums_are_made_to_fit(
    file: Path, key: SigningKey, signed: bool
) -> None:
    made = make(certification=None)
    members = members_of(packages.sign(made, key) if signed else made)
    accepted = []
    for name in members:
        # All of what holds the rest together; of the rest, whose digests it lists, every 7th byte.
        for at in range(0, len(members[name]), 1 if name == PROVENANCE else 7):
            altered = bytearray(members[name])
            altered[at] ^= 1 << at % 8
            file.write_bytes(archive({**members, name: bytes(altered)}))
            try:
                packages.verify(file)
                accepted.append((name, at))
            except (PackageCorruptError, PackageFormatError, SignatureError):
                pass
    assert not accepted


def test_no_truncation_is_accepted(file: Path) -> None:
    packages.write(make(), file)
    for length in reversed(range(file.stat().st_size)):
        os.truncate(file, length)
        with pytest.raises((PackageCorruptError, PackageFormatError)):
            packages.verify(file)


@pytest.mark.parametrize("extra", [b"\0", b"PK\x05\x06", b"x" * 5000])
@pytest.mark.parametrize("where", ["before", "after", "as comment"])
def test_leading_and_trailing_data_are_refused(file: Path, extra: bytes, where: str) -> None:
    whole = archive(members_of(make()))
    if where == "as comment":
        blob = whole[:-2] + struct.pack("<H", len(extra)) + extra
    else:
        blob = extra + whole if where == "before" else whole + extra
    assert isinstance(refused(file, blob), PackageCorruptError | PackageFormatError)


def test_a_package_twice_in_one_file_is_refused(file: Path) -> None:
    whole = archive(members_of(make()))
    assert isinstance(refused(file, whole + whole), PackageCorruptError)


# ---------------------------------------------------------------------- forged archives


def zipped(members: dict[str, Any], method: int = zipfile.ZIP_STORED) -> bytes:
    """The same members, by another program."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, blob in members.items():
            made.writestr(name, bytes(blob))
    return out.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_an_archive_that_another_program_packed_is_refused(file: Path, method: int) -> None:
    assert isinstance(refused(file, zipped(members_of(make()), method)), PackageCorruptError)


def test_a_bomb_is_refused_before_anything_is_allocated(file: Path) -> None:
    members = members_of(make())
    bomb = zipped({**members, KEYS: b"\0" * (64 << 20)}, zipfile.ZIP_DEFLATED)
    whole = archive(members)
    at = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 1)  # of the keys
    huge = bytearray(whole)
    struct.pack_into("<II", huge, at + 20, 0xF0000000, 0xF0000000)
    long = archive({**members, PROVENANCE: b" " * (32 << 20)})
    for blob in (bomb, bytes(huge), long):
        file.write_bytes(blob)
        tracemalloc.start()
        with pytest.raises((PackageCorruptError, PackageFormatError)):
            packages.read(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


def test_a_sparse_file_beyond_the_limit_is_refused(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(packages.MAX_BYTES + 1)
    with pytest.raises(PackageFormatError, match="at most"):
        packages.read(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {"../x" if n == KEYS else n: b for n, b in m.items()},
        lambda m: {"/etc/x" if n == KEYS else n: b for n, b in m.items()},
        lambda m: {n.upper(): b for n, b in m.items()},
        lambda m: {**m, "extra": b""},
        lambda m: {"extra": b"", **m},
        lambda m: {n: b for n, b in m.items() if n != VALUES},
        lambda m: dict(reversed(m.items())),
        lambda m: {**{n: b for n, b in m.items() if n != KEYS}, KEYS: m[KEYS]},
        lambda m: {f"m{i}": b"" for i in range(60)},
        lambda m: {PROVENANCE: m[PROVENANCE]},
    ],
    ids=[
        "path escape",
        "absolute path",
        "upper case",
        "one more",
        "one before",
        "one fewer",
        "reversed",
        "another order",
        "too many",
        "one",
    ],
)
def test_other_members_than_a_package_has_are_refused(
    file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    error = refused(file, archive(change(members_of(make()))))
    assert isinstance(error, PackageFormatError | PackageCorruptError)
    assert not (file.parent.parent / "x").exists()


def test_a_member_twice_is_refused(file: Path) -> None:
    members = members_of(make())
    entries = [*members.items(), (KEYS, members[KEYS])]

    class Twice(dict[str, Any]):
        def items(self) -> Any:
            return entries

        def values(self) -> Any:
            return [blob for _, blob in entries]

    assert isinstance(refused(file, archive(Twice())), PackageFormatError)


def central(blob: bytes, index: int) -> int:
    at = -1
    for _ in range(index + 1):
        at = blob.index(b"PK\x01\x02", at + 1)
    return at


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (4, "<H", 0x0314 + 1),  # made by another version
        (8, "<H", 1),  # encrypted
        (10, "<H", 8),  # deflated
        (12, "<H", 1),  # a time
        (16, "<I", 0),  # another checksum
        (30, "<H", 1),  # extra field
        (32, "<H", 1),  # comment
        (34, "<H", 1),  # another disk
        (38, "<I", (stat.S_IFLNK | 0o777) << 16),  # a symbolic link
        (38, "<I", (stat.S_IFREG | 0o4755) << 16),  # set-user-id
        (42, "<I", 0),  # another member's data
        (46, "<B", ord("w")),  # another name than in the local header
    ],
)
def test_a_forged_directory_is_refused(file: Path, offset: int, form: str, value: int) -> None:
    blob = bytearray(archive(members_of(make())))
    struct.pack_into(form, blob, central(bytes(blob), 2) + offset, value)
    assert isinstance(refused(file, bytes(blob)), PackageCorruptError | PackageFormatError)


def test_checksums_that_agree_with_each_other_but_not_with_the_data_are_refused(
    file: Path,
) -> None:
    blob = bytearray(archive(members_of(make())))
    for at in (14, central(bytes(blob), 0) + 16):  # of the first member, in both headers
        blob[at] ^= 1
    assert isinstance(refused(file, bytes(blob)), PackageCorruptError)


@pytest.mark.parametrize("value", [0, 5, 7, 0xFFFF])
def test_a_forged_count_is_refused(file: Path, value: int) -> None:
    blob = bytearray(archive(members_of(make())))
    struct.pack_into("<HH", blob, len(blob) - 14, value, value)
    assert isinstance(refused(file, bytes(blob)), PackageCorruptError | PackageFormatError)


@pytest.mark.parametrize("value", [0, 1, 45, 0xFFFFFFFF])
def test_a_forged_directory_size_is_refused(file: Path, value: int) -> None:
    blob = bytearray(archive(members_of(make())))
    struct.pack_into("<I", blob, len(blob) - 10, value)
    assert isinstance(refused(file, bytes(blob)), PackageCorruptError | PackageFormatError)


def test_random_bytes_are_refused_with_a_typed_error(file: Path) -> None:
    rng = np.random.default_rng(0)
    whole = archive(members_of(make()))
    for _ in range(300):
        blob = bytearray(whole)
        for at in rng.integers(0, len(blob), 3):
            blob[at] = rng.integers(256)
        if bytes(blob) != whole:
            assert not isinstance(refused(file, bytes(blob)), ConfigError)
        refused(file, rng.bytes(int(rng.integers(0, 200))))


# ---------------------------------------------------------------------- writing


class Full:
    """A disk that fills up: writes take some bytes, then fail; or a later step does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
        real = os.write
        left = [700]

        def write(file: int, blob: Any) -> int:
            if not left[0]:
                raise OSError(code, os.strerror(code))
            count = real(file, memoryview(blob)[: left[0]])
            left[0] -= count
            return count

        def fail(*_: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, step, write if step == "write" else fail)


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("there", [False, True], ids=["new", "replacing"])
def test_a_full_disk_leaves_nothing_and_takes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, there: bool
) -> None:
    if there:
        packages.write(make(), file)
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    with monkeypatch.context() as patch:
        Full(patch, step, code)
        with pytest.raises(ConfigError if code == errno.EIO else DiskFullError, match="p.neural"):
            packages.write(make(description="new"), file, overwrite=True)
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before


def test_writes_that_take_only_some_bytes_are_continued(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda f, blob: real(f, memoryview(blob)[:100]))
    packages.write(make(), file)
    assert packages.verify(file).info == make().info


def test_a_file_that_is_there_is_not_replaced_unasked(file: Path) -> None:
    packages.write(make(), file)
    with pytest.raises(ConfigError, match="exists"):
        packages.write(make(description="new"), file)
    assert packages.verify(file).info == make().info


@pytest.mark.parametrize("kind", ["none", "folder", "pipe"])
def test_what_is_no_file_is_a_config_error(file: Path, kind: str) -> None:
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    with pytest.raises(ConfigError, match="cannot read" if kind == "none" else "is not a file"):
        packages.verify(file)


def test_verifying_takes_little_memory_however_large_the_package(file: Path) -> None:
    layout = dataclasses.replace(SMALL, layers=8, kv_heads=4, head_dim=64, grid=(32, 32))
    packages.write(make(layout, np.ones(1024, dtype=np.bool_), codec="float32"), file)
    assert file.stat().st_size > 16 << 20
    tracemalloc.start()
    packages.verify(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
