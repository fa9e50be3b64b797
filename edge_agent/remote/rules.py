"""What the service may do with this device: the section `[remote]` of the settings.

A setting that `protos.remote.SETTABLE` does not name can never be changed by the service, whatever
stands here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from protos.errors import NotAllowedHereError
from protos.remote import SETTABLE

USUAL = (
    "hold_every_s=1..86400",
    "linger_ms=0..60000",
    "trigger",
    "highest_point",
    "latency_objective_ms",
    "distortion_limit",
    "log_level",
)
"""Settings that the service may change unless the device's keeper says otherwise."""
_RANGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\.\.([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Rule:
    """One setting that the service may change.

    Attributes:
        name: of the setting.
        least, most: of a number; None: the setting's own bounds.
        words: the values that a text may have; empty: any.
    """

    name: str
    least: float | None = None
    most: float | None = None
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `NAME`, `NAME=LEAST..MOST` or `NAME=WORD|WORD`.

        Raises:
            ValueError: it is none of these, or the setting can never be changed from afar.
        """
        name, equals, rest = (part.strip() for part in text.partition("="))
        if name not in SETTABLE:
            near = difflib.get_close_matches(name, SETTABLE, n=1)
            hint = f"; did you mean {near[0]}?" if near else f": one of {', '.join(SETTABLE)}"
            raise ValueError(f"{name!r} can never be set by the service{hint}")
        if not equals:
            return cls(name)
        if found := _RANGE.fullmatch(rest):
            least, most = float(found[1]), float(found[2])
            if least > most:
                raise ValueError(f"{text!r}: {found[1]} is above {found[2]}")
            return cls(name, least, most)
        words = tuple(word.strip() for word in rest.split("|"))
        if not all(words):
            raise ValueError(f"{text!r}: write NAME, NAME=LEAST..MOST or NAME=WORD|WORD")
        return cls(name, words=words)

    def check(self, value: object) -> None:
        """Check a value, with the setting's own type.

        Raises:
            NotAllowedHereError: it is out of the bounds that this device's keeper set.
        """
        if self.least is not None and self.most is not None:
            if not isinstance(value, int | float) or not self.least <= value <= self.most:
                raise NotAllowedHereError(
                    f"{self.name} = {value!r}: this device allows {self.least:g} to {self.most:g}"
                )
        many = value if isinstance(value, tuple) else (value,)
        if self.words and any(str(one) not in self.words for one in many):
            raise NotAllowedHereError(
                f"{self.name} = {value!r}: this device allows {', '.join(self.words)}"
            )


class RemoteRules(BaseModel):
    """The section `[remote]`: what the service may do with this device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: tuple[str, ...] = Field(default=USUAL, description="settings that it may change")
    restart: bool = Field(default=True, description="whether it may have the agent start again")
    logs: bool = Field(default=True, description="whether it may fetch the log")
    capture: bool = Field(default=True, description="whether it may have a picture taken")
    vitals_every_s: float = Field(
        default=300.0,
        ge=0.0,
        le=86400.0,
        description="pause between two reports of how this device is (spool, heat, power), "
        "seconds; 0 reports nothing",
    )

    @field_validator("settings")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Rule.parse(text)
        return value

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rules by setting."""
        return {rule.name: rule for rule in map(Rule.parse, self.settings)}

    def require(self, what: str) -> None:
        """Check that the service may do something.

        Args:
            what: restart, logs or capture.

        Raises:
            NotAllowedHereError: it may not.
        """
        allowed: Any = getattr(self, what)
        if not allowed:
            raise NotAllowedHereError(f"this device's settings say [remote] {what} = false")
