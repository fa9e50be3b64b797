"""`projector package …`: what it prints, what it writes, and the code that it ends with."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import package as packages
from projector.bundle.describe import BundleInfo
from projector.bundle.load import Bundle
from projector.bundle.write import write_bundle
from projector.commands import cli
from projector.commands import package as package_commands
from projector.commands.bundles import intact
from projector.commands.package.create import certified
from projector.commands.settings import PREFIX, Settings
from projector.models.vlm import VLM
from protos.errors import (
    BundleLayoutError,
    BundleMissingError,
    BundleVersionError,
    ConfigError,
    DiskFullError,
    ModelError,
    PackageCorruptError,
    PictureError,
    QuestionError,
    SignatureError,
)
from tests.fakes.tiny_models import picture

Run = Callable[..., tuple[int, str, str]]
QUESTION = "what is this"
CERTIFICATE = {"accuracy": {"fine": 0.875}, "controls": {"cloud_image": 0.9}}
CERTIFIED = {
    "tier": "silver",
    "epsilon": 0.5,
    "retention": 0.91,
    "verified_at": "2026-01-31T12:00:00Z",
    "report": "r1",
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the developer's own."""
    for name in (*Settings.model_fields, "config"):
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["package", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        lines = captured.err.splitlines(keepends=True)
        said = "".join(line for line in lines if not line.startswith("checked: "))
        return code, captured.out, said

    return call


@pytest.fixture(scope="module")
def bundle(
    bundle_parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, BundleInfo]:
    path = tmp_path_factory.mktemp("bundles") / "edge-to-cloud"
    return path, write_bundle(path, **(bundle_parts | {"certificate": CERTIFICATE}))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "yard.png"
    picture(1).save(path)
    return path


@pytest.fixture
def creating(bundle: tuple[Path, BundleInfo], photo: Path, vlms: dict[str, VLM]) -> list[object]:
    return [
        *("--model", vlms["idefics3"].path),
        *("--picture", photo),
        *("--bundle", bundle[0]),
        *("--creator", "yard team"),
    ]


@pytest.fixture(scope="module")
def made_once(
    bundle: tuple[Path, BundleInfo], vlms: dict[str, VLM], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One package of one picture, as `create` makes it, bundle embedded."""
    path, info = bundle
    vlm = vlms["idefics3"]
    made = packages.create(
        vlm.states(vlm.prefill([picture(1)]))[0],
        np.ones(16, dtype=np.bool_),
        vlm.layout,
        Bundle.load(path, info.source, info.target),
        id="once",
        created="2026-01-31T12:00:00Z",
        creator="yard team",
        description="esc \x1b[31m",
        embed=True,
    )
    file = tmp_path_factory.mktemp("packages") / "once.neural-bridge"
    packages.write(made, file)
    return file


@pytest.fixture
def file(made_once: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copy(made_once, tmp_path / "p.neural-bridge"))


@pytest.fixture
def key(run: Run, tmp_path: Path) -> tuple[Path, Path]:
    """A private key and a list that trusts it."""
    path, trusted = tmp_path / "maker.pem", tmp_path / "trusted.toml"
    code, public, _ = run("keygen", path)
    assert code == 0
    trusted.write_text(f'[keys]\n"the maker" = "{public.strip()}"\n')
    return path, trusted


# ---------------------------------------------------------------------- create and apply


@pytest.mark.slow
def test_a_created_package_answers_as_the_direct_way_does(
    run: Run,
    creating: list[object],
    vlms: dict[str, VLM],
    bundle: tuple[Path, BundleInfo],
    tmp_path: Path,
) -> None:
    output = tmp_path / "yard.neural-bridge"
    code, out, err = run("create", output, *creating, "--codec", "float32", "--tokens", 11)
    assert (code, err) == (0, "")
    info = packages.verify(output).info
    assert out.startswith(f"{output}: {info.digest}, 11 of 16 tokens") and "not signed" in out
    assert info.metadata.transformation_quality is None  # nobody has measured 11 tokens
    whole = tmp_path / "whole.neural-bridge"
    assert run("create", whole, *creating)[0] == 0
    assert packages.verify(whole).info.metadata.transformation_quality == 0.875
    assert info.metadata.created.startswith("20")

    target, source = vlms["llava-llama"], vlms["idefics3"]
    opened = Bundle.load(bundle[0], source.layout, target.layout)
    state = source.states(source.prefill([picture(1)]))[0]
    kept = packages.read(output).kept
    grid = opened.encoder.scatter(opened.encoder.project(state.flat())[kept], kept)
    keys, values = opened.backend().project(grid[None], kept[None], target.positions)
    expected = target.generate_text(target.scene_cache(keys, values), [QUESTION])[0]

    arguments = ["apply", output, QUESTION, "--target", target.path, "--threads", 1]
    code, out, err = run(*arguments, "--bundle", bundle[0])
    assert (code, err) == (0, "")
    assert out == expected + "\n" and expected
    assert run(*arguments, "--bundle", "edge-to-cloud", "--bundles", bundle[0].parent)[1] == out
    assert run(*arguments)[0] == ConfigError.exit_code  # no bundle is named, nor embedded


@pytest.mark.slow
def test_an_embedded_package_needs_nothing_but_the_model(
    run: Run, file: Path, vlms: dict[str, VLM]
) -> None:
    target = ["--target", vlms["llava-llama"].path, "--threads", 1]
    code, out, err = run("apply", file, QUESTION, *target)
    assert (code, err) == (0, "") and out.strip()
    assert run("apply", file, QUESTION, *target, "--backend", "torch")[1] == out
    assert run("apply", file, QUESTION, *target, "--max-new-tokens", 1)[1] != out
    code, _, err = run("apply", file, " ", *target)
    assert code == QuestionError.exit_code


def test_apply_refuses_what_does_not_fit(
    run: Run, file: Path, vlms: dict[str, VLM], bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    target = ["--target", vlms["llava-llama"].path]
    code, out, err = run("apply", file, QUESTION, "--target", vlms["llava-qwen2"].path)
    assert (code, out) == (BundleLayoutError.exit_code, "")
    assert "expects the target" in err
    write_bundle(tmp_path / "b", **(bundle_parts | {"version": 9}))
    code, _, err = run("apply", file, QUESTION, *target, "--bundle", tmp_path / "b")
    assert code == BundleVersionError.exit_code and "version 9" in err
    assert run("apply", file, QUESTION)[0] == ConfigError.exit_code
    assert run("apply", file, QUESTION, "--target", tmp_path)[0] == ModelError.exit_code
    code, _, _ = run("apply", file, QUESTION, *target, "--bundle", tmp_path / "none")
    assert code == BundleMissingError.exit_code


def test_create_holds_all_that_it_was_told(
    run: Run, creating: list[object], key: tuple[Path, Path], file: Path, tmp_path: Path
) -> None:
    certification = tmp_path / "certification.json"
    certification.write_text(json.dumps(CERTIFIED))
    output = tmp_path / "out.neural-bridge"
    code, out, _ = run(
        *("create", output, *creating, "--embed", "--share", 0.5, "--selector", "kv_norm"),
        *("--description", "two crates", "--royalty", 2.5, "--quality", 0.5, "--id", "yard-1"),
        *("--certification", certification, "--package-version", 4, "--key", key[0]),
        *("--parent", file),
    )
    assert code == 0 and ", signed" in out
    link = packages.verify_chain(output, [file])[0]
    meta, said = link.info.metadata, link.info.provenance
    assert (meta.id, meta.version, meta.description) == ("yard-1", 4, "two crates")
    assert meta.certification == packages.Certification(**CERTIFIED)  # type: ignore[arg-type]
    assert meta.transformation_quality == 0.5
    assert 0 < meta.tokens < 16
    assert (said.creator, said.royalty_percent) == ("yard team", 2.5)
    assert said.derivation == ("continue",)
    assert link.info.w_matrix.embedded
    assert run("verify", output, "--trusted", key[1])[0] == 0


def test_create_refuses_bad_input_before_it_writes(
    run: Run, creating: list[object], vlms: dict[str, VLM], file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "out.neural-bridge"
    output.parent.mkdir()
    text = tmp_path / "text.json"
    text.write_text("{}")
    other = vlms["llava-qwen2"].path
    for arguments, expected in (
        (["--picture", text], PictureError),
        (["--picture", tmp_path / "none"], PictureError),
        (["--model", other], BundleLayoutError),
        (["--model", tmp_path], ModelError),
        (["--bundle", tmp_path], BundleMissingError),
        (["--key", text], ConfigError),
        (["--certification", text], ConfigError),
        (["--certification", tmp_path / "none"], ConfigError),
        (["--parent", text], PackageCorruptError),
        (["--share", 2], ConfigError),
        (["--tokens", 0], ConfigError),
        (["--codec", "int3"], ConfigError),
    ):
        code, out, err = run("create", output, *creating, *arguments)
        assert (code, out) == (expected.exit_code, ""), (arguments, err)
        assert err.startswith(f"projector: {expected.name}: ")
    assert run("create", file, *creating)[0] == ConfigError.exit_code
    assert run("create", tmp_path / "no" / "x", *creating)[0] == ConfigError.exit_code
    assert not list(output.parent.iterdir())


def test_a_full_disk_ends_with_its_code_and_leaves_nothing(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "full"
    folder.mkdir()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    derive = ["derive", file, folder / "x", "--creator", "me", "--tokens", 2]
    assert run(*derive)[0] == DiskFullError.exit_code
    assert not list(folder.iterdir())


def test_a_package_is_certified_by_what_its_bundles_certificate_says(
    bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    def said(**changed: Any) -> packages.Certification | None:
        certificate = {
            "accuracy": {"mapped": {"mean": 0.87}, "native": {"mean": 0.9}, "blind": {"mean": 0.3}},
            "reconstruction": {"whole": {"relative_l2": 0.4, "cosine": 0.9}},
            "judged_at": CERTIFIED["verified_at"],
            "seen_in_training": 0,
            **changed,
        }
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_bundle(folder, **(bundle_parts | {"certificate": certificate}))
        return certified(intact(folder))

    found = said()
    assert found is not None and found.report.startswith("certificate of bundle ")
    assert (found.tier, found.epsilon, found.retention) == ("gold", 0.4, 0.95)
    assert found.verified_at == CERTIFIED["verified_at"]
    poor = {"mapped": {"mean": 0.4}, "native": {"mean": 0.9}, "blind": {"mean": 0.3}}
    for changed in (
        {"judged_at": None},
        {"seen_in_training": 3},
        {"seen_in_training": None},
        {"judged_at": "yesterday"},
        {"reconstruction": {}},
        {"reconstruction": {"whole": {"relative_l2": "small"}}},
        {"accuracy": {}},
        {"accuracy": poor},
    ):
        assert said(**changed) is None, changed


# ---------------------------------------------------------------------- inspect and verify


def test_inspect_shows_what_the_package_says(run: Run, file: Path) -> None:
    info = packages.verify(file).info
    code, out, err = run("inspect", file)
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["id"] == "once"
    assert rows["digest"] == info.digest
    assert rows["description"] == "esc \\x1b[31m"
    assert rows["tokens"] == "16 of 16 (4 x 4)"
    assert rows["certification"] == rows["parent"] == rows["signed"].split()[-1] == "-"
    assert rows["bundle"].startswith("tiny version 3") and rows["bundle"].endswith(" embedded")
    assert packages.KEYS in rows
    code, out, _ = run("inspect", file, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["digest"] == info.digest == shown["provenance"]["digest"]
    assert shown["metadata"]["kv_cache"]["codec"] == "fp8_e4m3"
    assert shown["w_matrix"]["bundle_version"] == 3


@pytest.mark.parametrize("command", ["inspect", "verify", "sign", "apply", "derive"])
def test_an_altered_byte_ends_with_the_code_of_a_corrupt_package(
    run: Run, file: Path, command: str, key: tuple[Path, Path], vlms: dict[str, VLM], tmp_path: Path
) -> None:
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(blob)
    more: dict[str, list[object]] = {
        "sign": ["--key", key[0]],
        "apply": [QUESTION, "--target", vlms["llava-llama"].path],
        "derive": [tmp_path / "out", "--creator", "me", "--tokens", 3],
    }
    code, out, err = run(command, file, *more.get(command, []))
    assert (code, out) == (PackageCorruptError.exit_code, "")
    assert err.startswith(f"projector: package_corrupt: {file}: ")
    assert file.read_bytes() == bytes(blob)


def test_a_package_that_is_not_there_is_a_config_error(run: Run, tmp_path: Path) -> None:
    code, _, err = run("verify", tmp_path / "none")
    assert code == ConfigError.exit_code and "none" in err


def test_signing_and_trust(run: Run, file: Path, key: tuple[Path, Path], tmp_path: Path) -> None:
    private, trusted = key
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert run("verify", file)[0] == 0
    code, _, err = run("verify", file, "--trusted", trusted)
    assert code == SignatureError.exit_code and "not signed" in err
    copy = tmp_path / "signed.neural-bridge"
    assert run("sign", file, "--key", private, "--output", copy)[0] == 0
    assert run("verify", file, "--trusted", trusted)[0] == SignatureError.exit_code
    code, out, _ = run("verify", copy, "--trusted", trusted)
    assert code == 0 and "'the maker'" in out
    shown = json.loads(run("verify", copy, "--trusted", trusted, "--json")[1])
    assert shown["signed"] and shown["to_root"]
    assert shown["chain"][0]["signer"] == "the maker"
    other = tmp_path / "other.pem"
    run("keygen", other)
    code, _, err = run("sign", copy, "--key", other)
    assert code == ConfigError.exit_code and "--replace" in err
    assert run("sign", copy, "--key", other, "--replace")[0] == 0
    code, _, err = run("verify", copy, "--trusted", trusted)
    assert code == SignatureError.exit_code and "not trusted" in err
    assert run("keygen", other)[0] == ConfigError.exit_code


def test_apply_with_trust_refuses_an_unsigned_package(
    run: Run, file: Path, key: tuple[Path, Path], vlms: dict[str, VLM]
) -> None:
    apply = ["apply", file, QUESTION, "--target", vlms["llava-llama"].path, "--trusted", key[1]]
    code, out, _ = run(*apply)
    assert (code, out) == (SignatureError.exit_code, "")
    run("sign", file, "--key", key[0])
    assert run(*apply)[0] == 0


# ---------------------------------------------------------------------- derive


def test_a_chain_of_derivations_verifies_to_its_root(
    run: Run, file: Path, key: tuple[Path, Path]
) -> None:
    folder = file.parent
    child, leaf = folder / "child.neural-bridge", folder / "leaf.neural-bridge"
    assert run("derive", file, child, "--creator", "you", "--tokens", 5)[0] == 0
    derive = ["derive", child, leaf, "--creator", "her", "--description", "x", "--share", 0.5]
    assert run(*derive, "--codec", "float16", "--royalty", 1, "--key", key[0])[0] == 0
    parent, ours = packages.read(child), packages.read(leaf)
    assert parent.kept.sum() == 5
    assert 0 < ours.kept.sum() < 5 and not (ours.kept & ~parent.kept).any()
    code, out, _ = run("verify", leaf, "--among", folder)
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [str(leaf), str(child), str(file)]
    code, out, _ = run("verify", leaf, "--among", child, file, "--json")
    shown = json.loads(out)
    assert [link["creator"] for link in shown["chain"]] == ["her", "you", "yard team"]
    assert [link["royalty_percent"] for link in shown["chain"]] == [1.0, 0.0, 0.0]
    assert shown["to_root"]
    assert "--among" in run("verify", leaf)[1]
    assert not json.loads(run("verify", leaf, "--json")[1])["to_root"]
    child.unlink()
    code, _, err = run("verify", leaf, "--among", folder)
    assert code == ConfigError.exit_code and "parent" in err


def test_a_derivation_that_changes_nothing_is_refused(run: Run, file: Path, tmp_path: Path) -> None:
    code, _, err = run("derive", file, tmp_path / "x", "--creator", "me")
    assert code == ConfigError.exit_code and "nothing would be changed" in err
    assert not (tmp_path / "x").exists()


def test_a_derivation_for_another_bundle_names_it(
    run: Run, file: Path, bundle_parts: dict[str, Any], tmp_path: Path, vlms: dict[str, VLM]
) -> None:
    write_bundle(tmp_path / "b", **(bundle_parts | {"version": 9}))
    output = tmp_path / "out.neural-bridge"
    arguments = ["derive", file, output, "--creator", "me", "--bundle", tmp_path / "b"]
    assert run(*arguments)[0] == 0
    w_matrix = packages.verify(output).info.w_matrix
    assert (w_matrix.bundle_version, w_matrix.embedded) == (9, False)
    target = ["--target", vlms["llava-llama"].path, "--bundle", tmp_path / "b"]
    assert run("apply", output, QUESTION, *target)[0] == 0
    assert run(*arguments)[0] == ConfigError.exit_code  # it is there by now
    assert run(*arguments, "--overwrite", "--embed")[0] == 0
    assert packages.verify(output).info.w_matrix.embedded


# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize("command", [[], *([name] for name in package_commands.COMMANDS)])
def test_help_has_examples_and_every_exit_code(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["package", *command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "examples:\n  projector package " in out
    assert "exit codes: " in out and "see projector --help" in out


@pytest.mark.parametrize(
    "arguments",
    [[], ["verifi"], ["create", "x"], ["inspect", "a", "b"], ["sign", "a"], ["apply", "a"]],
)
def test_wrong_usage_is_a_config_error(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (ConfigError.exit_code, "")
    assert err.startswith("projector: config: ")


def test_check_config_loads_nothing(
    run: Run, creating: list[object], file: Path, tmp_path: Path
) -> None:
    code, out, _ = run("create", tmp_path / "x", *creating, "--check-config")
    assert code == 0 and json.loads(out)["source"] == str(creating[1])
    assert run("--check-config")[0] == 0
    for command in (["inspect", file], ["verify", file], ["keygen", tmp_path / "k"]):
        assert run(*command, "--check-config")[0] == 0
    assert not (tmp_path / "x").exists() and not (tmp_path / "k").exists()
    code, _, _ = run("apply", file, "q", "--bundle", tmp_path, "--check-config")
    assert code == BundleMissingError.exit_code
