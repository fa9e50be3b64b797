"""Files that are damaged, met by the three command lines: a plain refusal and its exit code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import cloud_server.cli
import edge_agent.cli
import projector.commands.cli
from cloud_server import engine as engines
from cloud_server.settings import load
from edge_agent.uplink.encoder_store import EncoderStore
from projector.models.lm import LM
from projector.models.vlm import VLM
from projector.training import corpus, texts
from projector.training.corpus import made_of, rows_of
from protos.errors import ERRORS, BridgeError, CorpusError
from tests.cloud_server import stage
from tests.fakes.damage import Damage, copy, damages
from tests.fakes.tiny_models import tiny_idefics3, tiny_llava, tiny_lm

CODES = {0, *(error.exit_code for error in ERRORS.values())}
LEAKS = re.compile(r"Traceback|\w(Error|Exception)\b|<class|object at 0x|: '\w+'$")
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json")
CAPTURE = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Files:
    model: Path
    other: Path
    bundle: Path
    other_bundle: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("files")
    model, other = tiny_llava(folder), tiny_idefics3(folder)
    target = VLM.load(model).layout
    cloud = stage.random_cloud(target)
    return Files(
        model,
        other,
        stage.write_random_bundle(folder / "bundle", target, stage.SOURCE, cloud),
        stage.write_random_bundle(folder / "other", target, stage.OTHER_SOURCE, cloud, version=2),
    )


def spoilt(folder: Path, name: str, other: Path, to: Path) -> Iterator[tuple[str, Path]]:
    """Copies of a folder, one file of which is damaged."""
    for how, spoil in damages(folder / name, other / name, flips=1, keys=1):
        made = copy(folder, to)
        spoil(made / name)
        yield how, made


def said(run: Callable[[], int], captured: CAPTURE) -> str:
    """What is wrong with how a command ended; empty where it ended as it should."""
    captured.readouterr()
    try:
        code = run()
    except Exception as error:
        return f"a traceback: {error!r}"
    lines = captured.readouterr().err.splitlines()
    if code not in CODES:
        return f"exit code {code}"
    if code and (len(lines) != 1 or LEAKS.search(lines[0])):
        return f"exit code {code} with {lines}"
    return ""


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODEL)
@pytest.mark.parametrize("program", ["edge-agent", "projector"])
def test_a_program_that_meets_a_damaged_model_ends_with_one_plain_line(
    program: str, name: str, files: Files, tmp_path: Path, capsys: CAPTURE
) -> None:
    runs: dict[str, Callable[[Path], int]] = {
        "edge-agent": lambda model: edge_agent.cli.main(["inspect", str(model)]),
        "projector": lambda model: projector.commands.cli.main(["layout", str(model)]),
    }
    wrong = {
        how: bad
        for how, model in spoilt(files.model, name, files.other, tmp_path / "spoilt")
        if (bad := said(lambda model=model: runs[program](model), capsys))  # type: ignore[misc]
    }
    assert not wrong


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODEL)
def test_an_engine_that_meets_a_damaged_model_says_so_to_the_service(
    name: str, files: Files, tmp_path: Path
) -> None:
    refused = 0
    for how, model in spoilt(files.model, name, files.other, tmp_path / "spoilt"):
        settings = load({"model": model, "bundles": [files.bundle]}, environ=stage.DEVICE)
        try:
            engines.build(settings, lambda _: None).load()
        except BridgeError as error:
            refused += 1
            assert error.exit_code in CODES and not LEAKS.search(error.message), how
    assert refused > 8


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name", ["bundle.json", "edge.safetensors", "cloud.safetensors", "certificate.json"]
)
def test_a_program_that_meets_a_damaged_bundle_refuses_it_with_one_plain_line(
    name: str, files: Files, tmp_path: Path, capsys: CAPTURE
) -> None:
    wrong = {}
    for how, bundle in spoilt(files.bundle, name, files.other_bundle, tmp_path / "spoilt"):
        for run in (
            lambda: projector.commands.cli.main(["inspect", str(bundle)]),  # noqa: B023
            lambda: cloud_server.cli.main(
                ["serve", "--check-config", "--model", str(files.model), "--bundles", str(bundle)]  # noqa: B023
            ),
        ):
            if bad := said(run, capsys):
                wrong[how] = bad
    assert not wrong


def shard_damages(path: Path) -> Iterator[tuple[str, Damage]]:
    return damages(path, None, flips=12)


def test_a_damaged_shard_of_pictures_is_refused_or_read_as_it_was_written(
    files: Files, tmp_path: Path
) -> None:
    layout = VLM.load(files.model).layout
    pair = made_of(layout, layout, "")
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x": draw.standard_normal((3, layout.tokens, layout.state_dim)).astype(np.float16),
        "y": draw.standard_normal((3, layout.tokens, layout.state_dim)).astype(np.float16),
        "a": draw.random((3, layout.tokens)).astype(np.float16),
    }
    path = tmp_path / "0000000.safetensors"
    corpus.write_shard(path, arrays, pair[0], "pictures")
    whole = path.read_bytes()
    refused = 0
    for how, spoil in shard_damages(path):
        at = tmp_path / "spoilt.safetensors"
        if at.is_dir():
            at.rmdir()
        at.unlink(missing_ok=True)
        at.write_bytes(whole)
        spoil(at)
        try:
            if rows_of(at, pair) == 3:
                x, y, attention = corpus._read(at, layout, layout, 3)
                assert x.shape == y.shape == arrays["x"].shape and np.isfinite(x).all(), how
                assert attention.shape == arrays["a"].shape, how
        except CorpusError as error:
            refused += 1
            assert str(at) in error.message and not LEAKS.search(error.message), how
    assert refused > 15


def test_a_damaged_shard_of_texts_is_refused(tmp_path: Path) -> None:
    lm = LM.load(tiny_lm(tmp_path))
    size = lm.layout.state_dim
    arrays: dict[str, Any] = {
        "x": np.ones((5, size), np.float16),
        "y": np.ones((5, size), np.float16),
        "ends": np.array([2, 5]),
    }
    whole = save(arrays)
    path = tmp_path / "spoilt.safetensors"
    path.write_bytes(whole)
    texts._open(path, lm, lm, 2)
    others = [
        save({**arrays, "ends": ends})
        for ends in (np.array([5, 2]), np.array([2.0, np.nan]), np.array([[2], [5]]), np.array([2]))
    ]
    others += [save({**arrays, "x": np.ones((5, size), np.int64)}), save({"x": arrays["x"]})]
    for spoil in [*(s for _, s in shard_damages(path)), *map(_writes, others)]:
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
        spoil(path)
        try:
            texts._open(path, lm, lm, 2)
        except CorpusError as error:
            assert str(path) in error.message and not LEAKS.search(error.message)
        else:
            assert path.read_bytes() not in others


def _writes(blob: bytes) -> Damage:
    def spoil(at: Path) -> None:
        at.write_bytes(blob)

    return spoil


def test_a_damaged_encoder_in_the_agents_store_is_as_good_as_none(tmp_path: Path) -> None:
    store = EncoderStore(tmp_path / "state")
    blob = stage.encoder().to_bytes()
    digest = hashlib.sha256(blob).hexdigest()
    store.put(digest, blob)
    (path,) = store.directory.glob("*.safetensors")
    for how, spoil in shard_damages(path):
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(blob)
        spoil(path)
        assert store.get(digest) in (None, blob), how
        if path.is_dir():
            continue
        path.unlink(missing_ok=True)
        store.put(digest, blob)
        assert store.get(digest) == blob, "it is fetched again"
