"""One line of the doctor's report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from protos.errors import BridgeError

GREEN, YELLOW, RED = "green", "yellow", "red"
Checks = Callable[[], Iterable["Finding"]]
"""Makes the findings about one subject."""


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        subject: what was looked at.
        level: green, yellow (it runs, but look at it) or red (it will not run).
        found: in words.
        advice: what to do; empty if green.
    """

    subject: str
    level: str
    found: str
    advice: str = ""


def findings(subject: str, checks: Checks) -> Iterator[Finding]:
    """What the checks of a subject find; an error becomes a red line of its own."""
    try:
        yield from checks()
    except BridgeError as error:
        yield Finding(subject, RED, error.message, f"see error {error.code} ({error.name})")
    except Exception as error:  # a doctor that falls ill says so and goes on
        yield Finding(
            subject,
            RED,
            f"could not be checked: {type(error).__name__}: {error}",
            "this is a fault of the doctor's, or of what it looked at: report it",
        )
