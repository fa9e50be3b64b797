"""A database's URL as it may be shown."""

from __future__ import annotations

import re


def without_password(url: str) -> str:
    """A URL whose passwords are stars, also where it is not quite a URL."""
    hidden = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"(password=)[^&]*", r"\1***", hidden)
