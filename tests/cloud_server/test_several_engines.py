"""A real service with two engine processes: after one is killed, answers stay the same."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.processes import alive, children
from tests.fakes.loop import until

FLAGS = ("--engines", "2", "--restart-backoff-max-s", "0.05", "--heartbeat-s", "0.2")


def engines_of(server: stage.Server) -> list[int]:
    spares = [pid for pid, line in children(server.process.pid).items() if "--spare" in line]
    return [engine for spare in spares for engine in children(spare) if alive(engine)]


def up(server: stage.Server) -> int:
    names = [f'neural_bridge_cloud_engine_ready{{engine="{index}"}}' for index in (0, 1)]
    return int(sum(map(server.metric, names)))


@pytest.mark.slow
def test_answers_about_scenes_are_the_same_after_each_engine_was_killed(files: Files) -> None:
    with (
        stage.running_server(files.model, [files.bundle], *FLAGS) as server,
        server.channel() as channel,
    ):
        until(lambda: up(server) == 2)
        client = stage.Client(channel)
        client.negotiate()
        frames = [client.frame(seed=seed, limit=8) for seed in range(1, 9)]
        client.infer(*frames)  # at once, so that both engines hold some
        questions = [(seed, text) for seed in range(1, 9) for text in ("what ?", "how many ?")]

        def answers() -> list[str]:
            return [client.ask(seed, text, 8)[-1].answer.text for seed, text in questions]

        before = answers()
        assert len(set(before)) > 3
        restarts = "neural_bridge_cloud_engine_restarts_total"
        for killed, engine in enumerate(engines_of(server), 1):
            os.kill(engine, signal.SIGKILL)
            until(partial(lambda count: server.metric(restarts) == count, killed))
            assert answers() == before, "the other engine answers meanwhile"
            until(lambda: up(server) == 2)
        assert answers() == before
        assert server.metric("neural_bridge_cloud_scenes_remade_total") >= 8
