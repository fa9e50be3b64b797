"""One line of the doctor's report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from protos.errors import BridgeError

GREEN, YELLOW, RED = "green", "yellow", "red"
Checks = Callable[[], Iterable["Finding"]]
"""A check: makes the findings about one subject."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: what was checked.
        level: green, yellow (it runs, but look at it) or red (it will not run).
        found: what was found, in words.
        advice: what to do; empty if green.
    """

    subject: str
    level: str
    found: str
    advice: str = ""


def findings(subject: str, checks: Checks) -> Iterator[Finding]:
    """Run the checks of a subject; an error becomes a red line."""
    try:
        yield from checks()
    except BridgeError as error:
        yield Finding(subject, RED, error.message, f"see error {error.code} ({error.name})")
    except Exception as error:  # a check that fails must not stop the others
        yield Finding(
            subject,
            RED,
            f"could not be checked: {type(error).__name__}: {error}",
            "the check itself failed: report it",
        )
