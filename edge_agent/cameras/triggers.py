"""When a picture is taken: every so often, on motion, on request, or when the small model says so.

A picture is taken if any trigger says so; without triggers every picture is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from protos.errors import ConfigError
from protos.process.settings import nearest

EVERY, MOTION, REQUEST, LOCAL = KINDS = ("every", "motion", "request", "local")
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_BOUND = re.compile(r"^(.*),\s*(min|max)=([^,]*)$", re.DOTALL)
_MOTION_SHARE = 0.01
_MOTION_MIN_S = 1.0
_LONGEST_S = 7 * 86400.0


@dataclass(frozen=True)
class Trigger:
    """One rule.

    Attributes:
        kind: one of `KINDS`.
        every_s: of `every`: seconds from one picture to the next.
        share: of `motion`: share of the picture that has to move, 0 to 1.
        question: of `local`: what the small model is asked about each picture.
        answer: of `local`: the answer at which the picture is taken.
        min_s: of `motion` and `local`: shortest time between two pictures by this rule, seconds.
        max_s: of `motion`: longest time between two pictures, seconds; 0: any.
    """

    kind: str
    every_s: float = 0.0
    share: float = _MOTION_SHARE
    question: str = ""
    answer: str = ""
    min_s: float = 0.0
    max_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Trigger:
        """Read `every=10s`, `motion=0.02,min=2s,max=60s`, `request` or `local=question=answer`.

        Raises:
            ConfigError: it is none of these, or a value cannot be used.
        """
        rest, bounds = text.strip(), {}
        while found := _BOUND.match(rest):
            if found[2] in bounds:
                raise ConfigError(f"trigger {text!r}: {found[2]} is given twice")
            bounds[found[2]] = _seconds(found[3], text)
            rest = found[1]
        kind, equals, value = rest.partition("=")
        kind, value = kind.strip(), value.strip().strip('"')
        if kind not in KINDS:
            hint = nearest(kind, KINDS) or f": one of {', '.join(KINDS)}"
            raise ConfigError(f"trigger {text!r}: there is no trigger {kind!r}{hint}")
        least = bounds.get("min", _MOTION_MIN_S if kind == MOTION else 0.0)
        most = bounds.get("max", 0.0)
        if most and most < least:
            raise ConfigError(f"trigger {text!r}: max is shorter than min")
        if kind == EVERY:
            if bounds:
                raise ConfigError(f"trigger {text!r}: every has no min or max")
            return cls(kind, every_s=_seconds(value, text))
        if kind == MOTION:
            return cls(kind, share=_share(value, text), min_s=least, max_s=most)
        if kind == LOCAL:
            if most:
                raise ConfigError(f"trigger {text!r}: add every=… instead of max")
            question, _, answer = value.rpartition("=")
            question, answer = question.strip().strip('"'), answer.strip().strip('"')
            if not question or not answer:
                example = "local=is there a fire ?=yes"
                raise ConfigError(f"trigger {text!r}: write question and answer, as in {example!r}")
            return cls(kind, question=question, answer=answer, min_s=least)
        if equals:
            raise ConfigError(f"trigger {text!r}: request has no value")
        if bounds:
            raise ConfigError(f"trigger {text!r}: request has no min or max")
        return cls(kind)

    def answered_by(self, said: str) -> bool:
        """Of `local`: whether the small model said the answer, whatever the case."""
        return said.strip().rstrip(".").casefold() == self.answer.rstrip(".").casefold()


@dataclass
class Triggers:
    """The rules of one camera, and when each was last kept.

    Attributes:
        rules: any of them takes a picture; without one every picture is taken.
    """

    rules: Sequence[Trigger] = ()
    _last: dict[Trigger, float] = field(default_factory=dict)
    _due: dict[Trigger, float] = field(default_factory=dict)
    _requested: bool = False

    def request(self) -> None:
        """Have the next picture taken, whatever the rules say."""
        self._requested = True

    def judge(self, now: float, motion: float) -> Trigger | None:
        """The rule that takes a picture, or None.

        Args:
            now: when it was made, seconds on any clock that does not go back.
            motion: share of it that moved.
        """
        if self._requested:
            self._requested = False
            return _ON_REQUEST
        if not self.rules:
            return _ALWAYS
        kept = [cause for rule in self.rules if (cause := self._keeps(rule, now, motion))]
        # A rule that needs the small model comes last: another one may take the picture anyway.
        return min(kept, key=lambda cause: cause.kind == LOCAL, default=None)

    def _keeps(self, rule: Trigger, now: float, motion: float) -> Trigger | None:
        if rule.kind == REQUEST:
            return None
        if rule.kind == EVERY:
            due = self._due.get(rule, now)
            if now < due:
                return None
            missed = int((now - due) / rule.every_s)
            self._due[rule] = due + (missed + 1) * rule.every_s
            return rule
        last = self._last.setdefault(rule, now - rule.min_s)
        late = bool(rule.max_s) and now - last >= rule.max_s
        moved = rule.kind == LOCAL or motion >= rule.share
        if not late and not (moved and now - last >= rule.min_s):
            return None
        self._last[rule] = now
        return rule if moved else _AT_LATEST


_ON_REQUEST = Trigger(REQUEST)
_ALWAYS = Trigger("")
_AT_LATEST = Trigger("max")


def _seconds(value: str, text: str) -> float:
    found = _TIME.fullmatch(value.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0.0 < seconds <= _LONGEST_S:
        raise ConfigError(f"trigger {text!r}: {value!r} is no time such as 500ms, 10s, 5m or 1h")
    return seconds


def _share(value: str, text: str) -> float:
    if not value:
        return _MOTION_SHARE
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"trigger {text!r}: motion is a share of the picture, such as 0.02")
    return share
