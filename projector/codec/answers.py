"""When two answers count as the same."""

from __future__ import annotations


def same_answer(given: str, truth: str) -> bool:
    """Whether two answers are equal up to case, outer blanks and a final full stop."""
    return _plain(given) == _plain(truth)


def _plain(text: str) -> str:
    return " ".join(text.lower().strip().rstrip(".").split())
