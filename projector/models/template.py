"""Rehearses a chat template, which is untrusted code, with counted steps before it is used.

transformers runs templates in Jinja's sandbox. That keeps them from files and from Python, but not
from endless loops or filling the memory. The rehearsal counts loops, calls and sizes; afterwards
transformers renders the same template with the same kind of message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protos.errors import ModelError

MOST_STEPS = 50_000
"""Most loop turns and calls; the reference models' templates take 4 for one message."""
_TIMES = [
    datetime(2023 + i, 1 + i, 1 + 2 * i, 2 * i, 5 * i, 4 * i, 7 * i, timezone.utc)
    for i in range(12)
]
"""Times that differ in every part, microseconds too, and include every weekday."""
MOST_CHARACTERS = 1 << 20
"""Longest output, and longest text, list or repeat on the way."""


class _Unbounded(Exception):
    """The template takes too many steps or too much room."""


class _Generation(Extension):
    """The tag `generation`, which training templates put around an answer."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counted(ImmutableSandboxedEnvironment):
    """A sandbox that checks every loop turn, call, product and assignment."""

    intercepted_binops = frozenset(["*", "**", "%", "+", "//"])

    def __init__(self, now: datetime) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # else constants are computed uncounted while compiling
            extensions=[_Generation, loopcontrols],
        )
        self._left = MOST_STEPS
        self.filters |= {"random": _drawn, "tojson": _json}
        self.filters |= {"_turns": self._turns, "_checked": self._checked}
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": now.strftime,
            "lipsum": _refused,
        }

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Unbounded(f"it takes more than {MOST_STEPS} steps for one short message")

    def _turns(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _checked(self, value: Any) -> Any:
        size = len(value) if isinstance(value, (str, Sequence, Mapping)) else 0
        if isinstance(value, int):
            size = abs(value) if abs(value) < 1 << 60 else MOST_CHARACTERS + 1
        if size > MOST_CHARACTERS:
            raise _Unbounded(f"it makes more than {MOST_CHARACTERS} characters or numbers")
        return value

    def _generate(
        self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False
    ) -> str:
        def checked(by: str, node: Any) -> nodes.Filter:
            return nodes.Filter(node, by, [], [], None, None, lineno=node.lineno)

        for loop in list(source.find_all(nodes.For)):
            loop.iter = checked("_turns", loop.iter)
        for assignment in list(source.find_all(nodes.Assign)):
            assignment.node = checked("_checked", assignment.node)
        for use in list(source.find_all(nodes.Filter)):
            use.args = [checked("_checked", value) for value in use.args]
            for pair in use.kwargs:
                pair.value = checked("_checked", pair.value)
        source.set_environment(self)
        return super()._generate(source, name, filename, defer_init)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._step()
        sizes = [len(v) if isinstance(v, (str, list, tuple)) else v for v in (left, right)]
        whole = all(isinstance(size, int) for size in sizes)
        if operator == "%" and isinstance(left, str):  # such as a width of a million spaces
            self._checked(max(map(int, re.findall("[0-9]+", left)), default=0))
        elif operator == "*" and whole:
            self._checked(sizes[0] * sizes[1])
        elif operator == "**" and whole:
            self._checked(max(abs(sizes[0]), 1).bit_length() * abs(sizes[1]))
        elif operator == "+" and whole:
            self._checked(sizes[0] + sizes[1])
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self._step()
        for value in (*args, *kwargs.values()):
            __self._checked(value)
        return __self._checked(super().call(__context, __obj, *args, **kwargs))


def rehearse(template: str, file: Path, names: Mapping[str, str]) -> None:
    """Run a chat template over one message of a picture and a question, with counted steps.

    Args:
        template: the template's text.
        file: where it was read, for the message.
        names: special tokens that it may write, by name.

    Raises:
        ModelError: it takes more than `MOST_STEPS` steps or writes too much; or its prompt changes
            with the time.
    """
    made: set[str | type[Exception]] = set()
    for now in _TIMES:
        try:
            made.add(_rehearsed(template, names, now))
        except _Unbounded as error:
            raise ModelError(
                f"{file}: the chat template was stopped: {error}; use the template that the model "
                "was published with"
            ) from error
        except Exception as error:  # fails at any time, so rendering reports it later
            made.add(type(error))
    if len(made) > 1:
        raise ModelError(
            f"{file}: the chat template writes the date into the prompt (strftime_now), so the "
            "cache that every answer starts from would change from day to day; write a fixed "
            "text in place of strftime_now(...)"
        )


def _json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """Like transformers' `tojson` for templates; Jinja's own takes fewer arguments."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _rehearsed(template: str, names: Mapping[str, str], now: datetime) -> str:
    content = [{"type": "image"}, {"type": "text", "text": "Q"}]
    made, size = [], 0
    for piece in (
        _Counted(now)
        .from_string(template)
        .generate(
            messages=[{"role": "user", "content": content}],
            add_generation_prompt=True,
            tools=None,
            documents=None,
            **names,
        )
    ):
        made.append(piece)
        size += len(piece)
        if size > MOST_CHARACTERS:
            raise _Unbounded(f"it makes more than {MOST_CHARACTERS} characters")
    return "".join(made)


def _raise(message: str) -> str:
    raise TemplateError(message)


def _drawn(*_: Any, **__: Any) -> str:
    raise _Unbounded("it draws at random, so that the prompt would change each time")


def _refused(*_: Any, **__: Any) -> str:
    raise _Unbounded("it asks for dummy text")
