"""Lays the service's settings over this device's own, as far as they are allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from edge_agent.cameras.triggers import Trigger
from edge_agent.settings import Settings
from protos.errors import BridgeError, ConfigError, NotAllowedHereError

_CHECKS: Mapping[str, Callable[[Any], object]] = {
    "trigger": lambda value: [Trigger.parse(text) for text in value]
}
"""What the types of settings do not check."""


@dataclass(frozen=True)
class Overlaid:
    """Settings with the service's laid over them.

    Attributes:
        settings: the result.
        taken: names of the service's settings in it.
        refused: the others, by name.
    """

    settings: Settings
    taken: tuple[str, ...]
    refused: Mapping[str, BridgeError]


def overlaid(own: Settings, values: Mapping[str, Any]) -> Overlaid:
    """Lay settings over a device's own.

    Args:
        own: the device's.
        values: the service's, by name; texts get their type as in the environment.
    """
    rules, refused, left = own.remote.rules, dict[str, BridgeError](), dict[str, Any]()
    for name, value in values.items():
        rule = rules.get(name)
        if rule is None:
            refused[name] = NotAllowedHereError(
                f"{name}: this device does not let the service change it"
            )
            continue
        try:
            alone = _settings(own, {name: value})
            typed = getattr(alone, name)
            rule.check(typed)
            _CHECKS.get(name, bool)(typed)
            left[name] = value
        except ValidationError as error:
            refused[name] = ConfigError(f"{name} = {str(value)[:100]!r}: {_said(error)}")
        except BridgeError as error:
            refused[name] = error
    while True:
        try:
            return Overlaid(_settings(own, left), tuple(left), refused)
        except ValidationError as error:  # they do not go together
            blamed = {str(one["loc"][0]) for one in error.errors() if one["loc"]} & set(left)
            for name in blamed or set(left):
                del left[name]
                refused[name] = ConfigError(f"{name}: with the others: {_said(error)}")


def _settings(own: Settings, values: Mapping[str, Any]) -> Settings:
    """Checked settings; those of `own` stay as they are.

    Raises:
        ValidationError: the values cannot be used.
    """
    kept = {name: getattr(own, name) for name in Settings.model_fields}
    return Settings(**{**kept, **values})


def _said(error: ValidationError) -> str:
    return "; ".join(
        str(one["msg"]).removeprefix("Value error, ")
        for one in error.errors(include_url=False, include_context=False)
    )
