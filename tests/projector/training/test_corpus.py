"""A corpus of pairs: of these models and inputs, finite, whole, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from projector.models.vlm import VLM
from projector.training.corpus import collect, write_shard
from projector.training.dataset import Dataset
from protos.errors import CorpusError
from tests.fakes.tiny_models import picture
from tests.projector.conftest import PICTURES


def test_a_corpus_of_another_pair_or_damaged_is_refused(
    data: Path, corpus: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    source, target = VLM.load(models[0]), VLM.load(models[1])
    pictures = Dataset(data)
    with pytest.raises(CorpusError, match="another pair of models"):
        collect(target, source, pictures.picture, PICTURES, corpus, inputs=pictures.digest)
    with pytest.raises(CorpusError, match="other inputs"):
        collect(source, target, pictures.picture, PICTURES, corpus, inputs="other")
    shard = next(corpus.glob("*.safetensors")).read_bytes()
    for cut in (0, 7, 100, len(shard) - 1):
        (tmp_path / "0000000.safetensors").write_bytes(shard[:cut])
        with pytest.raises(CorpusError, match="not a readable shard" if cut else "it is empty"):
            collect(source, target, pictures.picture, PICTURES, tmp_path, inputs=pictures.digest)


def test_states_that_are_not_finite_are_neither_kept_nor_read(
    data: Path, corpus: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    source, target = VLM.load(models[0]), VLM.load(models[1])
    pictures, whole = Dataset(data), next(corpus.glob("*.safetensors"))
    shard = tmp_path / whole.name
    with safe_open(str(whole), "np") as file:
        pair = file.metadata()
        arrays = {name: file.get_tensor(name) for name in ("x", "y", "a")}
    for name in ("x", "y"):
        bad = {**arrays, name: arrays[name].copy()}
        bad[name][3, 1, 2] = np.nan
        with pytest.raises(CorpusError, match="NaN or infinity"):
            write_shard(shard, bad, pair, "pictures 0 to 63")
        assert not list(tmp_path.iterdir())
        save_file(bad, str(shard), metadata=pair)
        with pytest.raises(CorpusError, match="holds NaN or infinity"):
            collect(source, target, pictures.picture, PICTURES, tmp_path, inputs=pictures.digest)
        shard.unlink()
    shape = arrays["a"].shape
    for wrong, said in (
        (arrays["a"][:, :3], "attention"),
        (np.full(shape, np.nan, np.float16), "NaN or infinity"),
        (np.full(shape, -1, np.float16), "below 0"),
        (np.full(shape, 1e9, np.float64), "exceeds float16"),
    ):
        save_file({**arrays, "a": np.ascontiguousarray(wrong)}, str(shard), metadata=pair)
        with pytest.raises(CorpusError, match=said):
            collect(source, target, pictures.picture, PICTURES, tmp_path, inputs=pictures.digest)


def test_an_empty_corpus_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = VLM.load(models[0]), VLM.load(models[1])
    with pytest.raises(CorpusError, match="no pictures"):
        collect(source, target, picture, 0, tmp_path)
