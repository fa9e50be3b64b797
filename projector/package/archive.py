"""The archive of a package: ZIP without compression (APPNOTE 6.3), in one canonical form.

Reading never allocates more than the file's size.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from projector.package.form import MAX_BYTES, MAX_JSON_BYTES, ORDERS, Blob
from protos.errors import PackageCorruptError, PackageFormatError

_CHUNK_BYTES = 1 << 19
_LOCAL = struct.Struct("<I5H3I2H")
_CENTRAL = struct.Struct("<I6H3I5H2I")
_END = struct.Struct("<I4H2IH")
_MAGIC = (0x04034B50, 0x02014B50, 0x06054B50)
_VERSION, _UNIX, _DATE = 20, 3 << 8, 1 << 5 | 1  # 1 January 1980, ZIP's first date
_MODE = (stat.S_IFREG | 0o644) << 16
_MAX_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Entry:
    """A member's place in the archive; makes its two headers.

    Attributes:
        name: the member's name.
        size: its size in bytes.
        crc: CRC-32 of its bytes.
        at: offset of its local header.
    """

    name: str
    size: int
    crc: int
    at: int

    @property
    def local(self) -> bytes:
        """The local header, before its bytes."""
        head = (_MAGIC[0], _VERSION, 0, 0, 0, _DATE, self.crc, self.size, self.size)
        return _LOCAL.pack(*head, len(self.name), 0) + self.name.encode()

    @property
    def central(self) -> bytes:
        """Its entry in the central directory."""
        head = (_MAGIC[1], _UNIX | _VERSION, _VERSION, 0, 0, 0, _DATE, self.crc)
        tail = (self.size, self.size, len(self.name), 0, 0, 0, 0, _MODE, self.at)
        return _CENTRAL.pack(*head, *tail) + self.name.encode()

    @property
    def data(self) -> int:
        """Offset of its first byte."""
        return self.at + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        """Offset after its last byte."""
        return self.data + self.size


def _tail(entries: Sequence[Entry]) -> bytes:
    directory = b"".join(entry.central for entry in entries)
    count, at = len(entries), entries[-1].end
    return directory + _END.pack(_MAGIC[2], 0, 0, count, count, len(directory), at, 0)


def pack(members: Mapping[str, Blob]) -> Iterator[Blob]:
    """The file's bytes, in pieces."""
    total = sum(len(blob) for blob in members.values())
    if total + _MAX_TAIL_BYTES > MAX_BYTES:
        raise PackageFormatError(f"a package of {total} bytes; at most {MAX_BYTES} can be written")
    entries: list[Entry] = []
    for name, blob in members.items():
        at = entries[-1].end if entries else 0
        entries.append(Entry(name, len(blob), zlib.crc32(blob), at))
        yield entries[-1].local
        yield blob
    yield _tail(entries)


def read_entries(file: int, size: int) -> list[Entry]:
    """Read the archive's directory; the writer must have made the same one."""
    if size > MAX_BYTES:
        raise PackageFormatError(f"{size} bytes, at most {MAX_BYTES} are read")
    length = min(size, _MAX_TAIL_BYTES)
    tail = read_exactly(file, length, size - length)
    magic, *_, count, directory, _, _ = (
        _END.unpack(tail[-_END.size :]) if size >= _END.size else (0,) * 8
    )
    at = length - _END.size - directory
    if magic != _MAGIC[2] or at < 0:
        raise PackageCorruptError("not a package, or truncated, or something follows it")
    entries: list[Entry] = []
    for _ in range(min(count, max(map(len, ORDERS)))):
        if at + _CENTRAL.size > length - _END.size:
            raise PackageCorruptError("its directory is cut short")
        head = _CENTRAL.unpack_from(tail, at)
        end = at + _CENTRAL.size + head[10]
        name = tail[at + _CENTRAL.size : end].decode("latin-1")
        start = entries[-1].end if entries else 0
        entries.append(Entry(name, head[9], head[7], start))
        at = end
    names = tuple(entry.name for entry in entries)
    if names not in ORDERS:
        raise PackageFormatError(f"it holds {list(names)}, not the members of a package")
    # The sizes add up to the file's size, so no more than that is ever allocated.
    if entries[-1].end + directory + _END.size != size:
        raise PackageCorruptError(f"its members do not add up to its {size} bytes")
    if not tail.endswith(_tail(entries)):
        raise PackageCorruptError("its directory is not in canonical form: altered")
    for entry in entries:
        if entry.size > MAX_JSON_BYTES.get(entry.name, MAX_BYTES):
            raise PackageFormatError(f"{entry.name} has {entry.size} bytes")
        if read_exactly(file, len(entry.local), entry.at) != entry.local:
            raise PackageCorruptError(f"the header of {entry.name} is not canonical: altered")
    return entries


def read_member(file: int, entry: Entry, keep: bool) -> tuple[memoryview | None, str]:
    """A member's bytes (None unless `keep`) and SHA-256; its CRC is checked."""
    buffer = memoryview(bytearray(entry.size if keep else min(entry.size, _CHUNK_BYTES)))
    digest, crc, done = hashlib.sha256(), 0, 0
    while done < entry.size:
        start = done if keep else 0
        view = buffer[start : start + min(_CHUNK_BYTES, entry.size - done)]
        count = os.preadv(file, [view], entry.data + done)
        if count <= 0:
            raise PackageCorruptError(f"{entry.name} ends early: truncated")
        digest.update(view[:count])
        crc = zlib.crc32(view[:count], crc)
        done += count
    if crc != entry.crc:
        raise PackageCorruptError(f"{entry.name} does not match its checksum: altered")
    return (buffer.toreadonly() if keep else None), digest.hexdigest()


def read_exactly(file: int, count: int, at: int) -> bytes:
    """Read `count` bytes at an offset; PackageCorruptError if there are fewer."""
    blob = os.pread(file, count, at)
    if len(blob) != count:
        raise PackageCorruptError("it ends early: truncated")
    return blob
