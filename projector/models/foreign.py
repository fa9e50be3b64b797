"""The one guard around libraries of others: what they raise becomes a typed error.

Such an error names a file (or a device, or a package), what was wrong with it and what to do. The
library's own exception stays chained to it. Imports no library itself.
"""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from protos.errors import BridgeError, ModelError

_OURS = ("projector", "protos", "edge_agent", "cloud_server", "reference", "benchmarks")
_BETWEEN = ("torch", "transformers", "importlib", "_frozen_importlib", "functools", "contextlib")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_NAME = re.compile(r"^(?:[A-Za-z_][\w.]*)?(?:Error|Exception)\s*:\s*")
_ERROR_NAMES = re.compile(r"(?<![\w.])[A-Za-z_][\w.]*(?:Error|Exception):\s*")
_FIELD = re.compile(r"Field '(\w+)'.*?(?:with value (.*?) doesn't match|\(value: (.*?)\))", re.S)
_REQUIRES = re.compile(r"(\w+) requires the ([\w-]+) library")
_OF_PYTHON = re.compile(r"object|operand|argument|<class|subscript|index out of|ufunc|sequence")
_MOST_WORDS = 300


@contextmanager
def foreign(
    what: Path | str, advice: str, error: type[BridgeError] = ModelError, mixed: bool = False
) -> Iterator[None]:
    """Turn whatever the libraries called inside raise into `error`.

    Args:
        what: the file, or whatever else is at fault; begins the message.
        advice: what to do; ends the message.
        error: the class to raise.
        mixed: the block holds lines of our own too; what one of them raised, other than torch's
            and the disk's errors, is a mistake of ours and stays what it is.
    """
    try:
        yield
    except BridgeError:
        raise
    except BaseException as met:
        if not isinstance(met, Exception) and type(met).__name__ != "PanicException":
            raise  # an interrupt, an exit
        if mixed and _ours(met):
            raise
        lack = lacking(met)
        raise error(f"{what}: {lack or f'{in_words(met)}; {advice}'}") from met


@contextmanager
def importing(who: str) -> Iterator[None]:
    """Turn a library that is missing, or that clashes with another, into a `ModelError`.

    Args:
        who: begins the message, such as "the small model".
    """
    try:
        yield
    except BridgeError:
        raise
    except Exception as met:
        lack = lacking(met)
        if lack is None:
            raise
        raise ModelError(f"{who} {lack}") from met


def plain_file(
    file: Path, advice: str, error: type[BridgeError] = ModelError, most: int = 1 << 62
) -> None:
    """Refuse what a library cannot read as a file, or would wait for: a pipe, a folder, nothing.

    Raises:
        BridgeError: `error`, if it is missing, empty, no regular file, longer than `most` bytes or
            not ours to read.
    """
    with foreign(file, advice, error):
        status = file.stat()  # follows links
        found = ""
        if stat.S_ISDIR(status.st_mode):
            found = "it is a folder where a file should be"
        elif not stat.S_ISREG(status.st_mode):
            found = "it is no regular file (a pipe or a device)"
        elif status.st_size == 0:
            found = "it is empty"
        elif status.st_size > most:
            found = f"it has {status.st_size} bytes, at most {most} are read"
        if found:
            raise error(f"{file}: {found}; {advice}")
        with file.open("rb"):  # whether it may be read at all
            pass


def lacking(met: BaseException) -> str | None:
    """The package at the root of a failed import and what to do; None if it is something else.

    `transformers` answers every failed import inside itself with one of its own that names no
    package: the cause is looked for behind it.
    """
    chain = _chain(met)
    if not any(isinstance(one, ImportError) for one in chain):
        return None
    root = chain[-1]
    if isinstance(root, ModuleNotFoundError) and root.name:
        package = root.name.partition(".")[0]
        return None if package in _OURS else f"needs the package {package}: pip install {package}"
    clashing = _package(root.__traceback__)
    asked = _REQUIRES.search(str(root))
    if asked is not None:  # `requires_backends` says it in a page of words
        return (
            f"needs the package {asked[2].lower()} (for {asked[1]}), which is not installed: "
            "install the build of it that fits this torch"
        )
    if clashing is None:
        return f"needs a package that cannot be imported: {in_words(root)}"
    why = in_words(root)
    return (
        f"cannot use the package {clashing}, which is installed but does not load ({why}): "
        f"install the build of {clashing} that fits this torch, or uninstall it"
    )


def in_words(met: BaseException) -> str:
    """What an exception says, in words: no class, no bare key, one line."""
    if isinstance(met, KeyError):
        return f"it lacks {_quoted(met.args[0])}" if met.args else "it lacks a field"
    if isinstance(met, RecursionError):
        return "it is nested too deeply"
    if isinstance(met, MemoryError):
        return "it needs more memory than there is"
    if isinstance(met, UnicodeError):
        return "it is not UTF-8 text"
    if isinstance(met, json.JSONDecodeError):
        return f"it is not JSON: {met.msg} (line {met.lineno}, column {met.colno})"
    if isinstance(met, OSError) and met.strerror:
        return met.strerror[:1].lower() + met.strerror[1:]
    field = _FIELD.search(str(met))
    if field is not None:  # a validator's page about one value
        return f"the field '{field[1]}' cannot be {field[2] or field[3]}"[:_MOST_WORDS]
    lines = [line.strip() for line in _ESCAPES.sub("", str(met)).splitlines() if line.strip()]
    words = lines[0] if lines else ""
    for line in lines[1:]:  # a validator's reason is on a line of its own
        if _ERROR_NAME.match(line):
            words = f"{words.rstrip(':')}: {line}" if words else line
            break
    words = _ERROR_NAMES.sub("", words).strip().rstrip(".")
    words = words.replace("Error while deserializing header", "its header is damaged")
    words = words if len(words) <= _MOST_WORDS else words[:_MOST_WORDS] + " …"
    if isinstance(met, (TypeError, AttributeError, IndexError)):
        told = "" if _OF_PYTHON.search(words) else f" ({words})"
        return f"a value has the wrong type or is missing{told}"
    if "huggingface.co" in words:  # it would look for the rest on the network
        return "a part that it needs is missing or damaged"
    return words or "it is damaged"


def _quoted(key: object) -> str:
    return f"'{key}'" if isinstance(key, str) else f"{key!r}"


def _chain(met: BaseException) -> list[BaseException]:
    """An exception, what caused it, what caused that; at most a hundred."""
    chain = [met]
    while len(chain) < 100:
        last = chain[-1]
        behind = last.__cause__
        if behind is None and isinstance(last, ImportError):
            behind = last.__context__
        if behind is None or behind in chain:
            break
        chain.append(behind)
    return chain


def _modules(trace: TracebackType | None) -> list[str]:
    """Top-level packages of the frames, outermost first."""
    names = []
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    return names


def _package(trace: TracebackType | None) -> str | None:
    """The innermost package that is neither ours nor one of those that all imports go through."""
    known = (*_OURS, *_BETWEEN, "", "__main__", "tests")
    names = [n for n in _modules(trace) if n not in known and n not in sys.stdlib_module_names]
    return names[-1] if names else None


def _ours(met: BaseException) -> bool:
    """Whether a line of our own code raised it, and not a library's extension under that line."""
    if isinstance(met, (RuntimeError, OSError, MemoryError)) and not isinstance(
        met, (RecursionError, NotImplementedError)
    ):
        return False
    modules = _modules(met.__traceback__)
    return bool(modules) and modules[-1] in _OURS
