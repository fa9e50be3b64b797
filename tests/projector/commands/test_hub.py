"""`projector hub`: from a bundle to a hub, from a hub to a bundle of another small model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.load import Bundle
from projector.bundle.write import write_bundle
from projector.commands.cli import main
from projector.hub.hub import Hub
from projector.models.vlm import VLM
from protos.errors import BundleLayoutError, CorpusError, FitError, UselessMapError
from tests.fakes.tiny_models import tiny_smolvlm
from tests.projector.conftest import cloud_files, make_encoder, make_map

Program = Any


@pytest.fixture(scope="module")
def bundle(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = (VLM.load(path).layout for path in models)
    folder = tmp_path_factory.mktemp("own") / "own"
    write_bundle(
        folder,
        id="own",
        version=1,
        source=source,
        target=target,
        encoder=make_encoder(source),
        cloud=cloud_files(make_map(source, target)),
        certificate={},
        default_point=1,
    )
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def hub(bundle: Path, models: tuple[Path, Path], data: Path, work: Path) -> Path:
    folder = bundle.parent / "hub"
    flags = ("--edge", models[0], "--target", models[1], "--work", work)
    assert main([str(a) for a in ("hub", "make", bundle, data, folder, *flags)]) == 0
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of another class and another grid."""
    return tiny_smolvlm(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def asked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pictures to judge by, none of which is in `data`."""
    from projector.training.dataset import write_questions
    from tests.fakes.tiny_models import picture

    folder = tmp_path_factory.mktemp("asked")
    rows: list[dict[str, object]] = []
    for index in range(64):
        picture(1000 + index).save(folder / f"{index:03d}.png")
        rows += [
            {"picture": f"{index:03d}.png", "question": f"what is red {k}", "answer": "yes"}
            for k in range(6)
        ]
    write_questions(folder, rows)
    return folder


def test_a_hub_holds_the_bundles_cloud_half(hub: Path, bundle: Path, program: Program) -> None:
    for name in ("cloud.onnx", "cloud.safetensors"):
        assert (hub / name).read_bytes() == (bundle / name).read_bytes()
    code, out, _ = program("hub", "inspect", hub, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["members"][0]["id"], told["rank"]) == ("own", 8)


def test_random_models_do_not_beat_the_controls_and_force_records_it(
    hub: Path,
    other: Path,
    models: tuple[Path, Path],
    data: Path,
    asked: Path,
    work: Path,
    tmp_path: Path,
    program: Program,
) -> None:
    flags = ("--edge", other, "--target", models[1], "--held", asked, "--work", work)
    counts = ("--pictures", 16, "--judged", 64, "--canary-frames", 2)
    join = ("hub", "join", hub, data, tmp_path / "joined", *flags, *counts)
    code, _, err = program(*join)
    assert code == UselessMapError.exit_code, err
    assert not (tmp_path / "joined").exists()
    code, out, err = program(*join, "--force")
    assert code == 0, err
    assert "edge half of hub hub version 1" in out
    made = Bundle.load(tmp_path / "joined", VLM.load(other).layout, Hub.peek(hub).target)
    assert made.certificate["forced"]["verdict"] == made.certificate["verdict"]
    assert made.certificate["hub"]["digest"] == Hub.peek(hub).digest
    assert made.cloud.graph == (hub / "cloud.onnx").read_bytes()
    assert {"untrained_edge", "shuffled_targets"} <= set(made.certificate["accuracy"])
    # A service loads it with the backends it has.
    code, out, err = program(
        "verify", tmp_path / "joined", "--source", other, "--target", models[1]
    )
    assert code == 0, err


def test_few_questions_and_few_pictures_are_refused(
    hub: Path, models: tuple[Path, Path], data: Path, tmp_path: Path, program: Program
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for index in range(8):  # eight files, two different pictures
        shutil.copy(data / f"{index % 2:03d}.png", few / f"{index}.png")
    flags = ("--edge", models[0], "--target", models[1])
    code, _, err = program("hub", "join", hub, few, tmp_path / "out", *flags)
    assert code == FitError.exit_code
    assert "projector label" in err
    code, _, err = program("hub", "join", hub, few, tmp_path / "out", *flags, "--held", data)
    assert code == CorpusError.exit_code
    assert "different pictures" in err


def test_targets_of_a_bundle_of_another_hub_are_refused(
    hub: Path,
    bundle: Path,
    models: tuple[Path, Path],
    data: Path,
    asked: Path,
    tmp_path: Path,
    program: Program,
) -> None:
    source, target = (VLM.load(path).layout for path in models)
    write_bundle(
        tmp_path / "stranger",
        id="stranger",
        version=1,
        source=source,
        target=target,
        encoder=make_encoder(source),
        cloud=cloud_files(make_map(source, target, mix_width=0)),
        certificate={},
        default_point=1,
    )
    flags = ("--edge", models[0], "--target", models[1], "--held", asked)
    like = ("--like", tmp_path / "stranger", models[0])
    code, _, err = program("hub", "join", hub, data, tmp_path / "out", *flags, *like)
    assert code == BundleLayoutError.exit_code
    assert "is not of hub" in err
