"""Front ends that end, in good order or not, while devices and agents go on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serve.identities import TENANTS, Identities
from benchmarks.serve.load import fleet
from benchmarks.serve.pool import Pool
from benchmarks.serve.site import Site, site
from reference.demo.halves import edge_agent
from reference.demo.processes import Child
from tests.faults.arena import FULL, QUICK, SLOW, Faults, Steady, steady, times

pytestmark = pytest.mark.slow

BALANCER = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
UNDER_WAY = 64
COMPARED = 60
"""Captures whose answers are compared with those of an undisturbed run."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fixed(port: int, metrics_port: int) -> tuple[str, ...]:
    """Flags of a front end that comes back where it was."""
    return (*QUICK, "--port", str(port), "--metrics-port", str(metrics_port))


def test_after_a_sigterm_under_load_everything_accepted_is_answered(
    tmp_path: Path, identities: Identities, pool: Pool, calm: list[str], faults: Faults
) -> None:
    rounds = times(1, 10)

    async def scenario(place: Site) -> Steady:
        async with fleet(8, place.dial, pool) as devices:
            load = Steady(devices)
            tasks = [asyncio.create_task(load.work(number)) for number in range(UNDER_WAY)]
            await load.more(UNDER_WAY)
            await load.until(lambda: len(load.under_way) >= UNDER_WAY // 2, "a queue")
            os.kill(place.server.pid, signal.SIGTERM)
            await load.until(lambda: load.refusals()["engine_unavailable"] > 0, "a refusal")
            load.stop()
            await asyncio.gather(*(device.settle(60) for device in devices))
            for task in tasks:
                task.cancel()
        return load

    entries, left = [], 0
    for number in range(rounds):
        with site(tmp_path / str(number), identities, *QUICK) as place:
            load = asyncio.run(scenario(place))
            place.server.check(place.server.wait(lambda: None, 60))
        entries += load.entries
        left += sum(1 for e in load.entries if e.accepted and not e.answered)
    faults.judged("SIGTERM under load", rounds, entries, calm, accepted_but_unanswered=left)
    assert not left


@pytest.mark.skipif(not FULL, reason=SLOW)
def test_after_a_front_end_is_killed_devices_negotiate_again_and_lose_nothing(
    tmp_path: Path, identities: Identities, pool: Pool, calm: list[str], faults: Faults
) -> None:
    kills = times(1, 15)
    ports = free_port(), free_port()

    async def scenario() -> None:
        with ExitStack() as running:
            place = await asyncio.to_thread(
                running.enter_context, site(tmp_path / "first", identities, *fixed(*ports))
            )
            async with steady(place.dial, pool) as load:
                for number in range(kills):
                    await load.more(20)
                    os.kill(place.server.pid, signal.SIGKILL)
                    place.server.wait(lambda: None, 30)
                    place = await asyncio.to_thread(
                        running.enter_context,
                        site(tmp_path / str(number), identities, *fixed(*ports)),
                    )
                await load.more(20)
            faults.judged("front end killed", kills, load.entries, calm, load.strangers)

    asyncio.run(scenario())


@contextmanager
def balancer(folder: Path, backends: list[tuple[int, int]]) -> Iterator[int]:
    """A haproxy that passes TCP on to whichever front ends say that they are ready."""
    port = free_port()
    servers = "\n".join(
        f"  server s{i} 127.0.0.1:{at} check port {health} inter 100ms fall 1 rise 1"
        for i, (at, health) in enumerate(backends)
    )
    settings = folder / "haproxy.cfg"
    settings.write_text(f"""
defaults
  mode tcp
  timeout connect 2s
  timeout client 10m
  timeout server 10m
  option redispatch
frontend agents
  bind 127.0.0.1:{port}
  default_backend services
backend services
  balance roundrobin
  option httpchk GET /readyz
{servers}
""")
    assert BALANCER is not None
    with (folder / "haproxy.log").open("w") as log:
        process = subprocess.Popen(
            [BALANCER, "-f", str(settings), "-db"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)


def enrol(place: Site, folder: Path) -> None:
    """Add a device of the first tenant and enrol it, with the programs that people use."""

    def told(*words: str) -> str:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout

    directory = ("--directory", str(place.identities.directory))
    add = ("devices", "add", folder.name, "--tenant", TENANTS[0], "--json")
    code = json.loads(told("cloud_server", *add, *directory))["code"]
    state = ("--state-dir", str(folder / "state"))
    told("edge_agent", "enrol", "--server", place.at.open_address, "--code", code, *state)


def records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def agent(folder: Path, place: Site, address: str, captures: int) -> tuple[Child, Path]:
    """An enrolled agent that asks two questions about each of many pictures."""
    enrol(place, folder)
    output = folder / "answers.jsonl"
    arguments = [
        *("--source", f"yard://validation?count={captures}&questions=2", "--in-flight", "4"),
        *("--question-mode", "infer", "--max-new-tokens", "8", "--output", str(output)),
        *("--state-dir", str(folder / "state"), "--threads", "1", "--no-progress"),
        *("--backoff-max-s", "1"),
    ]
    return edge_agent(folder / "agent.log", address, *arguments), output


@pytest.mark.skipif(not FULL, reason=SLOW)
@pytest.mark.skipif(BALANCER is None, reason="no haproxy (Debian: apt-get install haproxy)")
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (signal.SIGTERM, "rolling restart"),
        (signal.SIGKILL, "front end killed behind a balancer"),
    ],
)
def test_front_ends_restarted_in_turn_behind_a_balancer_lose_and_double_no_answer(
    tmp_path: Path,
    pool: Pool,
    calm: list[str],
    place: Site,
    faults: Faults,
    how: signal.Signals,
    kind: str,
) -> None:
    """Agents and simulated devices go on through the other front end; each owns its engines."""
    rounds = times(1, 5)
    ports = [(free_port(), free_port()) for _ in range(2)]
    folders = [tmp_path / f"agent-{how.name.lower()}-{i}" for i in range(2)]

    async def scenario() -> Steady:
        with ExitStack() as running:

            async def start(which: int, number: int) -> Site:
                made = site(
                    tmp_path / f"front-{which}-{number}", place.identities, *fixed(*ports[which])
                )
                return await asyncio.to_thread(running.enter_context, made)

            fronts = [await start(0, 0), await start(1, 0)]
            at = f"127.0.0.1:{running.enter_context(balancer(tmp_path, ports))}"
            agents = []
            for folder in folders:
                child, output = agent(folder, place, at, 1_000_000)
                agents.append((running.enter_context(child), output))
            dial = partial(place.dial_by, at)
            async with steady(dial, pool, devices=4, under_way=4) as load:
                for output in (output for _, output in agents):
                    await load.until(partial(_has, output, 8), "an agent's answers")
                for number in range(1, rounds + 1):
                    for which in (0, 1):
                        before = [len(records(output)) for _, output in agents]
                        os.kill(fronts[which].server.pid, how)
                        ended = await asyncio.to_thread(fronts[which].server.wait, _idle, 60)
                        assert ended == (0 if how == signal.SIGTERM else -how)
                        for (_, output), had in zip(agents, before, strict=True):
                            await load.until(partial(_has, output, had + 8), "answers of one")
                        fronts[which] = await start(which, number)
                        await load.more(8)
            for child, _ in agents:
                os.kill(child.pid, signal.SIGTERM)
            for child, _ in agents:
                await asyncio.to_thread(child.wait, _idle, 60)
        return load

    load = asyncio.run(scenario())
    asked = 0
    for folder in folders:
        found = records(folder / "answers.jsonl")
        asked += len(found)
        once = Counter((row["capture"], row["question"]) for row in found)
        assert set(once.values()) == {1}, "an answer came twice"
        captures = sorted({row["capture"] for row in found})
        assert len(captures) == int(captures[-1].rpartition("/")[2]) + 1, "a capture is missing"
        assert not [row["error"] for row in found if row["error"]]
        assert len({row["request_id"] for row in found}) == len(found)
    child, output = agent(tmp_path / f"calm-{how.name.lower()}", place, place.at.address, COMPARED)
    with child:
        child.check(child.wait(_idle, 120))
    quiet = {(row["capture"], row["question"]): row["answer"] for row in records(output)}
    wrong = [
        row
        for folder in folders
        for row in records(folder / "answers.jsonl")
        if quiet.get((row["capture"], row["question"]), row["answer"]) != row["answer"]
    ]
    assert not wrong
    faults.judged(kind, 2 * rounds, load.entries, calm, load.strangers, agents_answers=asked)


def _has(output: Path, answers: int) -> bool:
    return len(records(output)) >= answers


def _idle() -> None:
    """Nothing to do while waiting."""
