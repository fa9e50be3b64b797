"""`projector inspect`: what a bundle holds and what was measured of it, for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.describe import BundleInfo
from projector.bundle.keys import SigningKey
from projector.bundle.write import write_bundle
from projector.report.bundle_page import CONTROLS, MAPS
from protos.errors import (
    BundleCorruptError,
    BundleMissingError,
    ConfigError,
    SignatureError,
)
from protos.layout import KVLayout
from protos.points import Measured
from tests.projector.commands.conftest import CERTIFICATE, Program
from tests.projector.conftest import POINTS, make_encoder


def cells(table: str) -> list[list[str]]:
    """Rows of words, for tables whose cells hold no two spaces."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.split("\n")
    ]


def test_inspect_shows_what_calibration_measured_cheapest_first(
    program: Program, bundle_parts: dict[str, Any], source: KVLayout, tmp_path: Path
) -> None:
    found = {
        "fine": Measured(128, 176.5, 0.91, 0.02, 0.0),
        "coarse": Measured(21, 70, 0.9, 0.1, 0.3),
    }
    points = tuple(dataclasses.replace(p, measured=found.get(p.name)) for p in POINTS)
    points = (dataclasses.replace(points[0], dead_zone=0.2, quiet=6.0), *points[1:])
    path = tmp_path / "measured"
    write_bundle(path, **(bundle_parts | {"encoder": make_encoder(source, points=points)}))
    code, out, _ = program("inspect", path)
    assert code == 0
    rows = cells(out)
    first = rows.index(["coarse", "0.2", "6", "21", "70", "90.0 %", "0.1", "30.0 %"])
    assert rows[first + 1] == ["fine", "0", "0", "128", "176.5", "91.0 %", "0.02", "0.0 %"]
    shown = json.loads(program("inspect", path, "--json")[1])["operating_points"]
    assert shown[0]["measured"]["wire_bytes"] == 70 and "measured" not in shown[3]


def test_inspect_shows_ids_layouts_points_and_sizes(
    program: Program, written: tuple[Path, BundleInfo]
) -> None:
    path, info = written
    code, out, _ = program("inspect", path)
    assert code == 0
    rows = cells(out)
    assert ["id", "tiny"] in rows
    assert ["version", "3"] in rows
    assert ["digest", info.digest] in rows
    assert ["ladder", "coarse > fine > picture"] in rows
    assert ["default point", "fine"] in rows
    assert ["fingerprint", info.source.fingerprint[:16], info.target.fingerprint[:16]] in rows
    assert ["image tokens", "16 (4 x 4)", "16 (4 x 4)"] in rows
    assert ["1", "0", "coarse", "latent", "uniform", "8", "8", "21.75", "87.6 %"] in rows
    assert ["2 *", "1", "fine", "latent", "fp8_e4m3", "all", "8", "128", "90.4 %"] in rows
    raw = f"{info.source.tokens * info.source.state_dim:,}"
    assert ["-", "253", "raw_kv_fp8", "raw_kv", "fp8_e4m3", "all", "-", raw, "-"] in rows
    for name, (size, digest) in info.files.items():
        assert [name, f"{size:,}", digest[:16]] in rows


def test_inspect_shows_every_certified_figure_beside_its_controls(
    program: Program, written: tuple[Path, BundleInfo]
) -> None:
    _, out, _ = program("inspect", written[0])
    rows = cells(out)
    assert ["map", "fine", "90.4 %", "the default point"] in rows
    assert ["map", "closed_form", "41.2 %", "least squares alone, before any training"] in rows
    assert ["map", "float", "90.9 %", "latents that are not quantized"] in rows
    for name, meaning in CONTROLS.items():
        share = f"{100 * CERTIFICATE['controls'][name]:.1f} %"  # type: ignore[index]
        assert ["control", name, share, meaning] in rows
    assert ["split", "validation"] in rows
    assert ["questions", "3,072"] in rows
    assert ["reconstruction.cosine", "0.93"] in rows
    assert ["training.minutes", "93.5"] in rows


def test_inspect_json_holds_all_of_it(program: Program, written: tuple[Path, BundleInfo]) -> None:
    path, info = written
    code, out, _ = program("inspect", path, "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["certificate"] == CERTIFICATE
    assert (shown["id"], shown["version"], shown["digest"]) == ("tiny", 3, info.digest)
    assert shown["target_layout"]["fingerprint"] == info.target.fingerprint
    assert [p["name"] for p in shown["operating_points"]] == [p.name for p in info.points]
    assert shown["ladder"] == [0, 1, 254]


@pytest.mark.parametrize(
    "certificate",
    [
        {},
        {"accuracy": 0.5, "controls": [], "payload_bytes": None},
        {"accuracy": {"fine": "good", "coarse": None, "x": True}, "note": "\x1b[31m[bold]é"},
        {"deep": {"er": {"list": [1, {"a": 2}]}}, "large": 1e30, "nothing": None},
        {"deep": {"mean": None, "low": 1, "high": 2}, "accuracy": {"x": {"mean": "a"}}},
        {"a": [10**400] * 3, "b": {"mean": 10**400, "low": 1, "high": 2}, "accuracy": {"y": 30.7}},
    ],
)
def test_inspect_shows_a_certificate_of_any_other_form(
    program: Program, bundle_parts: dict[str, Any], tmp_path: Path, certificate: dict[str, Any]
) -> None:
    write_bundle(tmp_path, **(bundle_parts | {"certificate": certificate}))
    code, out, _ = program("inspect", tmp_path)
    assert code == 0
    assert "\x1b" not in out
    if "note" in certificate:
        assert ["note", "\\x1b[31m[bold]é"] in cells(out)
    if "large" in certificate:
        assert ["deep.er.list", '[1, {"a": 2}]'] in cells(out)


def test_inspect_shows_a_judged_maps_arms_beside_its_controls_with_their_intervals(
    program: Program, bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    interval = {"mean": 0.3075, "low": 0.2625, "high": 0.355}
    certificate = {
        "accuracy": {"untrained_edge": interval, "mapped": interval},
        "mapped_minus_native": {name: -value for name, value in interval.items()},
        "singular": [3.0, 2.0, 0.5],
        "layers": [{"layer": layer} for layer in range(3)],
    }
    write_bundle(tmp_path, **(bundle_parts | {"certificate": certificate}))
    rows = cells(program("inspect", tmp_path)[1])
    share = "30.8 % (26.2 to 35.5)"
    assert ["map", "mapped", share, MAPS["mapped"]] in rows
    assert ["control", "untrained_edge", share, CONTROLS["untrained_edge"]] in rows
    assert ["mapped_minus_native", "-0.3075 (-0.2625 to -0.355)"] in rows
    assert ["singular", "3 numbers, 0.5 to 3"] in rows
    assert ["layers", "3 entries (--json shows them)"] in rows


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("name", ["bundle.json", "certificate.json", "cloud.onnx"])
def test_an_altered_byte_ends_with_the_code_of_a_corrupt_bundle(
    program: Program, bundle: Path, pair: list[object], command: str, name: str
) -> None:
    blob = bytearray((bundle / name).read_bytes())
    blob[len(blob) // 2] ^= 1
    (bundle / name).write_bytes(blob)
    code, out, err = program(command, bundle, *(pair if command == "verify" else []))
    assert (code, out) == (BundleCorruptError.exit_code, "")
    assert err.startswith("projector: bundle_corrupt: ") and name in err


def test_a_bundle_that_is_not_there_ends_with_its_code(program: Program, tmp_path: Path) -> None:
    code, _, err = program("inspect", tmp_path / "none")
    assert code == BundleMissingError.exit_code
    assert "none" in err


def test_signatures_are_shown_and_asked_for(program: Program, bundle: Path, tmp_path: Path) -> None:
    assert "nobody" in program("inspect", bundle)[1]
    keys = [tmp_path / name for name in ("maker.pem", "other.pem")]
    assert program("sign", bundle, "--key", keys[0], "--create")[0] == 0
    made = [SigningKey.load(keys[0]), SigningKey.create(keys[1])]
    lists = [tmp_path / name for name in ("trusted", "strangers")]
    for file, key in zip(lists, made, strict=True):
        file.write_text(f'[keys]\n"the {file.name}" = "{key.public}"\n')
    assert made[0].public[:12] in program("inspect", bundle)[1]
    for command in (("inspect", bundle), ("catalogue", bundle.parent)):
        code, out, _ = program(*command, "--trusted", lists[0])
        assert code == 0 and ("trusted" in out) == (command[0] == "inspect")
        code, _, err = program(*command, "--trusted", lists[1])
        assert code == SignatureError.exit_code and "not trusted" in err
    shown = json.loads(program("inspect", bundle, "--json", "--trusted", lists[0])[1])
    assert (shown["signed_by"], shown["signer"]) == (made[0].public, "the trusted")


def test_without_rich_the_tables_say_what_to_install(
    program: Program, written: tuple[Path, BundleInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    code, out, err = program("inspect", written[0])
    assert (code, out) == (ConfigError.exit_code, "")
    assert "--json" in err
    assert program("inspect", written[0], "--json")[0] == 0
