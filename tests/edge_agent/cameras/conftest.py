"""What every test of cameras gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from edge_agent.cameras.camera import Camera
from tests.edge_agent.cameras.watched_camera import Watched


@pytest.fixture
def watch() -> Iterator[Callable[[Camera], Watched]]:
    begun: list[Watched] = []

    def begin(camera: Camera) -> Watched:
        begun.append(Watched(camera))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()
