"""Reads a backup's passphrase from a file or the terminal, never from the command line."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

from protos.errors import ConfigError
from protos.process.files import text_of

_LONGEST_BYTES = 4096


def add_passphrase_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--passphrase-file`."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="file whose first line is the passphrase (default: ask for it on the terminal)",
    )


def passphrase(file: Path | None, *, twice: bool) -> str:
    """Read the passphrase.

    Args:
        file: its first line is the passphrase; None asks on the terminal.
        twice: ask a second time, because a mistake would make the backup useless.

    Raises:
        ConfigError: the file cannot be read, there is no terminal, the passphrase is empty, or
        the second one differs.
    """
    if file is not None:
        try:
            with file.open("rb") as opened:
                raw = opened.read(_LONGEST_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from error
        if len(raw) > _LONGEST_BYTES:
            raise ConfigError(f"{file} is longer than {_LONGEST_BYTES} bytes: not a passphrase")
        given = text_of(raw, file).partition("\n")[0].rstrip("\r")
        if not given:
            raise ConfigError(f"{file}: its first line is empty")
        return given
    if not sys.stdin.isatty():
        raise ConfigError("no terminal to ask for the passphrase: give --passphrase-file")
    given = getpass.getpass("passphrase: ")
    if twice and getpass.getpass("once more: ") != given:
        raise ConfigError("the two passphrases differ")
    return given
