"""The program with its settings at their defaults, and a bundle that a test may damage."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.describe import BundleInfo
from projector.bundle.write import write_bundle
from projector.commands import build, sign
from projector.commands.cli import main
from projector.commands.settings import PREFIX, Settings
from projector.models.vlm import VLM
from protos.process import settings as configuration

# What bundles of an earlier form hold.
CERTIFICATE = {
    "split": "validation",
    "pictures": 512,
    "questions": 3072,
    "accuracy": {"closed_form": 0.4123, "float": 0.9087, "coarse": 0.8765, "fine": 0.9043},
    "controls": {
        "cloud_image": 0.9512,
        "blind": 0.3301,
        "mean_state": 0.3345,
        "other_picture": 0.2998,
        "untrained_map": 0.3111,
        "untrained_edge": 0.333,
    },
    "payload_bytes": {"coarse": 21.75},
    "reconstruction": {"cosine": 0.93, "relative_l2": 0.35, "r2_keys": 0.8, "r2_values": 0.7},
    "training": {"pictures": 6144, "minutes": 93.5, "seed": 0},
}


Program = Callable[..., tuple[int, str, str]]
"""Exit code, standard output and standard error of `projector ARGUMENTS`."""


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.delenv(PREFIX + "CONFIG", raising=False)


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def written(
    bundle_parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, BundleInfo]:
    path = tmp_path_factory.mktemp("bundles") / "edge-to-cloud"
    return path, write_bundle(path, **(bundle_parts | {"certificate": CERTIFICATE}))


@pytest.fixture
def bundle(written: tuple[Path, BundleInfo], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written[0], tmp_path / "bundles" / "edge-to-cloud"))


@pytest.fixture
def pair(vlms: dict[str, VLM]) -> list[object]:
    return ["--source", vlms["idefics3"].path, "--target", vlms["llava-llama"].path]


Printed = Callable[..., str]
"""Standard output of `projector ARGUMENTS`; its errors pass on."""


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    """What a command prints; its errors pass on, as `projector.commands.cli.main` expects."""
    monkeypatch.delenv("NEURAL_BRIDGE_PROJECTOR_BUNDLES", raising=False)

    def call(*arguments: object) -> str:
        parser = configuration.Parser(prog="projector")
        parser.set_defaults(config=None, check_config=False)
        commands = parser.add_subparsers()
        for command in (build, sign):
            command.register(commands)
        args: argparse.Namespace = parser.parse_args([str(argument) for argument in arguments])
        assert args.command(args) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def tiny(bundle_info: tuple[Path, BundleInfo], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_info[0], tmp_path / "bundles" / "tiny"))
