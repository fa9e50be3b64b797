"""Signatures, and chains of packages up to the root."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector import package as packages
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.package import CONFIG, Package
from projector.package.make import _assembled
from protos.errors import ConfigError, PackageCorruptError, PackageFormatError, SignatureError
from tests.projector.package.conftest import SMALL, WHEN, make, random_state

# ---------------------------------------------------------------------- signatures


def trust(*keys: SigningKey) -> TrustedKeys:
    return TrustedKeys({key.public: f"maker {index}" for index, key in enumerate(keys)})


def test_a_trusted_signature_names_its_maker(file: Path, key: SigningKey) -> None:
    made = make()
    packages.write(packages.sign(made, key), file)
    link = packages.verify(file, trust(key))
    assert link.signer == "maker 0"
    assert link.info.digest == made.info.digest  # signing does not rename a package


def test_what_no_trusted_key_signed_is_refused(file: Path, key: SigningKey, tmp_path: Path) -> None:
    other = SigningKey.create(tmp_path / "other.pem")
    packages.write(make(), file)
    with pytest.raises(SignatureError, match="not signed"):
        packages.verify(file, trust(key))
    packages.write(packages.sign(make(), other), file, overwrite=True)
    packages.verify(file)
    with pytest.raises(SignatureError, match="not trusted"):
        packages.verify(file, trust(key))


def test_a_signature_of_another_package_is_refused_even_where_no_trust_is_asked_for(
    file: Path, key: SigningKey
) -> None:
    signature = packages.sign(make(description="another"), key).info.provenance.signature
    info = make().info
    stolen = dataclasses.replace(info.provenance, signature=signature)
    moved = Package(dataclasses.replace(info, provenance=stolen), make().members)
    packages.write(moved, file)
    for trusted in (None, trust(key)):
        with pytest.raises(SignatureError):
            packages.verify(file, trusted)


# ---------------------------------------------------------------------- chains


def chain_of_three(folder: Path, key: SigningKey) -> list[Path]:
    root = make(kept=(True, True, True), codec="float16")
    fields: dict[str, Any] = {"created": WHEN, "creator": "you"}
    child = packages.derive(root, id="p2", kept=np.array([True, False, True]), **fields)
    leaf = packages.derive(child, id="p3", codec="fp8_e4m3", description="small", **fields)
    paths = [folder / f"{name}.neural-bridge" for name in ("leaf", "child", "root")]
    for path, made in zip(paths, (leaf, child, root), strict=True):
        packages.write(packages.sign(made, key), path)
    return paths


def test_a_chain_of_three_verifies_to_its_root(file: Path, key: SigningKey) -> None:
    paths = chain_of_three(file.parent, key)
    chain = packages.verify_chain(paths[0], [file.parent], trust(key))
    assert [link.path for link in chain] == paths
    assert [link.info.provenance.derivation for link in chain] == [
        ("annotate", "requantize"),
        ("select",),
        (),
    ]
    assert [link.signer for link in chain] == ["maker 0"] * 3
    assert packages.verify_chain(paths[0], paths[1:]) != ()
    assert len(packages.verify_chain(paths[2], [])) == 1


def test_a_chain_with_a_missing_package_is_refused(file: Path, key: SigningKey) -> None:
    paths = chain_of_three(file.parent, key)
    for gone in paths[1:]:
        held = gone.read_bytes()
        gone.unlink()
        with pytest.raises(ConfigError, match="parent"):
            packages.verify_chain(paths[0], [file.parent])
        gone.write_bytes(held)
    assert len(packages.verify_chain(paths[0], [file.parent])) == 3


def test_a_chain_with_an_altered_package_is_refused(file: Path, key: SigningKey) -> None:
    paths = chain_of_three(file.parent, key)
    for altered in paths:
        held = altered.read_bytes()
        for at in range(0, len(held), 97):
            blob = bytearray(held)
            blob[at] ^= 4
            altered.write_bytes(blob)
            with pytest.raises((PackageCorruptError, PackageFormatError, SignatureError)):
                packages.verify_chain(paths[0], [file.parent])
        altered.write_bytes(held)


def test_a_chain_whose_parent_was_replaced_or_is_of_another_maker_is_refused(
    file: Path, key: SigningKey, tmp_path: Path
) -> None:
    paths = chain_of_three(file.parent, key)
    other = SigningKey.create(tmp_path / "other.pem")
    root = packages.read(paths[2])
    packages.write(packages.sign(root, other), paths[2], overwrite=True)
    assert len(packages.verify_chain(paths[0], [file.parent])) == 3
    with pytest.raises(SignatureError, match="not trusted"):
        packages.verify_chain(paths[0], [file.parent], trust(key))
    packages.write(packages.sign(root, key), paths[2].with_name("zz.neural-bridge"))
    assert len(packages.verify_chain(paths[0], [file.parent], trust(key))) == 3  # a good copy helps
    paths[2].with_name("zz.neural-bridge").unlink()
    packages.write(make(description="an impostor"), paths[2], overwrite=True)
    with pytest.raises(ConfigError, match="parent"):
        packages.verify_chain(paths[0], [file.parent])


def test_a_step_that_is_not_what_its_derivation_says_is_refused(file: Path) -> None:
    root = make()
    packages.write(root, file)
    child = file.with_name("child.neural-bridge")
    honest = packages.derive(root, id="p2", created=WHEN, creator="you", description="x")
    packages.write(honest, child)
    assert len(packages.verify_chain(child, [file])) == 2
    swapped = make(state=random_state(SMALL, 9), description="x")
    provenance = dataclasses.replace(
        swapped.info.provenance, parent=root.info.digest, derivation=("annotate",)
    )
    false = Package(dataclasses.replace(swapped.info, provenance=provenance), swapped.members)
    packages.write(false, child, overwrite=True)
    packages.verify(child)
    with pytest.raises(PackageFormatError, match="derivation"):
        packages.verify_chain(child, [file])


@pytest.mark.parametrize(
    ("derivation", "over"),
    [
        (("select",), {"state": random_state(SMALL, 9), "kept": (True, False, True)}),
        (("select",), {"kept": (True, False, True), "description": "another"}),
        (("select",), {"kept": (True, False, True), "transformation_quality": 0.99}),
        (("requantize",), {"codec": "fp8_e4m3", "state": random_state(SMALL, 9)}),
    ],
)
def test_a_selection_or_another_codec_is_computed_again_to_the_bit(
    file: Path, derivation: tuple[str, ...], over: dict[str, Any]
) -> None:
    plain: dict[str, Any] = {"codec": "float16", "certification": None}
    root = make(**{"kept": (True, True, True), **plain})
    packages.write(root, file)
    child = file.with_name("child.neural-bridge")
    forged = make(**{"kept": (True, True, True), **plain, **over})
    provenance = dataclasses.replace(
        forged.info.provenance, parent=root.info.digest, derivation=derivation
    )
    packages.write(
        Package(dataclasses.replace(forged.info, provenance=provenance), forged.members), child
    )
    packages.verify(child)
    with pytest.raises(PackageFormatError, match="derivation"):
        packages.verify_chain(child, [file])


def test_a_step_to_another_grid_is_refused_whatever_it_is_called(file: Path) -> None:
    root = make(kept=(True, True, True), codec="float16", certification=None)
    packages.write(root, file)
    wider = dataclasses.replace(SMALL, grid=(1, 4))
    other = make(wider, (True, False, False, True), codec="float16", certification=None)
    metadata = dataclasses.replace(other.info.metadata, source=root.info.metadata.source)
    members = {**other.members, CONFIG: root.members[CONFIG]}
    forged = _assembled(metadata, members, "me", root.info.digest, ["select"], 0.0)
    child = file.with_name("child.neural-bridge")
    packages.write(forged, child)
    with pytest.raises(PackageFormatError, match="derivation"):
        packages.verify_chain(child, [file])


def test_a_continuation_names_the_package_before_it(file: Path) -> None:
    first = make()
    packages.write(first, file)
    second = make(state=random_state(SMALL, 1), parent=first.info.digest)
    packages.write(second, file.with_name("second"))
    assert len(packages.verify_chain(file.with_name("second"), [file])) == 2
