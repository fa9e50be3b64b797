"""`projector catalogue`: every bundle in a folder, and which of them are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from protos.errors import (
    BundleCorruptError,
    BundleMissingError,
    ConfigError,
)
from tests.projector.commands.conftest import Program


def test_catalogue_lists_the_bundles_at_hand(program: Program, bundle: Path) -> None:
    shutil.copytree(bundle, bundle.parent / "deeper" / "second")
    code, out, _ = program("catalogue", bundle.parent)
    assert code == 0
    assert "edge-to-cloud" in out and "second" in out
    _, out, _ = program("catalogue", bundle.parent, "--json")
    shown = json.loads(out)
    assert [entry["id"] for entry in shown] == ["tiny", "tiny"]
    assert {Path(e["path"]) for e in shown} == {bundle, bundle.parent / "deeper" / "second"}
    assert [e["id"] for e in json.loads(program("catalogue", bundle, "--json")[1])] == ["tiny"]
    assert shown[0]["judged"]["tier_by_answers"] == "silver"


def test_catalogue_lists_the_rest_and_ends_with_the_code_of_the_damaged(
    program: Program, bundle: Path
) -> None:
    bad = bundle.parent / "bad"
    bad.mkdir()
    (bad / "bundle.json").write_text("{")
    code, out, err = program("catalogue", bundle.parent)
    assert code == BundleCorruptError.exit_code
    assert "tiny" in out
    assert err.startswith("projector: bundle_corrupt: ") and str(bad) in err
    shown = json.loads(program("catalogue", bundle.parent, "--json")[1])
    assert [entry.get("error", {}).get("code") for entry in shown] == [None, 602]


def test_catalogue_of_nothing_is_a_missing_bundle(program: Program, tmp_path: Path) -> None:
    assert program("catalogue", tmp_path)[0] == BundleMissingError.exit_code
    assert program("catalogue", tmp_path / "none")[0] == BundleMissingError.exit_code
    code, _, err = program("catalogue")
    assert code == ConfigError.exit_code
    assert "NEURAL_BRIDGE_PROJECTOR_BUNDLES" in err
