"""The settings of the program `projector`: flags, environment, configuration file, defaults."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from projector.bundle.load import Bundle
from projector.models import pictures
from projector.serving import backends
from protos.errors import BundleMissingError, ConfigError, ModelError
from protos.process import settings as configuration
from protos.process.settings import Dtype

PREFIX = "NEURAL_BRIDGE_PROJECTOR_"


class Settings(configuration.TypedSettings):
    """The program's settings; `description` is what `--help` prints."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    source: Path | None = Field(None, description="directory of the edge model's checkpoint")
    target: Path | None = Field(None, description="directory of the cloud model's checkpoint")
    source_dtype: Dtype = Field("float32", description="number format that the edge model runs in")
    target_dtype: Dtype = Field("float32", description="number format that the cloud model runs in")
    dtype: Dtype = Field("float32", description="number format that the model runs in")
    device: str = Field(
        "cpu",
        min_length=1,
        description="torch device that models run on, such as cuda; under torchrun, process i of "
        "`train` takes GPU i",
    )
    bundles: Path | None = Field(
        None, description="directory of bundles; a BUNDLE that is not a path is looked up in it"
    )
    backend: str = Field(
        "onnxruntime", description="what runs the projector: onnxruntime, torch or tensorrt"
    )
    backend_device: str = Field(
        "cpu", min_length=1, description="device of the projector, as its backend names devices"
    )
    max_picture_pixels: pictures.MaxPicturePixels = pictures.MAX_PIXELS
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads; 0: as many as the CPU quota, the affinity mask and the cores "
        "allow",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """A command's settings: flags over environment over file over defaults.

    Raises:
        ConfigError: a value that a setting does not take.
    """
    return configuration.load(
        Settings,
        configuration.given_flags(args, Settings),
        args.config,
        listing="projector verify --help",
    )


def check(chosen: Settings, models: Sequence[Path] = (), bundles: Sequence[Path] = ()) -> int:
    """Run `--check-config`: print the settings or raise the first problem; load nothing.

    Raises:
        BridgeError: a model or a bundle is invalid, a folder or a backend is missing.
    """
    for model in (chosen.source, chosen.target, *models):
        if model is not None and not (model / "config.json").is_file():
            raise ModelError(f"{model} holds no config.json: it is not a checkpoint")
    if chosen.bundles is not None and not chosen.bundles.is_dir():
        raise BundleMissingError(f"{chosen.bundles} is not a folder")
    backends.get(chosen.backend)
    for path in bundles:
        Bundle.peek(path)
    print(json.dumps(chosen.model_dump(mode="json"), indent=2))
    return 0


def required(chosen: Settings, side: Literal["source", "target"]) -> Path:
    """The checkpoint of one side.

    Raises:
        ConfigError: no flag, variable or file names it.
    """
    path: Path | None = getattr(chosen, side)
    if path is None:
        raise ConfigError(
            f"no {side} model: give --{side}, {PREFIX}{side.upper()} or '{side}' in the "
            "configuration file"
        )
    return path
