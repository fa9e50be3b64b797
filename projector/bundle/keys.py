"""Ed25519 keys: signing, and checking signatures against a list of trusted keys.

The `cryptography` library does the arithmetic; it is imported only when needed. A private key is a
PEM file that only its owner can read. Trusted keys are a TOML file:

    [keys]
    "build server" = "base64 of the 32-byte public key"
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protos.errors import ConfigError, SignatureError
from protos.process.files import text_of, without_mark

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_BYTES = 64
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Signature:
    """A signature and the public key that it claims to come from.

    Attributes:
        key: base64 of the 32-byte public key.
        value: base64 of the 64-byte signature.
    """

    key: str
    value: str


class SigningKey:
    """A private key for signing."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Wrap a key of the library."""
        self._key = key

    @classmethod
    def create(cls, path: Path) -> SigningKey:
        """Make a key and write it, readable by its owner only.

        Raises:
            ConfigError: the file exists, or cannot be written; or `cryptography` is missing.
        """
        _need_cryptography()
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.generate()
        blob = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
        except OSError as error:
            raise ConfigError(f"cannot write a key to {path}: {error.strerror}") from error
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read what `create` wrote.

        Raises:
            ConfigError: the file is missing or is not an unencrypted Ed25519 key in PEM; or
                `cryptography` is missing.
        """
        _need_cryptography()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if not path.exists():
            raise ConfigError(f"there is no key {path}: projector package keygen {path} makes one")
        try:
            key = serialization.load_pem_private_key(without_mark(_read(path), path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path} is not an unencrypted private key in PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} is a key of another type, expected Ed25519")
        return cls(key)

    @property
    def public(self) -> str:
        """Base64 of the public key, as in the list of trusted keys."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, message: bytes) -> Signature:
        """Sign a message."""
        return Signature(self.public, base64.b64encode(self._key.sign(message)).decode())


@dataclass(frozen=True)
class TrustedKeys:
    """The list of trusted keys.

    Attributes:
        names: name of each key, by the base64 of its public key.
    """

    names: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> TrustedKeys:
        """Read the list.

        Raises:
            ConfigError: the file is missing or is not a list of keys.
        """
        try:
            plain = tomllib.loads(text_of(_read(path), path))
            keys = plain["keys"]
            names = {_decoded(text, 32, "key"): str(name) for name, text in keys.items()}
        except (tomllib.TOMLDecodeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is not a list of trusted keys ([keys] in TOML)") from error
        except SignatureError as error:
            raise ConfigError(f"{path}: {error}") from error
        if not names:
            raise ConfigError(f"{path} trusts no key")
        return cls({base64.b64encode(raw).decode(): name for raw, name in names.items()})

    def verify(self, message: bytes, signature: Signature | None) -> str:
        """The name of the trusted key that signed `message`.

        Raises:
            SignatureError: not signed, signed by a key that is not on the list, or altered since.
            ConfigError: `cryptography` is missing.
        """
        if signature is None:
            raise SignatureError("not signed, and a trusted key's signature is required")
        name = self.names.get(signature.key)
        if name is None:
            known = ", ".join(sorted(self.names.values()))
            raise SignatureError(
                f"signed by the key {signature.key[:12]}…, which is not trusted (trusted: {known})"
            )
        check(message, signature)
        return name


def check(message: bytes, signature: Signature) -> None:
    """Check a signature against the key that it names, not whose key that is.

    Raises:
        SignatureError: it does not match.
        ConfigError: `cryptography` is missing.
    """
    _need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = Ed25519PublicKey.from_public_bytes(_decoded(signature.key, 32, "key"))
    try:
        key.verify(_decoded(signature.value, SIGNATURE_BYTES, "signature"), message)
    except InvalidSignature as error:
        raise SignatureError("the signature does not match what was signed: altered") from error


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            "signatures need the package cryptography: pip install 'neural-bridge[cloud]' or "
            "'neural-bridge[align]'"
        ) from error


def _decoded(text: object, size: int, what: str) -> bytes:
    try:
        raw = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"a {what} must be base64") from error
    if len(raw) != size or base64.b64encode(raw).decode() != text:
        raise SignatureError(f"a {what} must be {size} bytes in canonical base64")
    return raw


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
