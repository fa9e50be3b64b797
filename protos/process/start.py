"""How a console script begins: its module is imported, which can take seconds.

It imports only the standard library, so that it is ready at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

_INTERRUPTED = 130
_CIPHERS = ("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-CHACHA20-POLY1305")
"""Turns TLS 1.2 off in gRPC: no cipher is left that fits a certificate. TLS 1.3 has its own.
gRPC has no setting for it, and reads this variable on import."""
_QUIET = ("GRPC_VERBOSITY", "NONE")
"""Stops gRPC from printing every failed TLS handshake; it too reads this on import."""


def start(module: str, program: str, extra: str, argv: Sequence[str] | None = None) -> int:
    """Import a program's module and run its `main`.

    Ctrl-C while libraries are imported, and a library that is missing, end the program as they do
    later (`console.run`).

    Args:
        module: holds `main`.
        program: its name.
        extra: the extra of this distribution that brings what the program imports.
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    for variable in (_CIPHERS, _QUIET):
        os.environ.setdefault(*variable)
    try:
        main = importlib.import_module(module).main
    except KeyboardInterrupt:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"{program}: interrupted\n")
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        from protos.process import console

        return console.lacks(program, extra, error)
    return int(main(argv))
