"""Rows as they lie on the disk: checked always, encrypted on request (AES-256-GCM)."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from protos.errors import ConfigError
from protos.process.files import expanded
from protos.process.folders import open_file

_PLAIN, _SECRET = b"\x00", b"\x01"
_KEY_BYTES, _NONCE_BYTES, _CHECK_BYTES = 32, 12, 16


class DamagedRowError(ValueError):
    """A row's bytes are not those that were written."""


@dataclass(frozen=True)
class Vault:
    """Seals and opens rows.

    Attributes:
        key: 32 bytes; None: rows are checked, not encrypted.
    """

    key: bytes | None = None

    @classmethod
    def from_file(cls, path: Path) -> Vault:
        """Read a key: 32 bytes, or 64 hexadecimal digits.

        Raises:
            ConfigError: it is no regular file, cannot be read, can be read by other users, or holds
                no key.
        """
        path = expanded(path)
        try:
            with open_file(path) as file:
                mode = os.fstat(file.fileno()).st_mode
                raw = file.read(1024)
        except OSError as error:
            raise ConfigError(f"spool key {path}: {error.strerror or error}") from error
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigError(
                f"spool key {path}: other users may read it (mode {stat.S_IMODE(mode):o}): "
                "chmod 600 it"
            )
        if len(raw) == _KEY_BYTES:
            return cls(raw)
        try:
            key = bytes.fromhex(raw.decode("ascii").strip())
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise ConfigError(
                f"spool key {path}: expected 32 bytes or 64 hexadecimal digits, as 'openssl rand "
                f"-out {path} 32' makes them"
            )
        return cls(key)

    @property
    def mark(self) -> str:
        """Tells keys apart without telling the key; empty without one."""
        if self.key is None:
            return ""
        return hashlib.blake2b(b"spool", key=self.key, digest_size=8).hexdigest()

    def seal(self, name: bytes, body: bytes) -> bytes:
        """A row's bytes.

        Args:
            name: the row's request id; bytes sealed for another name do not open.
            body: what to keep.
        """
        if self.key is None:
            return _PLAIN + _check(name, body) + body
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        return _SECRET + nonce + AESGCM(self.key).encrypt(nonce, body, name)

    def open(self, name: bytes, sealed: bytes) -> bytes:
        """The inverse of `seal`; a row that was sealed without a key opens with any.

        Raises:
            DamagedRowError: the bytes changed, or were sealed with another key.
        """
        kind, rest = sealed[:1], sealed[1:]
        if kind == _SECRET and self.key is not None and len(rest) > _NONCE_BYTES:
            return self._decrypt(self.key, name, rest)
        check, body = rest[:_CHECK_BYTES], rest[_CHECK_BYTES:]
        if kind != _PLAIN or check != _check(name, body):
            raise DamagedRowError("a row's bytes are not those that were written")
        return body

    @staticmethod
    def _decrypt(key: bytes, name: bytes, rest: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], name)
        except InvalidTag as error:
            raise DamagedRowError("a row's bytes are not those that were written") from error

    def current(self, sealed: bytes) -> bool:
        """Whether a row is sealed as this vault seals: with a key, or without."""
        return sealed[:1] == (_PLAIN if self.key is None else _SECRET)


def _check(name: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=name[:64], digest_size=_CHECK_BYTES).digest()
