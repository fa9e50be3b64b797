"""Scenes: questions about a frame that the server holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.uplink.scenes import Scene, Scenes
from tests.edge_agent.uplink.traffic import (
    bridge,
    requests,
    run,
)
from tests.fakes.fake_edge import fake_uplink

pytestmark = pytest.mark.usefixtures("connections")


def test_questions_about_a_held_scene_go_by_ask(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            scene = await Scenes(uplink).hold(requests(1, question="")[0])
            assert isinstance(scene, Scene)
            for number, question in enumerate(("a", "b")):
                outcome = await Scenes(uplink).ask(scene, bytes([number] * 8), question, 8)
                assert outcome.answer is not None and outcome.answer.text == f"about {question}"
            assert len(served.requests) == 1
            await uplink.close()

    run(test)


@pytest.mark.parametrize("loss", ["scene", "server", "session"])
def test_a_scene_that_the_server_lost_is_held_again(tmp_path: Path, loss: str) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            scene = await Scenes(uplink).hold(requests(1, question="")[0])
            assert isinstance(scene, Scene)
            if loss == "scene":
                served.lose_scene = 1
            elif loss == "server":
                await served.restart()
            else:
                served.sessions.clear()
            outcome = await Scenes(uplink).ask(scene, b"12345678", "a", 8)
            assert outcome.error is None
            assert outcome.answer is not None and outcome.answer.text == "about a"
            ids = [request_id for _, request_id, _ in served.requests]
            assert len(ids) == len(set(ids)) == 2  # an id answered from memory would hold nothing
            assert served.asked == ["a"]
            await uplink.close()

    run(test)
