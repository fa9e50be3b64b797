"""What the tests of `edge_agent/uplink` share."""

from __future__ import annotations

import pytest

from tests.edge_agent.uplink import traffic


@pytest.fixture(params=[True, False], ids=["apart", "one connection"])
def connections(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds whether events come on a connection of their own or not."""
    monkeypatch.setattr(traffic, "APART", request.param)
