"""A database's URL without its secrets, for messages."""

from __future__ import annotations

import re


def without_password(url: str) -> str:
    """Replace the passwords in a URL by stars, also in a malformed URL."""
    hidden = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"(password=)[^&]*", r"\1***", hidden)
