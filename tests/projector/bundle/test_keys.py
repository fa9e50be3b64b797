"""Signatures: only what a pinned key signed passes, and every other case says which it is."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from projector.bundle.keys import Signature, SigningKey, TrustedKeys, check
from protos.errors import ConfigError, SignatureError

MESSAGE = b"what is signed"


@pytest.fixture()
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "key.pem")


def trusted(folder: Path, **keys: str) -> TrustedKeys:
    path = folder / "trusted.toml"
    path.write_text("[keys]\n" + "".join(f'{name} = "{text}"\n' for name, text in keys.items()))
    return TrustedKeys.load(path)


def test_what_a_trusted_key_signed_is_accepted_under_its_name(
    key: SigningKey, tmp_path: Path
) -> None:
    again = SigningKey.load(tmp_path / "key.pem")
    assert trusted(tmp_path, build=key.public).verify(MESSAGE, again.sign(MESSAGE)) == "build"


def test_a_private_key_is_its_owners_alone_and_never_overwritten(
    key: SigningKey, tmp_path: Path
) -> None:
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="File exists"):
        SigningKey.create(tmp_path / "key.pem")


def test_every_flipped_bit_of_message_key_or_signature_is_refused(
    key: SigningKey, tmp_path: Path
) -> None:
    keys, signature = trusted(tmp_path, build=key.public), key.sign(MESSAGE)
    for bit in range(8 * len(MESSAGE)):
        altered = bytearray(MESSAGE)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError, match="altered"):
            keys.verify(bytes(altered), signature)
    for field in ("key", "value"):
        raw = base64.b64decode(getattr(signature, field))
        for bit in range(8 * len(raw)):
            altered = bytearray(raw)
            altered[bit // 8] ^= 1 << bit % 8
            text = base64.b64encode(altered).decode()
            with pytest.raises(SignatureError):
                keys.verify(
                    MESSAGE,
                    Signature(text, signature.value)
                    if field == "key"
                    else Signature(signature.key, text),
                )


def test_another_key_no_signature_and_bad_base64_say_what_is_wrong(
    key: SigningKey, tmp_path: Path
) -> None:
    other = SigningKey.create(tmp_path / "other.pem")
    keys = trusted(tmp_path, build=key.public)
    with pytest.raises(SignatureError, match=r"not trusted \(trusted: build\)"):
        keys.verify(MESSAGE, other.sign(MESSAGE))
    with pytest.raises(SignatureError, match="not signed"):
        keys.verify(MESSAGE, None)
    with pytest.raises(SignatureError, match="base64"):
        check(MESSAGE, Signature(key.public, "!"))
    with pytest.raises(SignatureError, match="32 bytes"):
        check(MESSAGE, Signature("AAAA", key.sign(MESSAGE).value))


@pytest.mark.parametrize("text", ["", "[keys]\n", '[keys]\na = "AAAA"\n', "[keys", "keys = 3\n"])
def test_a_list_of_trusted_keys_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trusted.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="trusted"):
        TrustedKeys.load(path)


def test_a_key_file_that_is_missing_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keygen"):
        SigningKey.load(tmp_path / "nowhere.pem")
    (tmp_path / "bad.pem").write_text("not a key")
    with pytest.raises(ConfigError, match="not an unencrypted private key"):
        SigningKey.load(tmp_path / "bad.pem")
