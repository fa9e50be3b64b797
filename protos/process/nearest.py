"""What somebody meant who wrote a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str], shown: str = "{}") -> str:
    """A hint with the known name that is nearest; empty if none is near."""
    begun = [one for one in known if len(name.strip("-")) > 1 and one.startswith(name)]
    near = begun[:1] or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {shown.format(near[0])}?" if near else ""
