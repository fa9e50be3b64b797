"""Text files as people make them, files written whole or not at all, folders for a while.

Knows bytes, encodings and paths. A byte-order mark of UTF-8 is no part of a text; another encoding
is refused by its name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from protos.errors import BridgeError, ConfigError

_MARK = b"\xef\xbb\xbf"


def without_mark(raw: bytes, named: object, kind: type[BridgeError] = ConfigError) -> bytes:
    """Bytes of UTF-8, without the byte-order mark that some editors put in front.

    Args:
        raw: the beginning of a file, or all of it.
        named: the file, for the message.
        kind: the error to raise.

    Raises:
        BridgeError: of that kind, where the bytes are UTF-16 or UTF-32.
    """
    other = _other_encoding(raw)
    if other:
        raise kind(f"{named} cannot be read as a text: it is {other}; save it as UTF-8")
    return raw.removeprefix(_MARK)


def text_of(raw: bytes, named: object, kind: type[BridgeError] = ConfigError) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Args:
        raw: the file's bytes.
        named: the file, for the message.
        kind: the error to raise.

    Raises:
        BridgeError: of that kind, where they are no UTF-8; another encoding is named.
    """
    try:
        return without_mark(raw, named, kind).decode()
    except UnicodeDecodeError as error:
        raise kind(f"{named} cannot be read as a text: {error}") from error


def write_whole(path: Path, text: str, what: str) -> None:
    """Write a file that is never seen half written.

    Args:
        path: the file.
        text: all of it.
        what: what it is, for the message.

    Raises:
        ConfigError: it cannot be written.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise ConfigError(f"{what} {path} cannot be written: {error.strerror or error}") from error


def temporary_folder(prefix: str, instead: str) -> Path:
    """Make an owner-only folder for temporary files.

    Args:
        prefix: of its name.
        instead: what to do where there is nowhere to make it, for the message.

    Raises:
        ConfigError: there is nowhere to make it.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"there is nowhere to write temporary files ({why}): {instead}"
        ) from error


def settle_temporary(environ: MutableMapping[str, str]) -> None:
    """Have this process and its children put temporary files where they can be written.

    Where none of the usual folders can be (a read-only container), the folder of this user's
    session or shared memory is taken. Where these cannot be either, /tmp stays, so that libraries
    that only ask for its name go on and what does need a file says why it has none.
    """
    try:
        tempfile.gettempdir()
        return
    except OSError:
        pass
    others = (environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}", "/dev/shm")
    usable = [other for other in others if other and os.access(other, os.W_OK | os.X_OK)]
    tempfile.tempdir = usable[0] if usable else "/tmp"
    if usable:
        environ["TMPDIR"] = usable[0]


def expanded(path: Path) -> Path:
    """A path whose leading `~` is the home folder.

    Raises:
        ConfigError: there is no home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: this user has no home folder (no HOME, no passwd entry): give the whole path"
        ) from error


def _other_encoding(raw: bytes) -> str:
    for mark, name in (
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ):
        if raw.startswith(mark):
            return name
    # A text in UTF-32 is three quarters of zeros, a western one in UTF-16 half.
    head = raw[:1024]
    nul = head.count(0) / max(1, len(head))
    if nul >= 0.25 and len(head) >= 4:
        return f"UTF-{32 if nul > 0.6 else 16} without a byte-order mark"
    return ""
