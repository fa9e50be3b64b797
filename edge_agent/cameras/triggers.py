"""When a picture is taken: every so often, on motion, on request, or when the small model says so.

A picture is taken if any trigger says so; without triggers every picture is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from protos.calls import PRIORITIES
from protos.errors import ConfigError
from protos.process.nearest import nearest

EVERY, MOTION, REQUEST, LOCAL = KINDS = ("every", "motion", "request", "local")
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_MORE = re.compile(r"^(.*),\s*(min|max|priority)=([^,]*)$", re.DOTALL)
_NAMED = re.compile(r"\s*([^\s:=,]+)\s*:\s*(?=[a-z])")
"""`CAMERA:` before a rule."""
_TAKES = {
    EVERY: ("priority",),
    MOTION: ("min", "max", "priority"),
    REQUEST: ("priority",),
    LOCAL: ("min", "priority"),
}
"""By kind, what may follow the rule."""
_MOTION_SHARE = 0.01
_MIN_S = {EVERY: 0.0, MOTION: 1.0, REQUEST: 0.0, LOCAL: 0.0}
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
        priority: of the picture's requests, one of `PRIORITIES` by its number; None: the agent's.
    """

    kind: str
    every_s: float = 0.0
    share: float = _MOTION_SHARE
    question: str = ""
    answer: str = ""
    min_s: float = 0.0
    max_s: float = 0.0
    priority: int | None = None

    @classmethod
    def parse(cls, text: str) -> Trigger:
        """Read `every=10s`, `motion=0.02,min=2s,max=60s`, `request` or `local=question=answer`.

        Each may end with `,priority=alarm`.

        Raises:
            ConfigError: it is none of these, or a value cannot be used.
        """
        rest, more = text.strip(), dict[str, str]()
        while found := _MORE.match(rest):
            if found[2] in more:
                raise ConfigError(f"trigger {text!r}: {found[2]} is given twice")
            rest, more[found[2]] = found[1], found[3].strip()
        kind, _, value = rest.partition("=")
        kind, value = kind.strip(), value.strip().strip('"')
        if kind not in KINDS:
            hint = nearest(kind, KINDS) or f": one of {', '.join(KINDS)}"
            raise ConfigError(f"trigger {text!r}: there is no trigger {kind!r}{hint}")
        for name in more:
            if name not in _TAKES[kind]:
                hint = "; add every=… instead" if (kind, name) == (LOCAL, "max") else ""
                raise ConfigError(f"trigger {text!r}: {kind} has no {name}{hint}")
        least = _seconds(more["min"], text) if "min" in more else _MIN_S[kind]
        most = _seconds(more["max"], text) if "max" in more else 0.0
        if most and most < least:
            raise ConfigError(f"trigger {text!r}: max is shorter than min")
        priority = _priority(more["priority"], text) if "priority" in more else None
        if kind == EVERY:
            return cls(kind, every_s=_seconds(value, text), priority=priority)
        if kind == MOTION:
            share = _share(value, text)
            return cls(kind, share=share, min_s=least, max_s=most, priority=priority)
        if kind == LOCAL:
            question, _, answer = value.rpartition("=")
            question, answer = question.strip().strip('"'), answer.strip().strip('"')
            if not question or not answer:
                example = "local=is there a fire ?=yes"
                raise ConfigError(f"trigger {text!r}: write question and answer, as in {example!r}")
            return cls(kind, question=question, answer=answer, min_s=least, priority=priority)
        if value:
            raise ConfigError(f"trigger {text!r}: request has no value")
        return cls(kind, priority=priority)

    def answered_by(self, said: str) -> bool:
        """Of `local`: whether the small model said the answer, whatever the case."""
        return said.strip().rstrip(".").casefold() == self.answer.rstrip(".").casefold()


def rules_of(texts: Sequence[str], cameras: Sequence[str]) -> dict[str, list[Trigger]]:
    """Each camera's rules: its own if it has any, else those without a name.

    Args:
        texts: rules; `CAMERA: RULE` is for one camera.
        cameras: their names.

    Raises:
        ConfigError: a text is no rule, or names no camera; or there is none.
    """
    found: dict[str, list[Trigger]] = {"": []}
    for text in texts:
        named = _NAMED.match(text)
        name, rule = (named[1], text[named.end() :]) if named else ("", text)
        if name and name not in cameras:
            hint = nearest(name, cameras) or f"; cameras: {', '.join(cameras) or 'none'}"
            raise ConfigError(f"trigger {text!r}: no camera is named {name!r}{hint}")
        found.setdefault(name, []).append(Trigger.parse(rule))
    if texts and not cameras:
        raise ConfigError(
            "a trigger is for cameras, and no source is one: every picture is taken anyway"
        )
    return {name: found.get(name, found[""]) for name in cameras}


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
            return next((rule for rule in self.rules if rule.kind == REQUEST), _ON_REQUEST)
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
        return rule if moved else replace(rule, kind="max")


_ON_REQUEST = Trigger(REQUEST)
_ALWAYS = Trigger("")


def _seconds(value: str, text: str) -> float:
    found = _TIME.fullmatch(value.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0.0 < seconds <= _LONGEST_S:
        raise ConfigError(f"trigger {text!r}: {value!r} is no time such as 500ms, 10s, 5m or 1h")
    return seconds


def _priority(value: str, text: str) -> int:
    if value.lower() not in PRIORITIES:
        raise ConfigError(f"trigger {text!r}: priority is one of {', '.join(PRIORITIES)}")
    return PRIORITIES.index(value.lower())


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
