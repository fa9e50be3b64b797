"""What has arrived of an encoder that is being fetched."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

from edge_agent.uplink.part_file import PartFile
from protos.errors import BundleCorruptError


def require_digest(digest: str, blob: bytes | bytearray) -> None:
    """Check an encoder's bytes.

    Raises:
        BundleCorruptError: they have another SHA-256.
    """
    actual = _sha256(blob)
    if actual != digest:
        raise BundleCorruptError(
            f"the encoder arrived with SHA-256 {actual[:12]}…, the server named "
            f"{digest[:12]}…: fetch it again"
        )


class EncoderPart:
    """The bytes so far, in memory and, as long as they can be written, in a file.

    Args:
        digest: SHA-256 of the whole, in hexadecimal.
        begun: bytes that arrived in an earlier attempt and are not in the file.
        file: holds what arrived in earlier attempts; None: it cannot be on the disk.
        most_bytes: a longer file is not read.

    Attributes:
        data: the bytes, in order.
        resumed: whether some are from earlier attempts.
        kept: whether the encoder is in the store, so that the part is no longer needed.
    """

    def __init__(self, digest: str, begun: bytes, file: PartFile | None, most_bytes: int) -> None:
        self.digest, self.file = digest, file
        self.data, self.resumed, self.kept = bytearray(), False, False
        try:
            if file is not None and not begun and file.size <= most_bytes:
                self.data += file.read()
        except OSError:
            self.data.clear()
        if not self.data:
            self.clear()
            self.add(begun)
        self.resumed = bool(self.data)

    @property
    def whole(self) -> bool:
        """Whether these are the bytes of that digest."""
        return _sha256(self.data) == self.digest

    def add(self, piece: bytes) -> None:
        """Add what came; when the disk does not take it, the file goes and memory has it all."""
        self.data += piece
        self._write(lambda file: file.append(piece))

    def clear(self) -> None:
        """Begin anew."""
        self.data.clear()
        self.resumed = False
        self._write(PartFile.clear)

    def remove_file(self) -> None:
        """Keep no file of it."""
        file, self.file = self.file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.remove()

    def _write(self, change: Callable[[PartFile], None]) -> None:
        if self.file is not None:
            try:
                change(self.file)
            except OSError:
                self.remove_file()


def _sha256(blob: bytes | bytearray) -> str:
    return hashlib.sha256(blob).hexdigest()
