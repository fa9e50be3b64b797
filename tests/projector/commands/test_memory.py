"""`projector memory`: a bundle gets a basis of keys, or the user a plain reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector.bundle.load import Bundle
from projector.memory.basis import text_features
from projector.models.vlm import VLM
from protos.errors import ConfigError, CorpusError, FitError

COLOURS, THINGS = (
    ("red", "green", "blue"),
    ("car", "truck", "dog", "cat", "tree", "crate", "ladder"),
)
ASKS = {
    "left": ("left of the {} {} is", "what is left of the {} {} ?", "the {} {} is right of what ?"),
    "where": ("the {} {} is", "where is the {} {} ?", "is the {} {} near or far ?"),
}


def lines() -> list[dict[str, Any]]:
    return [
        {"about": f"{c} {t}", "asks": kind, "texts": [form.format(c, t) for form in forms]}
        for c in COLOURS
        for t in THINGS
        for kind, forms in ASKS.items()
    ]


def phrasings(folder: Path, rows: list[Any]) -> Path:
    file = folder / "phrasings.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


def test_a_bundle_gets_a_basis_that_makes_the_keys_of_the_models_that_run(
    bundle: Path, pair: list[object], program: Any, vlms: dict[str, VLM], tmp_path: Path
) -> None:
    file = phrasings(tmp_path, lines())
    flags = ("--rank", 8, "--layers", "0,1", "--gain", 0.3)
    code, out, err = program("memory", bundle, file, *pair, *flags)
    assert code == 0, err
    source, target = vlms["idefics3"], vlms["llava-llama"]
    basis = Bundle.load(bundle, source.layout, target.layout).memory
    assert basis is not None
    assert (basis.rank, basis.layers, basis.reading.gain) == (8, (0, 1), 0.3)
    assert basis.parts == (7, 1)
    assert f"gate at {basis.reading.threshold:.2f}" in out and "are found" in out
    key = basis.key(text_features(source.text_state("where is the red car ?"), basis.layers))
    assert key.shape == (8,) and np.abs(key).max() == 127
    # written again with another canary set or guard, it stays
    assert program("inspect", bundle)[0] == 0


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        ([["one text"]] * 30, CorpusError, "line 1: expected an object with `about`, `asks`"),
        ([*lines(), {"a": 1}], CorpusError, "line 43"),
        (lines()[:10], FitError, "phrasings about 5 are too few"),
        ([lines()[0] | {"texts": ["a", "b"]}], CorpusError, "line 1"),
        ([lines()[0] | {"texts": ["a", "b", " "]}], CorpusError, "line 1"),
        ([lines()[0] | {"about": ""}], CorpusError, "line 1"),
    ],
)
def test_phrasings_that_cannot_be_fitted_are_refused_and_the_bundle_stays(
    bundle: Path,
    pair: list[object],
    program: Any,
    tmp_path: Path,
    rows: list[Any],
    error: type[CorpusError],
    said: str,
) -> None:
    before = (bundle / "bundle.json").read_bytes()
    code, _, err = program("memory", bundle, phrasings(tmp_path, rows), *pair, "--rank", 8)
    assert code == error.exit_code and said in err
    assert (bundle / "bundle.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        (("--layers", "0,99"), ConfigError, "the small model has the layers 0 to"),
        (("--gain", "nan"), ConfigError, "--gain"),
        (("--rank", "1"), FitError, "rank 1"),
    ],
)
def test_impossible_settings_are_named(
    bundle: Path,
    pair: list[object],
    program: Any,
    tmp_path: Path,
    flags: tuple[str, str],
    error: type[ConfigError],
    said: str,
) -> None:
    code, _, err = program("memory", bundle, phrasings(tmp_path, lines()), *pair, *flags)
    assert code == error.exit_code and said in err


def test_a_missing_file_is_named(
    bundle: Path, pair: list[object], program: Any, tmp_path: Path
) -> None:
    code, _, err = program("memory", bundle, tmp_path / "none.jsonl", *pair)
    assert code == CorpusError.exit_code and "none.jsonl" in err
