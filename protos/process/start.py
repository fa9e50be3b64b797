"""How a console script begins: its module is imported, which can take seconds.

Imports the standard library alone, so that it is there at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress

_INTERRUPTED = 130


def start(module: str, program: str, argv: Sequence[str] | None = None) -> int:
    """Import a program's module and run its `main`.

    Ctrl-C while libraries are imported ends the program as it does later (`console.run`).

    Args:
        module: holds `main`.
        program: its name.
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    try:
        main = importlib.import_module(module).main
    except KeyboardInterrupt:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(f"{program}: interrupted\n")
        return _INTERRUPTED
    return int(main(argv))
