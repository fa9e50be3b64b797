"""Uses a package: finds its bundle, projects its cache, answers a question."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from projector.bundle.load import Bundle
from projector.package.contents import Package, PackageInfo
from projector.package.form import BUNDLE, MORE
from projector.package.tensors import Floats
from protos.errors import BundleLayoutError, BundleVersionError, ConfigError, NonFiniteError
from protos.layout import KVLayout
from protos.process.files import writing

if TYPE_CHECKING:
    from projector.models.vlm import VLM


def fitting_bundle(package: Package, path: Path | None, target: KVLayout | str) -> Bundle:
    """The bundle that a package names, for the model at hand.

    Args:
        package: the package to project.
        path: the bundle's folder; `None` for the bundle embedded in the package.
        target: the target model's live layout, or its fingerprint.

    Raises:
        ConfigError: there is no path and no embedded bundle.
        BundleLayoutError: the package, the bundle and the target model do not fit each other.
        BundleVersionError: they fit, but the package was made for another bundle.
        DiskFullError: no room to unpack the embedded bundle.
        BridgeError: any error of `Bundle.load`.
    """
    source = package.info.metadata.source.fingerprint
    if path is not None:
        bundle = Bundle.load(path, source, target)
    elif not package.info.w_matrix.embedded:
        wanted = package.info.w_matrix
        raise ConfigError(
            f"the package holds no bundle: name '{wanted.bundle_id}' version "
            f"{wanted.bundle_version} (digest {wanted.bundle_digest[:12]})"
        )
    else:
        with tempfile.TemporaryDirectory() as folder:
            with writing(f"the package's bundle to {folder}"):
                for name in (*BUNDLE, *MORE):
                    if name in package.members:
                        (Path(folder) / Path(name).name).write_bytes(package.members[name])
            bundle = Bundle.load(folder, source, target)
    check_fit(package.info, bundle)
    return bundle


def check_fit(info: PackageInfo, bundle: Bundle) -> None:
    """Require the bundle that a package was made for.

    Raises:
        BundleLayoutError: it is for another source or target, or the package's shape contradicts
            its stated source.
        BundleVersionError: it is another bundle for the same models.
    """
    meta, ours = info.metadata, bundle.info
    for side, model, layout in (
        ("source", meta.source, ours.source),
        ("target", meta.target, ours.target),
    ):
        if model.fingerprint != layout.fingerprint:
            raise BundleLayoutError(
                f"the package's {side} is {model.model_id} (layout {model.fingerprint[:12]}), "
                f"bundle '{ours.id}' is for {layout.model_id} ({layout.fingerprint[:12]})"
            )
    shape = (meta.layers, meta.kv_heads, meta.head_dim, meta.grid)
    theirs = ours.source
    if shape != (theirs.layers, theirs.kv_heads, theirs.head_dim, theirs.grid):
        raise BundleLayoutError(
            f"the package says it is from {theirs.model_id}, but carries (layers, heads, head_dim, "
            f"grid) = {shape}"
        )
    if info.w_matrix.bundle_digest != bundle.digest:
        raise BundleVersionError(
            f"the package is for bundle '{info.w_matrix.bundle_id}' version "
            f"{info.w_matrix.bundle_version} (digest {info.w_matrix.bundle_digest[:12]}), not "
            f"'{ours.id}' version {ours.version} ({bundle.digest[:12]}); derive a package for it"
        )


def project(
    package: Package,
    bundle: Bundle,
    positions: npt.NDArray[np.int64],
    backend: str = "onnxruntime",
    threads: int = 1,
    device: str = "cpu",
) -> tuple[Floats, Floats]:
    """Project a package's tokens into the target's cache.

    Args:
        package: what to project.
        bundle: the bundle that the package was made for.
        positions: of the image tokens in the target's prompt, `[N]`.
        backend: runs the cloud half.
        threads: of the backend.
        device: of the backend.

    Returns:
        Keys (rotated) and values, float32 `[layers, 1, kv_heads, N, head_dim]`.

    Raises:
        BundleLayoutError, BundleVersionError: as `check_fit`.
        PackageFormatError: a number is NaN or infinite.
        NonFiniteError: the projected cache overflows.
    """
    check_fit(package.info, bundle)
    state, kept = package.state(), package.kept
    with np.errstate(over="ignore", invalid="ignore"):
        latents = bundle.encoder.project(bundle.encoder.on_grid(state).flat())
        grid = bundle.encoder.scatter(latents[kept], kept)
        runner = bundle.backend(backend, threads, device)
        keys, values = runner.project(grid[None], kept[None], positions)
    if not (np.isfinite(keys).all() and np.isfinite(values).all()):
        raise NonFiniteError(
            "the package's numbers are so large that the projected cache overflows"
        )
    return keys, values


def answer(
    package: Package,
    bundle: Bundle,
    vlm: VLM,
    question: str,
    max_new_tokens: int = 16,
    backend: str = "onnxruntime",
    threads: int = 1,
    device: str = "cpu",
) -> str:
    """The target model's answer about a picture that it never saw.

    Args:
        package: the package to ask about.
        bundle: the bundle that the package was made for.
        vlm: the target model.
        question: the question.
        max_new_tokens: longest answer, in tokens.
        backend: runs the cloud half.
        threads: of the backend.
        device: of the backend.

    Raises:
        BridgeError: as `project`; QuestionError, QuestionTooLongError: an unusable question.
    """
    ids = vlm.question_ids(question)
    keys, values = project(package, bundle, vlm.positions, backend, threads, device)
    return vlm.text(vlm.answer(vlm.scene_cache(keys, values), [ids], max_new_tokens)[0])
