"""Who may call a service with identities, and what a stranger learns: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cloud_server.secured import secured
from tests.fakes.loop import on_loop


@on_loop
async def test_a_device_enrols_and_asks(paths: dict[str, Any], tmp_path: Path) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        edge = await server.edge(device)
        assert (await edge.say("count 2")).answer.text == "0 1"
