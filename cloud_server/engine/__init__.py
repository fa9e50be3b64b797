"""The family of engines: what runs the large model inside the engine process.

Importing this package imports no engine and no tensor library.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module

from cloud_server.engine.base import Emit, Engine
from cloud_server.settings import Settings
from projector.models.foreign import importing
from protos.errors import ConfigError

ENGINES: dict[str, tuple[str, str]] = {
    "transformers": ("cloud_server.engine.transformers", "TransformersEngine"),
}
"""Name to module and class, for every engine."""


def check_name(name: str) -> None:
    """Refuse a name that no engine has.

    Raises:
        ConfigError: the message names the nearest.
    """
    if name not in ENGINES:
        nearest = difflib.get_close_matches(name[:64], ENGINES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"no engine is called {name[:64]!r}; the nearest is {nearest!r} (all: "
            f"{', '.join(ENGINES)})"
        )


def build(settings: Settings, emit: Emit) -> Engine:
    """Import and build the engine that the settings name; it is not loaded yet.

    Raises:
        ConfigError: no engine has that name.
        ModelError: a library that it needs is missing or does not load.
    """
    check_name(settings.engine)
    module, name = ENGINES[settings.engine]
    with importing("the engine"):
        make: Callable[[Settings, Emit], Engine] = getattr(import_module(module), name)
    return make(settings, emit)
