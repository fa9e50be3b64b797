"""The console script `projector`: what it prints, and the code that it ends with."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from projector.bundle.certificate import Judged
from projector.bundle.describe import BundleInfo
from projector.bundle.keys import SigningKey
from projector.bundle.write import write_bundle
from projector.commands.cli import main
from projector.commands.settings import PREFIX, Settings
from projector.commands.train import SETTINGS
from projector.maps import FAMILIES
from projector.models.vlm import VLM
from projector.report.bundle_page import CONTROLS, MAPS
from protos.errors import (
    ERRORS,
    BundleCorruptError,
    BundleFormatError,
    BundleLayoutError,
    BundleMissingError,
    ConfigError,
    ModelError,
    SignatureError,
)
from protos.layout import KVLayout
from protos.points import Measured
from tests.projector.conftest import POINTS, make_encoder

# What the bundles of an earlier form hold.
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

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.delenv(PREFIX + "CONFIG", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
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
def models(vlms: dict[str, VLM]) -> list[object]:
    return ["--source", vlms["idefics3"].path, "--target", vlms["llava-llama"].path]


def cells(table: str) -> list[list[str]]:
    """Rows of words, for tables whose cells hold no two spaces."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.split("\n")
    ]


# ---------------------------------------------------------------------- layout


def test_layout_prints_a_layout_that_can_be_read_back(run: Run, vlms: dict[str, VLM]) -> None:
    expected = vlms["idefics3"].layout
    code, out, _ = run("layout", vlms["idefics3"].path)
    assert code == 0
    shown = json.loads(out)
    assert shown["fingerprint"] == expected.fingerprint
    assert (shown["tokens"], shown["state_dim"]) == (16, expected.state_dim)
    names = {field.name for field in dataclasses.fields(KVLayout)}
    plain = {name: value for name, value in shown.items() if name in names}
    assert KVLayout.from_json(json.dumps(plain)) == expected


def test_layout_depends_on_the_number_format(run: Run, vlms: dict[str, VLM]) -> None:
    code, out, _ = run("layout", vlms["idefics3"].path, "--dtype", "BFLOAT16")
    assert code == 0
    assert json.loads(out)["cache_dtype"] == "bfloat16"
    assert json.loads(out)["fingerprint"] != vlms["idefics3"].layout.fingerprint


@pytest.mark.parametrize("flags", [[], ["--check-config"]])
def test_layout_of_no_checkpoint_is_a_model_error(
    run: Run, tmp_path: Path, flags: list[str]
) -> None:
    code, out, err = run("layout", tmp_path, *flags)
    assert (code, out) == (ModelError.exit_code, "")
    assert err.startswith("projector: model: ") and str(tmp_path) in err


def test_layout_on_a_device_that_is_not_there_is_a_model_error(
    run: Run, vlms: dict[str, VLM]
) -> None:
    code, _, err = run("layout", vlms["idefics3"].path, "--device", "nowhere")
    assert code == ModelError.exit_code
    assert "'nowhere'" in err


# ---------------------------------------------------------------------- inspect


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--selector", "task_awake"), "task_aware"),
        (("--selector", "task_aware", "--selector-pictures", "0"), "--selector-pictures above 0"),
        (("--fixed", "fp8,int2"), "int2"),
        (("--raw-scale", "layer"), "invalid choice"),
    ],
)
def test_calibrate_refuses_what_it_cannot_do_before_it_reads_anything(
    run: Run, flags: tuple[str, ...], said: str
) -> None:
    names = ("bundle", "data", "corpus", "held", "held-corpus", "out")
    code, _, err = run("calibrate", *names, "--source", "s", "--target", "t", *flags)
    assert code == ConfigError.exit_code and said in err


def test_inspect_shows_what_calibration_measured_cheapest_first(
    run: Run, bundle_parts: dict[str, Any], source: KVLayout, tmp_path: Path
) -> None:
    found = {
        "fine": Measured(128, 176.5, 0.91, 0.02, 0.0),
        "coarse": Measured(21, 70, 0.9, 0.1, 0.3),
    }
    points = tuple(dataclasses.replace(p, measured=found.get(p.name)) for p in POINTS)
    points = (dataclasses.replace(points[0], dead_zone=0.2, quiet=6.0), *points[1:])
    path = tmp_path / "measured"
    write_bundle(path, **(bundle_parts | {"encoder": make_encoder(source, points=points)}))
    code, out, _ = run("inspect", path)
    assert code == 0
    rows = cells(out)
    first = rows.index(["coarse", "0.2", "6", "21", "70", "90.0 %", "0.1", "30.0 %"])
    assert rows[first + 1] == ["fine", "0", "0", "128", "176.5", "91.0 %", "0.02", "0.0 %"]
    shown = json.loads(run("inspect", path, "--json")[1])["operating_points"]
    assert shown[0]["measured"]["wire_bytes"] == 70 and "measured" not in shown[3]


def test_inspect_shows_ids_layouts_points_and_sizes(
    run: Run, written: tuple[Path, BundleInfo]
) -> None:
    path, info = written
    code, out, _ = run("inspect", path)
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
    run: Run, written: tuple[Path, BundleInfo]
) -> None:
    _, out, _ = run("inspect", written[0])
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


def test_inspect_json_holds_all_of_it(run: Run, written: tuple[Path, BundleInfo]) -> None:
    path, info = written
    code, out, _ = run("inspect", path, "--json")
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
    run: Run, bundle_parts: dict[str, Any], tmp_path: Path, certificate: dict[str, Any]
) -> None:
    write_bundle(tmp_path, **(bundle_parts | {"certificate": certificate}))
    code, out, _ = run("inspect", tmp_path)
    assert code == 0
    assert "\x1b" not in out
    if "note" in certificate:
        assert ["note", "\\x1b[31m[bold]é"] in cells(out)
    if "large" in certificate:
        assert ["deep.er.list", '[1, {"a": 2}]'] in cells(out)


def test_inspect_shows_a_judged_maps_arms_beside_its_controls_with_their_intervals(
    run: Run, bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    interval = {"mean": 0.3075, "low": 0.2625, "high": 0.355}
    certificate = {
        "accuracy": {"untrained_edge": interval, "mapped": interval},
        "mapped_minus_native": {name: -value for name, value in interval.items()},
        "singular": [3.0, 2.0, 0.5],
        "layers": [{"layer": layer} for layer in range(3)],
    }
    write_bundle(tmp_path, **(bundle_parts | {"certificate": certificate}))
    rows = cells(run("inspect", tmp_path)[1])
    share = "30.8 % (26.2 to 35.5)"
    assert ["map", "mapped", share, MAPS["mapped"]] in rows
    assert ["control", "untrained_edge", share, CONTROLS["untrained_edge"]] in rows
    assert ["mapped_minus_native", "-0.3075 (-0.2625 to -0.355)"] in rows
    assert ["singular", "3 numbers, 0.5 to 3"] in rows
    assert ["layers", "3 entries (--json shows them)"] in rows


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("name", ["bundle.json", "certificate.json", "cloud.onnx"])
def test_an_altered_byte_ends_with_the_code_of_a_corrupt_bundle(
    run: Run, bundle: Path, models: list[object], command: str, name: str
) -> None:
    blob = bytearray((bundle / name).read_bytes())
    blob[len(blob) // 2] ^= 1
    (bundle / name).write_bytes(blob)
    code, out, err = run(command, bundle, *(models if command == "verify" else []))
    assert (code, out) == (BundleCorruptError.exit_code, "")
    assert err.startswith("projector: bundle_corrupt: ") and name in err


def test_a_bundle_that_is_not_there_ends_with_its_code(run: Run, tmp_path: Path) -> None:
    code, _, err = run("inspect", tmp_path / "none")
    assert code == BundleMissingError.exit_code
    assert "none" in err


# ---------------------------------------------------------------------- verify


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_verify_passes_for_the_two_models_of_the_bundle(
    run: Run, bundle: Path, models: list[object], backend: str
) -> None:
    code, out, err = run("verify", bundle, *models, "--backend", backend, "--threads", "1")
    assert code == 0
    assert all(line.startswith("checked: ") for line in err.splitlines())
    assert out.startswith("tiny version 3 fits: ") and backend in out


def test_verify_json_names_what_was_verified(
    run: Run, written: tuple[Path, BundleInfo], models: list[object]
) -> None:
    path, info = written
    code, out, _ = run("verify", path, *models, "--json", "--threads", "1")
    assert code == 0
    shown = json.loads(out)
    assert shown["digest"] == info.digest
    assert shown["source"]["fingerprint"] == info.source.fingerprint
    assert shown["target"]["fingerprint"] == info.target.fingerprint


@pytest.mark.parametrize("side", ["source", "target"])
def test_verify_refuses_another_model_on_either_side(
    run: Run, bundle: Path, models: list[object], vlms: dict[str, VLM], side: str
) -> None:
    code, out, err = run("verify", bundle, *models, f"--{side}", vlms["llava-qwen2"].path)
    assert (code, out) == (BundleLayoutError.exit_code, "")
    assert f"expects the {side}" in err and "weights_digest" in err


def test_verify_refuses_another_number_format(run: Run, bundle: Path, models: list[object]) -> None:
    code, _, err = run("verify", bundle, *models, "--target-dtype", "bfloat16")
    assert code == BundleLayoutError.exit_code
    assert "cache_dtype" in err


def test_verify_runs_the_graph_and_refuses_one_that_is_none(
    run: Run, bundle_parts: dict[str, Any], tmp_path: Path, models: list[object]
) -> None:
    cloud = dataclasses.replace(bundle_parts["cloud"], graph=b"not a graph")
    write_bundle(tmp_path, **(bundle_parts | {"cloud": cloud}))
    code, _, err = run("verify", tmp_path, *models)
    assert code == BundleFormatError.exit_code, err


def test_verify_refuses_a_graph_that_is_not_the_weights(
    run: Run, bundle_parts: dict[str, Any], tmp_path: Path, models: list[object]
) -> None:
    weights = load(bundle_parts["cloud"].weights)
    header = bundle_parts["cloud"].weights
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    weights["up"] = 1.01 * weights["up"]
    cloud = dataclasses.replace(bundle_parts["cloud"], weights=save(weights, metadata=metadata))
    write_bundle(tmp_path, **(bundle_parts | {"cloud": cloud}))
    code, _, err = run("verify", tmp_path, *models)
    assert code == BundleFormatError.exit_code and "not the same map" in err, err


def test_verify_runs_a_bundle_between_two_grids(run: Run) -> None:
    reference = Path(__file__).parents[3] / "reference"
    models = ("--source", reference / "models/edge-b", "--target", reference / "models/cloud")
    code, out, err = run("verify", reference / "bundles/edge-b-cloud", *models, "--threads", "1")
    assert code == 0 and "fits" in out, err


def test_signatures_are_shown_and_asked_for(run: Run, bundle: Path, tmp_path: Path) -> None:
    assert "nobody" in run("inspect", bundle)[1]
    keys = [tmp_path / name for name in ("maker.pem", "other.pem")]
    assert run("sign", bundle, "--key", keys[0], "--create")[0] == 0
    made = [SigningKey.load(keys[0]), SigningKey.create(keys[1])]
    lists = [tmp_path / name for name in ("trusted", "strangers")]
    for file, key in zip(lists, made, strict=True):
        file.write_text(f'[keys]\n"the {file.name}" = "{key.public}"\n')
    assert made[0].public[:12] in run("inspect", bundle)[1]
    for command in (("inspect", bundle), ("catalogue", bundle.parent)):
        code, out, _ = run(*command, "--trusted", lists[0])
        assert code == 0 and ("trusted" in out) == (command[0] == "inspect")
        code, _, err = run(*command, "--trusted", lists[1])
        assert code == SignatureError.exit_code and "not trusted" in err
    shown = json.loads(run("inspect", bundle, "--json", "--trusted", lists[0])[1])
    assert (shown["signed_by"], shown["signer"]) == (made[0].public, "the trusted")


def test_train_help_lists_every_family_and_its_settings(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {
        name: tuple(field.name for field in dataclasses.fields(cls))
        for name, cls in FAMILIES.items()
    } == SETTINGS
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in FAMILIES) and "best_layers" in shown


def test_verify_says_which_model_is_not_given(run: Run, bundle: Path, models: list[object]) -> None:
    code, _, err = run("verify", bundle, *models[:2])
    assert code == ConfigError.exit_code
    assert "no target model: give --target, NEURAL_BRIDGE_PROJECTOR_TARGET or 'target'" in err


def test_verify_names_the_nearest_backend(run: Run, bundle: Path, models: list[object]) -> None:
    code, _, err = run("verify", bundle, *models, "--backend", "onnx-runtime")
    assert code == ConfigError.exit_code
    assert "did you mean 'onnxruntime'?" in err


# ---------------------------------------------------------------------- catalogue


def test_catalogue_lists_the_bundles_at_hand(run: Run, bundle: Path) -> None:
    shutil.copytree(bundle, bundle.parent / "deeper" / "second")
    code, out, _ = run("catalogue", bundle.parent)
    assert code == 0
    assert "edge-to-cloud" in out and "second" in out
    _, out, _ = run("catalogue", bundle.parent, "--json")
    shown = json.loads(out)
    assert [entry["id"] for entry in shown] == ["tiny", "tiny"]
    assert {Path(e["path"]) for e in shown} == {bundle, bundle.parent / "deeper" / "second"}
    assert [e["id"] for e in json.loads(run("catalogue", bundle, "--json")[1])] == ["tiny"]
    assert shown[0]["judged"]["tier_by_answers"] == "silver"


def test_catalogue_shows_tier_and_grade_of_both_forms_of_certificate() -> None:
    reference = {
        "accuracy": {"coarse": 0.9, "float": 0.93},
        "controls": {"cloud_image": 0.95, "blind": 0.3},
        "reconstruction": {"cosine": 0.52},
    }
    found = Judged.of(reference, "coarse").to_json()
    assert found["retention"] == pytest.approx(0.6 / 0.65)
    assert (found["tier_by_answers"], found["grade_by_reconstruction"]) == ("silver", "F")
    means = {"mapped": 0.94, "native": 0.95, "blind": 0.3}
    report = {
        "accuracy": {name: {"mean": mean} for name, mean in means.items()},
        "reconstruction": {"whole": {"cosine": 0.96, "mse": 0.02}},
    }
    assert Judged.of({**report, "seen_in_training": 0}, "fp8").seen == 0
    calibrated = {"seen_in_training": 3}
    assert Judged.of({**report, "seen_in_training": 0, "calibration": calibrated}, "fp8").seen == 3
    assert Judged.of({**report, "calibration": calibrated}, "fp8").seen is None
    found = Judged.of(report, "fp8").to_json()
    assert (found["tier_by_answers"], found["grade_by_reconstruction"]) == ("platinum", "B")
    for odd in (
        {},
        {"accuracy": 3, "reconstruction": "x"},
        {"accuracy": {"mapped": {"mean": "x"}}},
    ):
        said = Judged.of(odd, "fp8").to_json()
        assert said["retention"] is None and said["tier_by_answers"] is None
        assert said["grade_by_reconstruction"] is None


def test_catalogue_lists_the_rest_and_ends_with_the_code_of_the_damaged(
    run: Run, bundle: Path
) -> None:
    bad = bundle.parent / "bad"
    bad.mkdir()
    (bad / "bundle.json").write_text("{")
    code, out, err = run("catalogue", bundle.parent)
    assert code == BundleCorruptError.exit_code
    assert "tiny" in out
    assert err.startswith("projector: bundle_corrupt: ") and str(bad) in err
    shown = json.loads(run("catalogue", bundle.parent, "--json")[1])
    assert [entry.get("error", {}).get("code") for entry in shown] == [None, 602]


def test_catalogue_of_nothing_is_a_missing_bundle(run: Run, tmp_path: Path) -> None:
    assert run("catalogue", tmp_path)[0] == BundleMissingError.exit_code
    assert run("catalogue", tmp_path / "none")[0] == BundleMissingError.exit_code
    code, _, err = run("catalogue")
    assert code == ConfigError.exit_code
    assert "NEURAL_BRIDGE_PROJECTOR_BUNDLES" in err


# ---------------------------------------------------------------------- settings


def test_settings_come_from_file_and_environment(
    run: Run, bundle: Path, models: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "projector.toml"
    config.write_text(f'source = "{models[1]}"\nthreads = 1\nbundles = "{bundle.parent}"\n')
    monkeypatch.setenv("NEURAL_BRIDGE_PROJECTOR_TARGET", str(models[3]))
    assert run("verify", "edge-to-cloud", "--config", config)[0] == 0
    assert run("--config", config, "verify", "edge-to-cloud", "--backend", "torch")[0] == 0
    assert run("catalogue", "--config", config)[0] == 0


def test_check_config_prints_the_settings_and_loads_nothing(
    run: Run, bundle: Path, models: list[object], tmp_path: Path
) -> None:
    code, out, _ = run("verify", bundle, *models, "--check-config")
    assert code == 0
    assert json.loads(out)["source"] == str(models[1])
    config = tmp_path / "projector.toml"
    config.write_text('target = "nowhere"\n')
    assert run("--config", config, "--check-config")[0] == ModelError.exit_code
    config.write_text('bundles = "nowhere"\n')
    assert run("--config", config, "--check-config")[0] == BundleMissingError.exit_code
    config.write_text('backend = "nothing"\n')
    assert run("--config", config, "--check-config")[0] == ConfigError.exit_code
    config.write_text("treads = 1\n")
    code, _, err = run("--config", config, "--check-config")
    assert code == ConfigError.exit_code
    assert "did you mean threads?" in err
    assert run("inspect", tmp_path, "--check-config")[0] == BundleMissingError.exit_code


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["verifi"], ["inspect"], ["inspect", "a", "--nothing"], ["layout", "a", "b"]),
        ["train", "a", "b", "c", "--seed", str(1 << 64)],
        ["guard", "a", "b", "c", "--seed", str(1 << 64)],
        ["head", "train", "a", "b", "c", "d", "--task", "e", "--seed", str(1 << 64)],
    ],
)
def test_wrong_usage_is_a_config_error_without_a_traceback(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (ConfigError.exit_code, "")
    assert err.startswith("projector: config: ") and "Traceback" not in err


@pytest.mark.parametrize("command", [[], ["layout"], ["inspect"], ["verify"], ["catalogue"]])
def test_help_has_examples_and_every_exit_code(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "examples:\n  projector " in out or "examples:\n  NEURAL" in out
    assert all(f"  {e.exit_code:<3} {e.name}: " in out for e in ERRORS.values())


def test_every_setting_says_what_it_is_and_is_a_flag_of_some_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not [n for n, e in Settings.model_fields.items() if not e.description]
    shown = ""
    for command in ("layout", "inspect", "verify", "catalogue", "corpus"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown += capsys.readouterr().out
    assert not [n for n in Settings.model_fields if f"--{n.replace('_', '-')} " not in shown]


def test_importing_it_does_not_import_a_tensor_library() -> None:
    names = ["torch", "transformers", "onnxruntime", "onnx"]
    script = f"import projector.commands.cli, sys; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_rich_the_tables_say_what_to_install(
    run: Run, written: tuple[Path, BundleInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    code, out, err = run("inspect", written[0])
    assert (code, out) == (ConfigError.exit_code, "")
    assert "--json" in err
    assert run("inspect", written[0], "--json")[0] == 0
