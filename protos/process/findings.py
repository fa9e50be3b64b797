"""A doctor's report: one finding for each check, green, yellow or red, and what to do."""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from protos.errors import BridgeError
from protos.process.clock import synchronised
from protos.process.console import printable

GREEN, YELLOW, RED = "green", "yellow", "red"
_SUBJECT = 22
_FOUND_AT = 6 + 2 + _SUBJECT + 2
_COLOURS = {GREEN: "\x1b[32m", YELLOW: "\x1b[33m", RED: "\x1b[31m"}
_RELEASED_S = 1_790_000_000.0  # before this program existed
_SOON_S = 14 * 86400.0
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


def findings(subject: str, checks: Checks, limit_s: float | None = None) -> Iterator[Finding]:
    """Run the checks of a subject; an error becomes a red line.

    Args:
        subject: what is checked.
        checks: the check.
        limit_s: longest time that it may take, seconds; then its line is red and it is left behind
            in a thread. None: as long as it takes.
    """
    if limit_s is None:
        yield from _tried(subject, checks)
        return
    found: list[Finding] = []

    def work() -> None:
        for finding in _tried(subject, checks):
            found.append(finding)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        yield from list(found)
        yield Finding(
            subject, RED, f"no answer within {limit_s:g} s", "a driver, disk or network hangs"
        )
        return
    yield from found


def _tried(subject: str, checks: Checks) -> Iterator[Finding]:
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


def show(finding: Finding, say: Callable[[str], None]) -> None:
    """Show a finding to people.

    Args:
        finding: the finding.
        say: prints a line.
    """
    level = finding.level.upper().ljust(6)
    if sys.stdout.isatty():
        level = f"{_COLOURS[finding.level]}{level}\x1b[0m"
    first, *rest = _wrapped(finding.found)
    say(f"{level}  {finding.subject.ljust(_SUBJECT)}  {first}")
    rest += _wrapped(f"→ {finding.advice}", "  ") if finding.advice else []
    for line in rest:
        say(f"{'':{_FOUND_AT}}{line}")


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Text in lines that fit beside the first two columns; no word is cut."""
    width = max(30, shutil.get_terminal_size().columns - _FOUND_AT)
    return textwrap.wrap(
        printable(text),
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


# ---------------------------------------------------------------------- checks of both doctors


def clock() -> Iterator[Finding]:
    """Whether the clock is plausible and synchronised."""
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _RELEASED_S:
        yield Finding(
            "clock",
            RED,
            f"{shown}: before this program was made",
            "set it: certificates expire by it",
        )
        return
    in_step = synchronised()
    if in_step is None:
        yield Finding("clock", YELLOW, f"{shown}; the kernel does not say if it is synchronised",
                      "run an NTP client, such as chrony")  # fmt: skip
    elif not in_step:
        yield Finding(
            "clock",
            YELLOW,
            f"{shown}; not synchronised",
            "run an NTP client, such as chrony or systemd-timesyncd (in a container: on the host)",
        )
    else:
        yield Finding("clock", GREEN, f"{shown}, synchronised")


def ending(
    subject: str, found: str, end_s: float, by_hand: bool, who: str = "a running service"
) -> Finding:
    """When a certificate expires.

    Args:
        subject: what it is.
        found: text about it.
        end_s: when it expires, seconds since 1970.
        by_hand: whether the operator must renew it.
        who: renews it if the operator need not.
    """
    left_s = end_s - time.time()
    found = f"{found}, ends {time.strftime('%Y-%m-%d', time.gmtime(min(end_s, 4e9)))}"
    renew = "renew it" if by_hand else f"{who} renews it by itself"
    if left_s <= 0:
        return Finding(subject, RED if by_hand else YELLOW, f"{found}: it has expired", renew)
    if left_s < _SOON_S:
        return Finding(subject, YELLOW if by_hand else GREEN, found, renew if by_hand else "")
    return Finding(subject, GREEN, found)
