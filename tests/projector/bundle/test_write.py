"""A bundle is written whole or not at all, and the same parts give the same bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.describe import BundleInfo
from projector.bundle.files import (
    FILES,
    GRAPH,
)
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.load import Bundle
from projector.bundle.sign import sign_bundle
from projector.bundle.write import write_bundle
from protos.errors import (
    BundleFormatError,
    BundleMissingError,
    ConfigError,
    DiskFullError,
    SignatureError,
)
from protos.layout import KVLayout
from tests.projector.bundle.test_refusals import elsewhere


def test_writing_twice_gives_the_same_bytes(
    bundle_parts: dict[str, Any], bundle_info: tuple[Path, BundleInfo], tmp_path: Path
) -> None:
    again = write_bundle(tmp_path, **bundle_parts)
    assert again.digest == bundle_info[1].digest
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((*FILES, "bundle.json"))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_way_back_of_other_models_cannot_be_bundled(
    two_way: dict[str, Any], tmp_path: Path, part: str
) -> None:
    feedback, other = two_way["feedback"], two_way["source"].fingerprint
    wrong = dataclasses.replace(getattr(feedback, part), source_fingerprint=other)
    with pytest.raises(BundleFormatError, match="not for these models"):
        write_bundle(
            tmp_path, **{**two_way, "feedback": dataclasses.replace(feedback, **{part: wrong})}
        )


def test_a_half_written_bundle_is_missing_not_wrong(
    bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    parts = {**bundle_parts, "default_point": 99}
    with pytest.raises(BundleFormatError):
        write_bundle(tmp_path, **parts)
    with pytest.raises(BundleMissingError):
        Bundle.peek(tmp_path)


def test_an_encoder_of_another_source_cannot_be_bundled(
    bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BundleFormatError, match="another source"):
        write_bundle(tmp_path, **{**bundle_parts, "source": bundle_parts["target"]})


def test_a_graph_with_weights_elsewhere_is_not_written_either(
    folder: Path, two_way: dict[str, Any], tmp_path: Path
) -> None:
    write_bundle(folder, **two_way)
    cloud = dataclasses.replace(two_way["cloud"], graph=elsewhere(folder / GRAPH))
    with pytest.raises(BundleFormatError, match=r"604\.11"):
        write_bundle(tmp_path / "another", **(two_way | {"cloud": cloud}))
    assert not (tmp_path / "another").exists()


def test_writing_a_bundle_anew_removes_the_old_signature(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey, bundle_parts: dict[str, Any]
) -> None:
    sign_bundle(folder, key)
    write_bundle(folder, **{**bundle_parts, "version": 4})
    assert Bundle.load(folder, source, target).info.version == 4
    with pytest.raises(SignatureError, match="605.3"):
        Bundle.load(folder, source, target, trusted=TrustedKeys({key.public: "build"}))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_with_no_room_left_the_earlier_bundle_stays_whole(
    folder: Path, source: KVLayout, target: KVLayout, bundle_parts: dict[str, Any], name: str
) -> None:
    (folder / f"{name}.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="no room to write .* bytes") as caught:
        write_bundle(folder, **{**bundle_parts, "version": 4})
    assert caught.value.code == 610
    assert Bundle.load(folder, source, target).info.version == 3
    assert not list(folder.glob("*.part"))


def test_a_folder_that_cannot_be_made_is_a_config_error(
    bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot write"):
        write_bundle(tmp_path / "file" / "bundle", **bundle_parts)


@pytest.mark.parametrize("earlier", [False, True], ids=["new folder", "over an earlier bundle"])
def test_a_write_stopped_at_any_step_leaves_one_whole_bundle_or_none(
    bundle_info: tuple[Path, BundleInfo],
    bundle_parts: dict[str, Any],
    source: KVLayout,
    target: KVLayout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    earlier: bool,
) -> None:
    """The process dies at each call that touches the disk, in turn; nothing cleans up after it."""
    seen = []
    for step in range(100):
        folder = tmp_path / str(step)
        if earlier:
            shutil.copytree(bundle_info[0], folder)
        with monkeypatch.context() as patched:
            died = stop_at(step, patched)
            with contextlib.suppress(Stopped):
                write_bundle(folder, **{**bundle_parts, "version": 4})
        try:
            seen.append(Bundle.load(folder, source, target).info.version)
        except BundleMissingError:
            seen.append(0)
        if not died():
            break
    whole = seen.index(4)
    assert seen[-1] == 4 and set(seen[whole:]) == {4}, seen
    assert set(seen[:whole]) == ({3, 0} if earlier else {0}), seen
    assert len(seen) > 10


class Stopped(BaseException):
    """What no handler of the writer may catch and tidy up after."""


def stop_at(step: int, patched: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Let `step` calls that change the disk pass; that one and all later ones raise."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                raise Stopped
            return real(*args, **kwargs)

        return call

    patched.setattr(os, "fsync", counted(os.fsync))
    patched.setattr(os, "replace", counted(os.replace))
    patched.setattr(Path, "unlink", counted(Path.unlink))
    return lambda: count > step
