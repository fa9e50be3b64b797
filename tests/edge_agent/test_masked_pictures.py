"""Masks: on every way on which a picture leaves the device, what is masked is black."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.guard import Guard
from edge_agent.metrics import Metrics
from edge_agent.plan import Plan
from edge_agent.settings import Settings
from edge_agent.sources import open_source
from edge_agent.sources.opened import open_sources
from edge_agent.uplink.crops import Crops
from projector.codec.risk import RiskModel, feature_count
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process import logs
from tests.fakes.fake_edge import make_encoder
from tests.fakes.fake_run import Run

AGENT = Path(__file__).resolve().parents[2] / "edge_agent"
SIDE = 48
MASK = "gate=0,0 0.5,0 0.5,1 0,1"


def over(tmp_path: Path, shown: Image.Image, **kwargs: object) -> Run:
    """An agent over a folder whose one picture has a secret in its left half, which is masked."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    secret = Image.effect_noise((SIDE // 2, SIDE), 90).convert("RGB")
    shown.paste(secret, (0, 0))
    shown.save(folder / "a.png")
    run = Run([], tmp_path, questions=("x",), **kwargs)  # type: ignore[arg-type]
    given: dict[str, object] = {"source": (f"folder://{folder}?name=gate",), "mask": (MASK,)}
    chosen = Settings(**given)  # type: ignore[arg-type]
    run.source = open_sources(chosen, open_source)  # type: ignore[assignment]
    return run


def busy() -> Image.Image:
    return Image.effect_noise((SIDE, SIDE), 120).convert("RGB")


def sent(run: Run) -> np.ndarray:
    """The one picture that arrived at the picture point."""
    (raws,) = run.served.messages.values()
    (raw,) = raws
    file = pb.InferRequest.FromString(raw).frame.payload
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def require_masked(pixels: np.ndarray) -> None:
    """The left half is black but for what the codec smears over one block."""
    half = pixels.shape[1] // 2
    assert pixels[:, : half - 8].max() <= 8
    assert pixels.shape[1] == SIDE


def test_at_the_picture_point(tmp_path: Path) -> None:
    run = over(tmp_path, busy(), plan=Plan(point="picture"))
    assert run().answered == 1
    require_masked(sent(run))
    assert sent(run)[:, SIDE // 2 + 8 :].max() > 100


def test_as_the_guards_picture_in_a_frames_place(tmp_path: Path) -> None:
    run = over(tmp_path, busy(), plan=Plan(guard=Guard("picture", 0.1)))
    encoder = make_encoder()
    none = np.zeros(feature_count(encoder.rank), np.float32)
    run.served.encoder = dataclasses.replace(encoder, risk=RiskModel(none, none, 2.0, 0.1))
    assert run().answered == 1
    assert run.records[0].fallback == "unfamiliar"
    require_masked(sent(run))


def test_as_a_picture_that_shows_nothing_once_it_is_masked(tmp_path: Path) -> None:
    run = over(tmp_path, Image.new("RGB", (SIDE, SIDE)), plan=Plan(guard=Guard("picture")))
    assert run().answered == 1
    assert run.records[0].fallback == "degenerate"
    require_masked(sent(run))


@pytest.mark.parametrize("box", [(0, 0, 1000, 1000), (0, 250, 500, 750), (250, 0, 750, 1000)])
def test_as_a_crop(tmp_path: Path, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    wanted = pb.CropWanted(left=left, top=top, right=right, bottom=bottom, max_bytes=1 << 16)
    crops = Crops(1 << 16, 1.0, 1 << 20, Metrics(), logs.configure("error"))
    run = over(tmp_path, busy(), crop=wanted, crops=crops)
    assert run().answered == 1
    (record,) = run.records
    (came,) = (each.result() for each in run.served.crops.values())
    assert (record.fallback, record.crop_bytes) == ("crop", len(came))
    pixels = np.asarray(Image.open(io.BytesIO(came)).convert("RGB"))
    masked = max(0, SIDE * (500 - left) // 1000)
    assert pixels[:, : max(0, masked - 8)].max(initial=0) <= 8
    if right > 700:
        assert pixels[:, masked + 8 :].max() > 100


def test_there_is_no_other_way() -> None:
    """Whoever adds one adds its test here: a file with a picture is made in these modules only."""
    makes = {
        str(file.relative_to(AGENT))
        for file in AGENT.rglob("*.py")
        if re.search('"(WEBP|JPEG|PNG|AVIF)"|imencode', file.read_text())
    }
    assert makes == {"picture.py", "uplink/crops.py", "cameras/mask.py"}  # the last one reads masks
