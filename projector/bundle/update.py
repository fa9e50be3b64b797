"""Reads an update: nothing is unpacked before its signature and every file are verified.

Devices read what they install, the service what it offers them.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from projector.bundle.keys import Signature, TrustedKeys
from protos.errors import FrameMalformedError, SignatureError, UpdateError
from protos.process.files import writing
from protos.process.folders import open_file
from protos.strict_json import read_json
from protos.update import (
    MANIFEST,
    MAX_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    SIGNED,
    Manifest,
)

_END = struct.Struct("<4s4H2LH")
_MAX_DIRECTORY_BYTES = MAX_FILES * 512
_CHUNK_BYTES = 1 << 20
_DAMAGED = (zipfile.BadZipFile, EOFError, struct.error, RuntimeError, ValueError, OSError)
"""What the library raises for damaged archives: also for encryption, odd versions and offsets."""


@dataclass(frozen=True)
class Update:
    """A verified update, open for unpacking.

    Attributes:
        manifest: what it holds.
        digest: hexadecimal SHA-256 of the manifest; names the update.
        signer: name of the trusted key that signed it.
    """

    manifest: Manifest
    digest: str
    signer: str
    _archive: zipfile.ZipFile

    def unpack(self, kind: str, folder: Path) -> None:
        """Write the files of one kind into a new folder, each checked again and synced.

        Raises:
            UpdateError: a file changed meanwhile.
            DiskFullError: there is no room.
        """
        for name, file in self.manifest.files.items():
            first, _, rest = name.partition("/")
            if first != kind:
                continue
            place = folder / rest
            with writing(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as out:
                    for chunk in _checked(self._archive, name, file.bytes, file.sha256):
                        out.write(chunk)
                    out.flush()
                    os.fsync(out.fileno())


@contextmanager
def open_update(path: Path, trusted: TrustedKeys) -> Iterator[Update]:
    """Open an update and verify it: form, signature, then every file.

    Raises:
        UpdateError: it cannot be read, or is damaged.
        SignatureError: no trusted key signed it.
    """
    try:
        file = open_file(path)
    except OSError as error:
        raise UpdateError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        _check_end(file.fileno(), path)
        try:
            archive = zipfile.ZipFile(file)
            update = _verified(archive, path, trusted)
        except _DAMAGED as error:
            raise UpdateError(f"{path} is damaged: {error}") from error
        with archive:
            yield update


def _check_end(number: int, path: Path) -> None:
    """The archive's last record, before the library allocates what it says."""
    size = os.fstat(number).st_size
    if not _END.size <= size <= MAX_BYTES:
        raise UpdateError(f"{path} has {size} bytes: it is no update")
    blob = os.pread(number, _END.size, size - _END.size)
    magic, disk, first, here, count, directory, at, comment = _END.unpack(blob)
    whole = at + directory + _END.size == size
    if magic != b"PK\5\6" or disk or first or here != count or comment or not whole:
        raise UpdateError(f"{path} is no update, or it is truncated, or something follows it")
    if count > MAX_FILES + 2 or directory > _MAX_DIRECTORY_BYTES:
        raise UpdateError(f"{path} lists {count} files in {directory} bytes: too many")


def _verified(archive: zipfile.ZipFile, path: Path, trusted: TrustedKeys) -> Update:
    infos = archive.infolist()
    if [info.filename for info in infos[:2]] != [MANIFEST, SIGNATURE]:
        raise UpdateError(f"{path} does not begin with {MANIFEST} and {SIGNATURE}")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise UpdateError(f"{info.filename!r} is compressed, an update's files are not")
    blob = _small(archive, infos[0], MAX_MANIFEST_BYTES)
    signer = trusted.verify(SIGNED + blob, _signature(archive, infos[1]))
    manifest = Manifest.from_json(blob)
    held = {info.filename: info.file_size for info in infos[2:]}
    if len(held) != len(infos) - 2 or held != {n: f.bytes for n, f in manifest.files.items()}:
        raise UpdateError(f"{path} does not hold the files of its list")
    for name, file in manifest.files.items():
        for _ in _checked(archive, name, file.bytes, file.sha256):
            pass
    return Update(manifest, hashlib.sha256(blob).hexdigest(), signer, archive)


def _signature(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Signature:
    try:
        plain = read_json(
            _small(archive, info, MAX_SIGNATURE_BYTES), MAX_SIGNATURE_BYTES, SIGNATURE
        )
        return Signature(key=str(plain["key"]), value=str(plain["value"]))
    except (FrameMalformedError, KeyError, TypeError) as error:
        raise SignatureError(f"{SIGNATURE} holds no signature: {error}") from error


def _small(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    if info.file_size > most:
        raise UpdateError(f"{info.filename} has {info.file_size} bytes, at most {most} are read")
    return archive.read(info)


def _checked(archive: zipfile.ZipFile, name: str, size: int, sha256: str) -> Iterator[bytes]:
    """A member's bytes; the end raises where size or digest differ."""
    digest, done = hashlib.sha256(), 0
    try:
        with archive.open(name) as member:
            while chunk := member.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                yield chunk
    except zipfile.BadZipFile as error:
        raise UpdateError(f"{name} is damaged: {error}") from error
    if done != size or digest.hexdigest() != sha256:
        raise UpdateError(f"{name} does not match its digest: altered")
