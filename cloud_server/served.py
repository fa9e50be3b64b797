"""Checks of the folders that a service serves from, without loading them."""

from __future__ import annotations

from pathlib import Path

from protos.errors import BundleMissingError, ModelError


def require_model(path: Path) -> None:
    """Check that a folder is a model's.

    Raises:
        ModelError: it holds no checkpoint.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} holds no config.json: it is not a checkpoint")


def require_bundle(path: Path) -> None:
    """Check that a folder is a bundle's.

    Raises:
        BundleMissingError: it holds no bundle.
    """
    if not (path / "bundle.json").is_file():
        raise BundleMissingError(f"{path} holds no bundle.json: it is not a bundle")
