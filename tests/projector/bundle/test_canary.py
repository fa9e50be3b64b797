"""The canary set in a bundle: covered by its digest, optional, refused if it is bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector.bundle.canary import CanaryFrame, CanarySet
from projector.bundle.load import Bundle
from projector.bundle.write import write_bundle, write_next
from protos.errors import BundleCorruptError, BundleFormatError
from protos.header import Header, pack_header
from tests.projector.bundle.conftest import replace

REFERENCE = Path(__file__).parents[3] / "reference" / "bundles"


@pytest.fixture
def with_canary(folder: Path, two_way: dict[str, Any]) -> tuple[Path, CanarySet]:
    """A bundle with one canary frame."""
    encoder = two_way["encoder"]
    point = next(point for point in encoder.points if point.kind == "latent")
    kept = np.ones(two_way["source"].tokens, dtype=np.bool_)
    header, payload = pack_header(Header(point.index, 0, kept), b"some latents")
    made = CanarySet(4, (CanaryFrame(header, payload, "is it ?", "yes", "no"),))
    write_bundle(folder, **two_way, canary=made)
    return folder, made


def test_a_bundle_carries_its_canary_set_under_its_digest(
    with_canary: tuple[Path, CanarySet], two_way: dict[str, Any]
) -> None:
    folder, made = with_canary
    bundle = Bundle.load(folder, two_way["source"], two_way["target"])
    assert bundle.canary == made
    file = folder / "canary.json"
    file.write_bytes(file.read_bytes().replace(b'"no"', b'"na"'))
    with pytest.raises(BundleCorruptError):
        Bundle.load(folder, two_way["source"], two_way["target"])


def test_a_new_edge_half_drops_the_old_canary_set_and_its_file(
    with_canary: tuple[Path, CanarySet], two_way: dict[str, Any]
) -> None:
    folder, _ = with_canary
    bundle = Bundle.load(folder, two_way["source"], two_way["target"])
    write_next(bundle, folder, encoder=bundle.encoder)
    assert not (folder / "canary.json").exists()
    assert Bundle.load(folder, two_way["source"], two_way["target"]).canary is None


@pytest.mark.parametrize(
    "change",
    [
        {"header": "AAAA"},
        {"header": "?"},
        {"payload": ""},
        {"question": ""},
        {"question": "x" * 5000},
        {"seen": 1},
        {"extra": "x"},
    ],
)
def test_a_frame_that_the_bundle_cannot_decode_is_refused(
    with_canary: tuple[Path, CanarySet], two_way: dict[str, Any], change: dict[str, Any]
) -> None:
    folder, _ = with_canary
    plain = json.loads((folder / "canary.json").read_text())
    plain["frames"][0] |= change
    replace(folder, "canary.json", json.dumps(plain).encode())
    with pytest.raises(BundleFormatError, match=r"\[604\.13\]"):
        Bundle.load(folder, two_way["source"], two_way["target"])


@pytest.mark.parametrize("name", ["edge-a-cloud", "edge-b-cloud", "edge-c-cloud"])
def test_each_reference_bundle_has_a_small_canary_set(name: str) -> None:
    info = Bundle.peek(REFERENCE / name)
    blob = (REFERENCE / name / "canary.json").read_bytes()
    made = CanarySet.from_bytes(blob, info.source.tokens, info.points, REFERENCE / name)
    assert len(made.frames) == 48 and len(blob) < 100_000
    same = sum(frame.seen == frame.answer for frame in made.frames)
    assert same >= 40
    assert len({frame.question for frame in made.frames}) > 20
