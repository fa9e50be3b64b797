"""Suggests a name for one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(name: str, known: Iterable[str]) -> str:
    """The known names that are nearest to a name, as the end of a message; empty without any."""
    found = difflib.get_close_matches(name[:80], list(known), n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""
