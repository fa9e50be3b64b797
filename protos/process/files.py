"""Files written whole or not at all, text files in UTF-8, temporary folders.

`write_file` and `write_files` are the only atomic writes of the project. A UTF-8 byte-order mark is
dropped; another encoding is refused, and the message names it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path

from protos.errors import BridgeError, ConfigError, DiskFullError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MARK = b"\xef\xbb\xbf"
_HALF_WRITTEN_S = 3600.0

Content = bytes | Iterable[bytes | memoryview]


def write_file(path: Path, content: Content, mode: int = 0o666) -> None:
    """Write a file that is never seen half written; others may write it at the same time.

    Args:
        path: the file, in a folder that exists.
        content: all of it, or its parts.
        mode: permissions, less the process's umask.

    Raises:
        OSError: it cannot be written; the old file is unchanged, and no draft is left.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        _write(draft, content, os.O_EXCL, mode)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def write_files(folder: Path, contents: Mapping[str, bytes], gone: Sequence[str] = ()) -> None:
    """Write all of some files or none of them; nobody else writes to the folder meanwhile.

    Args:
        folder: made if need be.
        contents: all written beside their places first, then put there in this order.
        gone: files to remove in between.

    Raises:
        DiskFullError: there is no room; the old files are unchanged.
        ConfigError: they cannot be written for another reason.
    """
    drafts = {name: folder / (name + ".part") for name in contents}
    with writing(f"{sum(map(len, contents.values()))} bytes in {folder}"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, draft in drafts.items():
                _write(draft, contents[name], os.O_TRUNC)
            for name in gone:
                (folder / name).unlink(missing_ok=True)
            for name, draft in drafts.items():
                os.replace(draft, folder / name)
        finally:
            for draft in drafts.values():
                with contextlib.suppress(OSError):
                    draft.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turn the system's error of a write into a typed error.

    Args:
        what: the thing written, for the message.

    Raises:
        DiskFullError: there is no room.
        ConfigError: it cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(f"no room to write {what}: {error.strerror}") from error
        raise ConfigError(f"cannot write {what}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Sync a folder's names to the disk, so that a power cut does not undo a rename.

    Raises:
        OSError: it cannot be synced.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def stamp(path: Path) -> tuple[int, ...]:
    """A value that changes when a file is changed or replaced; empty if it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size


def drop_drafts(folder: Path) -> None:
    """Remove a folder's drafts that are over an hour old: killed processes left them."""
    for draft in folder.glob("*.part"):
        with contextlib.suppress(OSError):  # its writer may have renamed it meanwhile
            if time.time() - draft.stat().st_mtime > _HALF_WRITTEN_S:
                draft.unlink()


def _write(draft: Path, content: Content, flag: int, mode: int = 0o666) -> None:
    """Write a draft and sync it to the disk."""
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flag, mode)
    try:
        for part in (content,) if isinstance(content, bytes) else content:
            view = memoryview(part)
            while view:
                view = view[os.write(file, view) :]
        os.fsync(file)
    finally:
        os.close(file)


def without_mark(raw: bytes, named: object, kind: type[BridgeError] = ConfigError) -> bytes:
    """Bytes of UTF-8, without the byte-order mark that some editors put in front.

    Args:
        raw: the beginning of a file, or all of it.
        named: the file, for the message.
        kind: the error to raise.

    Raises:
        BridgeError: of that kind, if the bytes are UTF-16 or UTF-32.
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
        BridgeError: of that kind, if they are not UTF-8; the message names the encoding.
    """
    try:
        return without_mark(raw, named, kind).decode()
    except UnicodeDecodeError as error:
        raise kind(f"{named} cannot be read as a text: {error}") from error


def temporary_folder(prefix: str, instead: str) -> Path:
    """Make an owner-only folder for temporary files.

    Args:
        prefix: its name's beginning.
        instead: what the user should do if it cannot be made, for the message.

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
    """Choose a writable folder for temporary files of this process and its children.

    If none of the usual folders can be written (a read-only container), the folder of this user's
    session or shared memory is taken. If these cannot be written either, /tmp stays: libraries that
    only ask for its name go on, and whoever needs a file gets an error that says why.
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
