"""Shadowing with real processes and the reference models: a camera by day, then in fog."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from reference.demo.halves import cloud_server, edge_agent, ready
from reference.yard import render, sample_scenes

pytestmark = pytest.mark.slow
FRAMES, LEAST = 24, 12
"""Of a world, and how many of them are surely measured: the agent holds back few pictures."""
QUESTIONS = ("is there a person in the picture ?", "how many animals are there ?")


def _value(page: str, name: str) -> float:
    """A metric's value by its whole name; 0 if it is not there."""
    with urlopen(page, timeout=20) as answer:
        found = re.findall(
            rf"^neural_bridge_cloud_{re.escape(name)} (\S+)$", answer.read().decode(), re.M
        )
    return float(found[0]) if found else 0.0


def _until(holds: Callable[[], bool], log: Path, limit_s: float = 240.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.2)


def _show(folder: Path, split: str, foggy: bool, first: int) -> None:
    """Put pictures of the yard into a folder that an agent watches."""
    scenes = sample_scenes(split, 0, 4 * FRAMES)
    pixels = render(scenes)
    rows = [row for row in range(len(pixels)) if (scenes.fog[row] > 0) == foggy][:FRAMES]
    for number, row in enumerate(rows, first):
        draft = folder / f".{number:04d}.png.part"
        Image.fromarray(np.asarray(pixels[row])).save(draft, "PNG")
        draft.rename(folder / f"{number:04d}.png")


def test_a_real_agent_and_service_measure_day_and_fog(tmp_path: Path) -> None:
    pictures, log = tmp_path / "pictures", tmp_path / "service.log"
    pictures.mkdir()
    _show(pictures, "test", False, 0)
    with cloud_server(log, "--shadow-questions", "4") as server:
        told = ready(server)
        asked = [part for question in QUESTIONS[:1] for part in ("--questions", question)]
        agent_log = tmp_path / "agent.log"
        with edge_agent(
            agent_log,
            told.address,
            *("--source", f"folder://{pictures}?watch=1", *asked),
            *("--state-dir", str(tmp_path / "state"), "--output", str(tmp_path / "answers.jsonl")),
            *("--allow-shadow", "--shadow-share", "1", "--shadow-day-bytes", str(64 << 20)),
        ):
            counts = []
            name = 'shadows_total{outcome="measured"}'
            for first, split, foggy in ((0, "test", False), (FRAMES, "shifted", True)):
                if first:
                    _show(pictures, split, foggy, first)
                least = _value(told.metrics, name) + LEAST if first else LEAST
                _until(lambda least=least: _value(told.metrics, name) >= least, agent_log)  # type: ignore[misc]
                compared = 'shadow_answers_total{bundle="edge-a-cloud",same="%s"}'
                counts.append([_value(told.metrics, compared % same) for same in ("no", "yes")])
            errors = [
                _value(
                    told.metrics, f'shadow_layer_error_ratio{{bundle="edge-a-cloud",layer="{n}"}}'
                )
                for n in range(8)
            ]
    day, both = counts
    assert sum(day) >= 4 * LEAST and sum(both) >= 2 * 4 * LEAST
    by_day, in_fog = day[0] / sum(day), (both[0] - day[0]) / (sum(both) - sum(day))
    assert by_day < 0.25 and in_fog > by_day
    assert all(0.3 < error < 1.0 for error in errors)  # as the bench measures them, 0.49 to 0.74
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(answers) >= 2 * LEAST and all(json.loads(one)["answer"] for one in answers)
