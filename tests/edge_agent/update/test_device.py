"""An update is taken only by the devices that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent.update.device import Platform, check_device
from protos.errors import UpdateError
from protos.update import Manifest, UpdateFile

HERE = Platform("aarch64", "3.12", "7")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"machine": "riscv64"}, "it is for riscv64"),
        ({"python": "2.7"}, "it is for Python 2.7"),
        ({"jetpack": "6"}, "it is for JetPack 6, this device has 7"),
        ({"number": 5}, "number 5 runs"),
        ({"number": 4}, "number 5 runs"),
    ],
)
def test_an_update_for_another_device_or_an_older_one_is_refused(
    fields: dict[str, Any], said: str
) -> None:
    plain = {"number": 6, "version": "v", "machine": "any", "python": "any"} | fields
    manifest = Manifest(files={"model/a": UpdateFile(0, "0" * 64)}, **plain)  # type: ignore[arg-type]
    with pytest.raises(UpdateError, match=said):
        check_device(manifest, 5, older=False, here=HERE)
    if "number" in fields:
        check_device(manifest, 5, older=True, here=HERE)


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "6"),
        ("# R38 (release), REVISION: 2.0", "7"),
        ("# R44 (release), REVISION: 1.0", "R44"),
        ("something else", "none"),
        (None, "none"),
    ],
)
def test_jetpack_is_known_by_the_release_of_jetson_linux(
    tmp_path: Path, release: str | None, jetpack: str
) -> None:
    file = tmp_path / "nv_tegra_release"
    if release is not None:
        file.write_text(release)
    assert Platform.here(file).jetpack == jetpack
