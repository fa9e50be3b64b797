"""`projector layout`: a layout that can be read back, or the error that says why not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from projector.models.vlm import VLM
from protos.errors import (
    ModelError,
)
from protos.layout import KVLayout
from tests.projector.commands.conftest import Program


def test_layout_prints_a_layout_that_can_be_read_back(
    program: Program, vlms: dict[str, VLM]
) -> None:
    expected = vlms["idefics3"].layout
    code, out, _ = program("layout", vlms["idefics3"].path)
    assert code == 0
    shown = json.loads(out)
    assert shown["fingerprint"] == expected.fingerprint
    assert (shown["tokens"], shown["state_dim"]) == (16, expected.state_dim)
    names = {field.name for field in dataclasses.fields(KVLayout)}
    plain = {name: value for name, value in shown.items() if name in names}
    assert KVLayout.from_json(json.dumps(plain)) == expected


def test_layout_depends_on_the_number_format(program: Program, vlms: dict[str, VLM]) -> None:
    code, out, _ = program("layout", vlms["idefics3"].path, "--dtype", "BFLOAT16")
    assert code == 0
    assert json.loads(out)["cache_dtype"] == "bfloat16"
    assert json.loads(out)["fingerprint"] != vlms["idefics3"].layout.fingerprint


@pytest.mark.parametrize("flags", [[], ["--check-config"]])
def test_layout_of_no_checkpoint_is_a_model_error(
    program: Program, tmp_path: Path, flags: list[str]
) -> None:
    code, out, err = program("layout", tmp_path, *flags)
    assert (code, out) == (ModelError.exit_code, "")
    assert err.startswith("projector: model: ") and str(tmp_path) in err


def test_layout_on_a_device_that_is_not_there_is_a_model_error(
    program: Program, vlms: dict[str, VLM]
) -> None:
    code, _, err = program("layout", vlms["idefics3"].path, "--device", "nowhere")
    assert code == ModelError.exit_code
    assert "'nowhere'" in err
