"""Selectors: each scores the image tokens of a picture's state; the best travel (NumPy).

To add one: a file with a class that has `score`, a line in `SELECTORS`, and a line in the list of
the contract test (`tests/projector/codec/test_select.py`).
"""

from __future__ import annotations

import difflib

from projector.codec.select.base import Selector
from projector.codec.select.key_diversity import KeyDiversity
from projector.codec.select.kv_norm import KVNorm
from projector.codec.select.random import Random
from projector.codec.select.raw_focus import RawFocus
from projector.codec.select.symmetric_focus import SymmetricFocus
from projector.codec.select.task_aware import TaskAware
from projector.codec.select.uniform import Uniform
from projector.codec.select.value_aware import ValueAware
from protos.errors import ConfigError

DEFAULT = "key_diversity"
"""Default of new encoders: most right answers at nearly every token budget
(`python -m benchmarks.selectors`)."""


SELECTORS: dict[str, type[Selector]] = {
    member.name: member
    for member in (
        SymmetricFocus,
        RawFocus,
        KVNorm,
        ValueAware,
        KeyDiversity,
        TaskAware,
        Uniform,
        Random,
    )
}
"""Name to class. Only `task_aware` takes arrays from a bundle (see `Encoder.selecting`)."""


def require(name: str) -> type[Selector]:
    """The selector class of that name.

    Raises:
        ConfigError: the name is unknown; the message suggests the nearest.
    """
    if name not in SELECTORS:
        near = difflib.get_close_matches(name, SELECTORS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"there is no selector '{name}' (there are {', '.join(sorted(SELECTORS))}){hint}"
        )
    return SELECTORS[name]


def get(name: str) -> Selector:
    """A selector with its default settings, by name.

    Raises:
        ConfigError: the name is unknown, or the selector needs a bundle's weights.
    """
    member = require(name)
    if member is TaskAware:
        raise ConfigError(
            f"the selector '{name}' takes its weights from a bundle: ask the bundle's encoder"
        )
    return member()
