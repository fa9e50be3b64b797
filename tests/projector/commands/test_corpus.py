"""`projector corpus`: pairs of a folder's first pictures, then of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes.toolkit import code_of
from tests.projector.conftest import PICTURES


@pytest.mark.slow
def test_a_corpus_of_the_first_few_goes_on_to_all(
    run: Any, data: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "corpus"
    assert run("corpus", data, out, "--count", "10") == 0
    assert "10 pictures" in capsys.readouterr().out
    assert run("corpus", data, out) == 0
    assert f"{PICTURES} pictures" in capsys.readouterr().out
    for shard in out.iterdir():
        again, whole = load_file(str(shard)), load_file(str(corpus / shard.name))
        assert all(torch.allclose(again[k].float(), whole[k].float(), atol=2e-3) for k in whole)


def test_a_picture_above_the_limit_that_is_set_ends_the_corpus_by_name(
    run: Any, data: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "corpus"
    assert run("corpus", data, out, "--max-picture-pixels", "100") == code_of("picture")
    said = capsys.readouterr().err
    assert "000.png" in said and "max_picture_pixels" in said
