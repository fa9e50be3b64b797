"""A TensorRT that compiles nothing, as `projector.serving.tensorrt_build` calls it."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)


class FakeTensorRT(SimpleNamespace):
    """Stands for a library on a machine with a GPU; keeps what it was asked for."""

    def __init__(self, name: str, plan: bytes | None = b"plan") -> None:
        class Logger:
            ERROR, INTERNAL_ERROR = "error", "internal"

        self.config = SimpleNamespace(add_optimization_profile=lambda profile: None)
        self.shapes: dict[str, Any] = {}
        profile = SimpleNamespace(
            set_shape=lambda name, *three: self.shapes.__setitem__(name, three)
        )

        def refuse(network: Any, config: Any) -> bytes | None:
            if plan is None:
                self.log.log("error", "no kernel image")
                self.log.log("warning", "not shown")
            return plan

        def builder(log: Any) -> Any:
            self.log = log
            return SimpleNamespace(
                create_network=lambda flags: "network",
                create_builder_config=lambda: self.config,
                create_optimization_profile=lambda: profile,
                build_serialized_network=refuse,
            )

        super().__init__(
            __name__=name,
            __version__="10.3.0",
            ILogger=Logger,
            Builder=builder,
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
            OnnxParser=lambda network, log: SimpleNamespace(parse=lambda graph: True),
        )

    def __hash__(self) -> int:
        return id(self)
