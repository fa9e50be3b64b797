"""Writes package files whole or not at all, and reads them with every member checked."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from projector.bundle.files import EVERY
from projector.package.archive import pack, read_entries, read_exactly, read_member
from projector.package.contents import Package, PackageInfo, Provenance, WMatrix
from projector.package.form import (
    ARRAYS,
    BUNDLE,
    CONFIG,
    MASK,
    METADATA,
    PROVENANCE,
    Blob,
    canonical,
    parse,
)
from projector.package.metadata import Metadata
from projector.package.tensors import array_specs, mask_specs, read_mask, spec_bytes, tensor_header
from protos.errors import (
    ConfigError,
    PackageCorruptError,
    PackageFormatError,
    SignatureError,
)
from protos.process.files import write_file, writing


def write(package: Package, path: str | Path, overwrite: bool = False) -> None:
    """Write a package, whole or not at all.

    Raises:
        ConfigError: the file exists and may not be replaced, or its folder cannot be written.
        DiskFullError: no room; nothing is left behind.
        PackageFormatError: it is larger than `MAX_BYTES`.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists already")
    parts = list(pack({**package.members, PROVENANCE: package.info.provenance.to_bytes()}))
    with writing(target):
        write_file(target, parts)


def read(path: str | Path) -> Package:
    """Read a package and verify every byte; any signer, or none, is accepted.

    Raises:
        ConfigError: no such file.
        PackageCorruptError: altered, truncated, followed by something, or not in canonical form.
        PackageFormatError: another format, or parts that contradict each other.
        SignatureError: the signature does not match.
    """
    return Package(*load(Path(path), keep=True))


def peek(path: str | Path) -> PackageInfo:
    """Read a package's description; keys, values and an embedded bundle are not checked.

    Raises:
        BridgeError: as `read`, for the parts that are read.
    """
    return load(Path(path), whole=False)[0]


def load(path: Path, keep: bool = False, whole: bool = True) -> tuple[PackageInfo, dict[str, Any]]:
    """Verify a file; `keep` its members or only hash them; if not `whole`, skip the large ones."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode):
                raise ConfigError(f"{path} is not a file")
            return _verified(file, about.st_size, keep, whole)
        finally:
            os.close(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (PackageCorruptError, PackageFormatError, SignatureError) as error:
        raise type(error)(f"{path}: {error.message}") from error


def _verified(
    file: int, size: int, keep: bool, whole: bool
) -> tuple[PackageInfo, dict[str, Blob | None]]:
    entries = {entry.name: entry for entry in read_entries(file, size)}
    blob, _ = read_member(file, entries.pop(PROVENANCE), True)
    provenance = Provenance.from_bytes(blob or b"")
    table = {name: entry.size for name, entry in entries.items()}
    if table != {name: length for name, (length, _) in provenance.members.items()}:
        raise PackageCorruptError(f"{PROVENANCE} does not list the members that the file holds")
    blobs: dict[str, Blob | None] = {}

    def take(name: str, hold: bool) -> Blob:
        blob, digest = read_member(file, entries[name], hold)
        if digest != provenance.members[name][1]:
            raise PackageCorruptError(f"{name} does not match its digest: altered")
        blobs[name] = blob
        return blob or b""

    metadata = Metadata.from_bytes(take(METADATA, True))
    w_matrix = WMatrix.from_bytes(take(CONFIG, True))
    if w_matrix.embedded != (BUNDLE[0] in entries):
        raise PackageFormatError(f"{CONFIG} contradicts whether a bundle is embedded")
    if w_matrix.embedded:
        _check_bundle(take(BUNDLE[0], True), w_matrix, provenance.members)
    for name, specs in (
        (MASK, mask_specs(metadata)),
        *((n, array_specs(metadata)) for n in ARRAYS),
    ):
        header = tensor_header(specs)
        expected = len(header) + sum(spec_bytes(spec) for spec in specs)
        if entries[name].size != expected:
            raise PackageFormatError(f"{name} has {entries[name].size} bytes, not {expected}")
        if read_exactly(file, len(header), entries[name].data) != header:
            raise PackageFormatError(f"the tensors of {name} are not those of {METADATA}")
    read_mask(take(MASK, True), metadata)
    for name in entries if whole else ():
        if name not in blobs:
            take(name, keep)
    return PackageInfo(metadata, w_matrix, provenance), {n: blobs.get(n) for n in entries}


def _check_bundle(blob: Blob, w_matrix: WMatrix, members: Mapping[str, tuple[int, str]]) -> None:
    """Require that an embedded bundle is the one named, and that its files belong to it."""
    plain = parse(blob, BUNDLE[0])
    rest = {key: value for key, value in plain.items() if key != "digest"}
    digest = hashlib.sha256(canonical(rest)).hexdigest()
    named = (w_matrix.bundle_digest, w_matrix.bundle_id, w_matrix.bundle_version, w_matrix.rank)
    files = {
        name: {"bytes": members[f"w_matrix/{name}"][0], "sha256": members[f"w_matrix/{name}"][1]}
        for name in EVERY
        if f"w_matrix/{name}" in members
    }
    if (
        plain.get("digest") != digest
        or named != (digest, plain.get("id"), plain.get("version"), plain.get("rank"))
        or plain.get("files") != files
    ):
        raise PackageFormatError(f"the embedded bundle is not the one that {CONFIG} names")
