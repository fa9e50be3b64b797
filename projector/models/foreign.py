"""Turns exceptions of third-party libraries into typed errors.

The error names a file (or device, or package), what was wrong and what to do. The library's own
exception stays chained to it. This module imports no such library.
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
    """Raise `error` for any exception that a library raises inside.

    Args:
        what: the file, or whatever is at fault; starts the message.
        advice: what to do; ends the message.
        error: the class to raise.
        mixed: the block also has our own code. What our code raises is our mistake and passes
            through unchanged, except errors from torch and the disk.
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
def importing(who: str, instead: str = "") -> Iterator[None]:
    """Raise a `ModelError` for a library that is missing or clashes with another.

    Args:
        who: starts the message, such as "the small model".
        instead: ends the message: another way out.
    """
    try:
        yield
    except BridgeError:
        raise
    except Exception as met:
        lack = lacking(met)
        if lack is None:
            raise
        raise ModelError(f"{who} {lack}{instead}") from met


def plain_file(
    file: Path, advice: str, error: type[BridgeError] = ModelError, most: int = 1 << 62
) -> None:
    """Refuse a path that is not a readable plain file: a pipe, a folder, or missing.

    Raises:
        BridgeError: `error`, if the file is missing, empty, not regular, longer than `most` bytes
            or not readable by us.
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
        with file.open("rb"):  # checks the permission to read
            pass


def lacking(met: BaseException) -> str | None:
    """Why an import failed, and what to do: names the package; None for any other exception.

    `transformers` replaces a failed import with an error of its own that names no package, so the
    exception's causes are searched.
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
    if asked is not None:  # `requires_backends` writes a page of text
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
    """An exception's message on one line, without its class or a bare key."""
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
    if field is not None:  # a validator's page of text about one value
        return f"the field '{field[1]}' cannot be {field[2] or field[3]}"[:_MOST_WORDS]
    lines = [line.strip() for line in _ESCAPES.sub("", str(met)).splitlines() if line.strip()]
    words = lines[0] if lines else ""
    for line in lines[1:]:  # a validator gives the reason on a line of its own
        if _ERROR_NAME.match(line):
            words = f"{words.rstrip(':')}: {line}" if words else line
            break
    words = _ERROR_NAMES.sub("", words).strip().rstrip(".")
    words = words.replace("Error while deserializing header", "its header is damaged")
    words = words if len(words) <= _MOST_WORDS else words[:_MOST_WORDS] + " …"
    if isinstance(met, (TypeError, AttributeError, IndexError)):
        told = "" if _OF_PYTHON.search(words) else f" ({words})"
        return f"a value has the wrong type or is missing{told}"
    if "huggingface.co" in words:  # it tried to download the missing part
        return "a part that it needs is missing or damaged"
    return words or "it is damaged"


def _quoted(key: object) -> str:
    return f"'{key}'" if isinstance(key, str) else f"{key!r}"


def _chain(met: BaseException) -> list[BaseException]:
    """An exception, its cause, that one's cause, and so on; at most a hundred."""
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
    """Top-level packages of a traceback's frames, outermost first."""
    names = []
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    return names


def _package(trace: TracebackType | None) -> str | None:
    """The innermost package in the traceback, except ours and those that every import uses."""
    known = (*_OURS, *_BETWEEN, "", "__main__", "tests")
    names = [n for n in _modules(trace) if n not in known and n not in sys.stdlib_module_names]
    return names[-1] if names else None


def _ours(met: BaseException) -> bool:
    """Whether our own code raised it, not a library's compiled extension called from our code."""
    if isinstance(met, (RuntimeError, OSError, MemoryError)) and not isinstance(
        met, (RecursionError, NotImplementedError)
    ):
        return False
    modules = _modules(met.__traceback__)
    return bool(modules) and modules[-1] in _OURS
