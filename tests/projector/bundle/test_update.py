"""An update that is damaged, hostile or for another device is refused before it is unpacked."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from projector.bundle.keys import SigningKey, TrustedKeys
from projector.bundle.update import open_update
from protos.errors import BridgeError, SignatureError, UpdateError
from tests.fakes.updates import MODEL, listed, write_update


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("key") / "signing.pem")


@pytest.fixture
def trusted(key: SigningKey) -> TrustedKeys:
    return TrustedKeys({key.public: "build server"})


def test_a_good_update_is_unpacked_as_it_was(
    tmp_path: Path, key: SigningKey, trusted: TrustedKeys
) -> None:
    with open_update(write_update(tmp_path / "u", key), trusted) as update:
        update.unpack("model", tmp_path / "out")
        assert (update.manifest.kinds, update.signer) == (("model",), "build server")
    for name, blob in MODEL.items():
        assert (tmp_path / "out" / name.removeprefix("model/")).read_bytes() == blob


def refused(path: Path, trusted: TrustedKeys, kind: type[BridgeError] = UpdateError) -> str:
    with pytest.raises(kind) as caught, open_update(path, trusted):
        pass
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "model/../../evil", "/etc/passwd", "model//evil", "model/./evil", "model/",
        "model\\evil", "model/.hidden", "other/file", "model", "model/a\0b",
        "model/" + "d/" * 9 + "f", "model/" + "n" * 300, "MODEL/x", "model/ü", "model/a b", "C:/x",
    ],
)  # fmt: skip
def test_a_name_that_leaves_its_folder_is_refused(
    tmp_path: Path, key: SigningKey, trusted: TrustedKeys, name: str
) -> None:
    """Also if a trusted key signed it."""
    assert "name" in refused(write_update(tmp_path / "u", key, {name: b"x"}), trusted)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": 2}, "update the agent first"),
        ({"number": 0}, "whole number"),
        ({"number": True}, "whole number"),
        ({"number": "7"}, "whole number"),
        ({"number": 1 << 60}, "whole number"),
        ({"version": "a\nb"}, "not a version"),
        ({"version": None}, "not a version"),
        ({"machine": ""}, "not a version"),
        ({"files": {}}, "0 files"),
        ({"files": []}, "list of files"),
        ({"files": {"model/a": {"bytes": -1, "sha256": "0" * 64}}}, "not a size"),
        ({"files": {"model/a": {"bytes": 1, "sha256": "0"}}}, "SHA-256"),
        ({"files": {"model/a": {"bytes": 1}}}, "list of files"),
        ({"files": {"model/a": {"bytes": 1, "sha256": "0" * 64, "mode": 7}}}, "list of files"),
        ({"files": listed({"model/a": b"", "model/A": b""})}, "upper and lower"),
        ({"files": listed({"model/a": b"", "model/a/b": b""})}, "both a file"),
        ({"more": 1}, "canonical"),
    ],
)
def test_a_wrong_list_is_refused(
    tmp_path: Path, key: SigningKey, trusted: TrustedKeys, fields: dict[str, Any], said: str
) -> None:
    assert said in refused(write_update(tmp_path / "u", key, **fields), trusted)


def test_files_that_differ_from_the_list_are_refused(
    tmp_path: Path, key: SigningKey, trusted: TrustedKeys
) -> None:
    altered = MODEL | {"model/export.json": b"[]"}
    less = {"model/export.json": b"{}"}
    more = MODEL | {"model/more": b"x"}
    for held, said in ((altered, "altered"), (less, "its list"), (more, "its list")):
        assert said in refused(write_update(tmp_path / "u", key, held=held), trusted)


def test_a_bomb_is_refused_before_it_is_read(
    tmp_path: Path, key: SigningKey, trusted: TrustedKeys
) -> None:
    bomb = {"model/zeros": bytes(50 << 20)}
    path = write_update(tmp_path / "u", key, bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refused(path, trusted)


def test_a_link_is_unpacked_as_a_plain_file(
    tmp_path: Path, key: SigningKey, trusted: TrustedKeys
) -> None:
    path = write_update(tmp_path / "u", key, {"model/link": b"/etc/passwd"}, held={})
    info = zipfile.ZipInfo("model/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, b"/etc/passwd")
    with open_update(path, trusted) as update:
        update.unpack("model", tmp_path / "out")
    link = tmp_path / "out" / "link"
    assert not link.is_symlink() and link.read_bytes() == b"/etc/passwd"


def test_only_a_trusted_key_may_sign(tmp_path: Path, key: SigningKey, trusted: TrustedKeys) -> None:
    other = SigningKey.create(tmp_path / "other.pem")
    assert "not trusted" in refused(write_update(tmp_path / "u", other), trusted, SignatureError)
    foreign = other.sign(b"something else")
    for signature in (
        b"", b"{}", b"[]", b'{"key": 1, "value": 2}', b"x" * 900,
        f'{{"key": "{key.public}", "value": "{foreign.value}"}}'.encode(),
    ):  # fmt: skip
        path = write_update(tmp_path / "u", key, signature=signature)
        refused(path, trusted, SignatureError)
    assert "1025 bytes" in refused(
        write_update(tmp_path / "u", key, signature=b"x" * 1025), trusted
    )


def test_what_is_no_update_is_refused(
    tmp_path: Path, key: SigningKey, trusted: TrustedKeys
) -> None:
    file = tmp_path / "u"
    for blob in (b"", b"PK", b"\0" * 100, b"x" * 5000, b"PK\5\6" + b"\xff" * 18):
        file.write_bytes(blob)
        refused(file, trusted)
    refused(tmp_path, trusted)
    refused(tmp_path / "nothing", trusted)
    whole = write_update(file, key).read_bytes()
    file.write_bytes(whole + b"more")
    assert "follows" in refused(file, trusted)
    many = zipfile.ZipFile(file, "w")
    with many:
        for number in range(10_003):
            many.writestr(f"{number}", b"")
    assert "too many" in refused(file, trusted)


def test_damage_at_any_byte_is_a_typed_error(
    tmp_path: Path, key: SigningKey, trusted: TrustedKeys
) -> None:
    whole = write_update(tmp_path / "whole", key, {"model/a": b"some bytes"}).read_bytes()
    file, draw = tmp_path / "u", random.Random(1)
    unpacked = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= draw.randrange(1, 256)
        file.write_bytes(damaged)
        try:
            with open_update(file, trusted) as update:
                update.unpack("model", tmp_path / f"out{at}")
            unpacked += 1  # a date or an attribute, which nothing reads
            assert (tmp_path / f"out{at}" / "a").read_bytes() == b"some bytes"
        except (UpdateError, SignatureError):
            pass
        file.write_bytes(whole[:at])
        refused(file, trusted)
    assert unpacked < len(whole) / 3
