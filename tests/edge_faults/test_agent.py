"""A whole agent, killed again and again, with a service that stays, and with one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.edge_faults.faults import EdgeFaults, times
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import make_encoder
from tests.fakes.fake_spool import SpoolRun


@pytest.mark.quick(1)
@pytest.mark.parametrize("restarts", [False, True], ids=["service stays", "service restarts"])
def test_an_agent_that_is_killed_loses_no_accepted_frame_and_records_none_twice(
    tmp_path: Path, edge_faults: EdgeFaults, restarts: bool
) -> None:
    chance, kills, restarted = random.Random(4), times(2, 60), 0
    notes, address = tmp_path / "notes", tmp_path / "address"

    async def test() -> tuple[list[str], list[str], FakeBridge]:
        nonlocal restarted
        served = FakeBridge(make_encoder(), remembers=True)
        await served.start()
        address.write_text(served.address)
        await SpoolRun(tmp_path, served.dial).run([])  # its first terms
        for number in range(kills):
            before = notes.stat().st_size if notes.exists() else 0
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.edge_faults.agent",
                str(tmp_path),
                f"run{number}",
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=asyncio.subprocess.DEVNULL,
            )
            while child.returncode is None and (
                not notes.exists() or notes.stat().st_size == before
            ):
                await asyncio.sleep(0.01)
            for _ in range(chance.randint(1, 3)):
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                if restarts and chance.random() < 0.7:
                    await served.restart()
                    address.write_text(served.address)
                    restarted += 1
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        last = SpoolRun(tmp_path, served.dial)
        await last.run([])
        await served.stop()
        recorded = [r["request_id"] for r in last.records if r["answer"] is not None]
        return notes.read_text().split(), recorded, served

    accepted, recorded, served = asyncio.run(test())
    counts = Counter(recorded)
    lost = sum(not counts[request_id] for request_id in accepted)
    doubled = sum(number - 1 for number in counts.values())
    computed = sum(number - 1 for number in served.computed_ids.values())
    if not restarts:
        doubled += computed  # a service that stays does not compute one twice either
    kind = "agent: kill -9" + (" and service restarts" if restarts else "")
    edge_faults.judged(
        kind, kills + restarted, len(accepted), lost, doubled, computed_again=computed
    )
