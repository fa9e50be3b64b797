"""Every reason for which loading refuses has a number, a test and a place in the code."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from projector.bundle import canary, describe, feedback, files, load, refusals, sign
from projector.bundle.files import (
    CANARY,
    CERTIFICATE,
    EDGE,
    FEEDBACK_DECODER,
    FEEDBACK_ENCODER,
    GRAPH,
    MEMORY,
    SERVICE_RISK,
    SIGNATURE,
)
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.load import Bundle
from projector.bundle.refusals import REFUSALS
from projector.bundle.sign import sign_bundle
from projector.bundle.write import write_bundle
from protos.layout import KVLayout
from tests.projector.bundle.conftest import edit, replace, rewrite
from tests.projector.conftest import POINTS, make_encoder


def elsewhere(file: Path) -> bytes:
    """A graph whose first weights lie in a file beside the process."""
    graph = onnx.load_from_string(file.read_bytes())
    weights = graph.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="secret.bin")
    return bytes(graph.SerializeToString())


REASONS: dict[str, Callable[[Path], object]] = {
    "302.1": lambda folder: rewrite(folder, version=9),
    "601.1": lambda folder: (folder / EDGE).unlink(),
    "602.1": lambda folder: (folder / GRAPH).open("ab").write(b"\n"),
    "602.2": lambda folder: os.truncate(folder / GRAPH, 10),
    "602.3": lambda folder: edit(folder, CERTIFICATE, "0.5", "0.6"),
    "602.4": lambda folder: edit(folder, "bundle.json", "{", "{{"),
    "602.5": lambda folder: edit(folder, "bundle.json", '"tiny"', '"tidy"'),
    "602.6": lambda folder: edit(folder, "bundle.json", ": 3", ":  3"),
    "603.1": lambda folder: rewrite(folder, source_layout=other_layout(folder, "source_layout")),
    "603.2": lambda folder: rewrite(folder, target_layout=other_layout(folder, "target_layout")),
    "604.1": lambda folder: rewrite(folder, format=2),
    "604.2": lambda folder: (folder / "bundle.json").write_text("[]"),
    "604.3": lambda folder: rewrite(folder, ladder=None),
    "604.4": lambda folder: rewrite(folder, rank="8"),
    "604.5": lambda folder: rewrite(folder, default_point=99),
    "604.6": lambda folder: rewrite(folder, files={}),
    "604.7": lambda folder: replace(folder, EDGE, b"no encoder"),
    "604.8": lambda folder: rewrite(folder, rank=9),
    "604.9": lambda folder: replace(folder, FEEDBACK_DECODER, b"no decoder"),
    "604.10": lambda folder: replace(
        folder,
        FEEDBACK_ENCODER,
        make_encoder(Bundle.peek(folder).target, points=POINTS[:2]).to_bytes(),
    ),
    "604.11": lambda folder: replace(folder, GRAPH, elsewhere(folder / GRAPH)),
    "604.12": lambda folder: replace(folder, SERVICE_RISK, b"no risk model"),
    "604.13": lambda folder: replace(folder, CANARY, b"{}"),
    "604.14": lambda folder: replace(folder, MEMORY, b"no basis"),
    "605.1": lambda folder: edit(folder, SIGNATURE, '"format": 1', '"format": 2'),
    "605.2": lambda folder: rewrite(folder, id="another"),
    "605.3": lambda folder: (folder / SIGNATURE).unlink(),
    "605.4": lambda folder: sign_bundle(folder, SigningKey.create(folder / "stranger.pem")),
}
"""Per numbered reason a way to make a good bundle be refused for it."""


def other_layout(folder: Path, name: str) -> Any:
    return {**json.loads((folder / "bundle.json").read_text())[name], "weights_digest": "0" * 64}


@pytest.mark.parametrize("number", list(REFUSALS))
def test_every_reason_to_refuse_has_a_number_that_ends_the_message(
    folder: Path,
    two_way: dict[str, Any],
    source: KVLayout,
    target: KVLayout,
    key: SigningKey,
    number: str,
) -> None:
    write_bundle(folder, **two_way)
    signed = number.startswith("605")
    trusted = TrustedKeys({key.public: "build"}) if signed else None
    if signed:
        sign_bundle(folder, key)
    Bundle.load(folder, source, target, 3, trusted)
    REASONS[number](folder)
    cls, _ = REFUSALS[number]
    with pytest.raises(cls) as caught:
        Bundle.load(folder, source, target, 3, trusted)
    assert caught.value.message.endswith(f" [{number}]"), caught.value.message
    assert type(caught.value) is cls and number.startswith(str(cls.code))


def test_every_reason_has_a_test_and_every_test_a_reason() -> None:
    assert set(REASONS) == set(REFUSALS)
    modules = (canary, describe, feedback, files, load, refusals, sign)
    source = "".join(map(inspect.getsource, modules))
    assert set(re.findall(r'"(\d{3}\.\d+)"', source)) == set(REASONS)
