"""A signature covers every bit of a bundle, and is never taken on trust."""

from __future__ import annotations

from pathlib import Path

import pytest

from projector.bundle.describe import canonical_json
from projector.bundle.files import (
    FILES,
    SIGNATURE,
)
from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.load import Bundle
from projector.bundle.sign import sign_bundle
from protos.errors import (
    BundleCorruptError,
    BundleMissingError,
    DiskFullError,
    SignatureError,
)
from protos.layout import KVLayout


def test_a_signed_bundle_loads_and_names_its_signer(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey
) -> None:
    sign_bundle(folder, key)
    trusted = TrustedKeys({key.public: "build server"})
    assert Bundle.load(folder, source, target, trusted=trusted).signer == "build server"
    assert Bundle.load(folder, source, target).signer is None


def test_signing_twice_gives_the_same_bytes_and_signing_anew_replaces(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey, tmp_path: Path
) -> None:
    sign_bundle(folder, key)
    first = (folder / SIGNATURE).read_bytes()
    (folder / SIGNATURE).write_bytes(b"broken")
    sign_bundle(folder, key)
    assert (folder / SIGNATURE).read_bytes() == first
    other = SigningKey.create(tmp_path / "other.pem")
    sign_bundle(folder, other)
    trusted = TrustedKeys({other.public: "other"})
    assert Bundle.load(folder, source, target, trusted=trusted).signer == "other"


@pytest.mark.parametrize(
    "blob",
    [b"", b"{}", b"null", b"[1]", b"{" * 900, b"x" * 5000, b'{"key": 1, "value": 2}', b"\xff\xfe"],
)
def test_a_broken_signature_is_refused_even_where_none_is_required(
    folder: Path, source: KVLayout, target: KVLayout, blob: bytes
) -> None:
    (folder / SIGNATURE).write_bytes(blob)
    with pytest.raises(SignatureError, match="605.1"):
        Bundle.load(folder, source, target)


def test_a_signature_that_cannot_be_read_is_not_taken_for_none(
    folder: Path, source: KVLayout, target: KVLayout
) -> None:
    (folder / SIGNATURE).mkdir()
    with pytest.raises(BundleMissingError, match="signature.json"):
        Bundle.load(folder, source, target)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_bundle_is_not_signed(folder: Path, key: SigningKey, name: str) -> None:
    blob = bytearray((folder / name).read_bytes())
    blob[-1] ^= 1
    (folder / name).write_bytes(blob)
    with pytest.raises(BundleCorruptError):
        sign_bundle(folder, key)
    assert not (folder / SIGNATURE).exists()


def test_a_signature_over_the_same_bytes_for_something_else_is_refused(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey
) -> None:
    signature = key.sign((folder / "bundle.json").read_bytes())
    plain = {"format": 1, "key": signature.key, "value": signature.value}
    (folder / SIGNATURE).write_bytes(canonical_json(plain))
    with pytest.raises(SignatureError, match="605.2"):
        Bundle.load(folder, source, target)


def test_with_no_room_for_a_signature_the_bundle_stays_unsigned(
    folder: Path, source: KVLayout, target: KVLayout, key: SigningKey
) -> None:
    (folder / f"{SIGNATURE}.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        sign_bundle(folder, key)
    assert Bundle.load(folder, source, target).info.version == 3
    assert not (folder / SIGNATURE).exists()
