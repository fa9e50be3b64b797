"""A file sealed with a passphrase: scrypt, then ChaCha20-Poly1305 in chunks.

    magic, 8 bytes · version, 1 · salt, 16 · nonce prefix, 7 · chunks
    a chunk: up to 65536 bytes of plain text, encrypted, and a tag of 16

A chunk's nonce is the prefix, the chunk's number (4 bytes, big endian) and one byte: 1 for the last
chunk, else 0. The head is authenticated with each chunk. So a changed, moved, repeated or missing
chunk is noticed (the STREAM construction; Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protos.errors import BackupError, ConfigError

MAGIC, VERSION = b"NBSEALED", 1
SHORTEST_PASSPHRASE = 8
_SALT, _PREFIX, _CHUNK, _TAG = 16, 7, 1 << 16, 16
_HEAD = len(MAGIC) + 1 + _SALT + _PREFIX
SCRYPT = {"n": 1 << 16, "r": 8, "p": 1}
"""Scrypt (RFC 7914): 64 MiB and about 0.2 s a guess. Fixed, so that no file can ask for more."""


def seal(parts: Iterable[bytes], passphrase: str) -> Iterator[bytes]:
    """Seal a stream of bytes.

    Args:
        parts: the plain text, in parts of any length.
        passphrase: the key is derived from it.

    Returns:
        The sealed file, in parts.

    Raises:
        ConfigError: the passphrase is too short.
    """
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise ConfigError(f"the passphrase is shorter than {SHORTEST_PASSPHRASE} characters")
    head = MAGIC + bytes([VERSION]) + os.urandom(_SALT + _PREFIX)
    cipher = _cipher(head, passphrase)
    yield head
    held, number = bytearray(), 0
    for part in parts:
        held += part
        while len(held) > _CHUNK:  # the last chunk is never empty unless it is the only one
            yield cipher.encrypt(_nonce(head, number, False), bytes(held[:_CHUNK]), head)
            del held[:_CHUNK]
            number += 1
    yield cipher.encrypt(_nonce(head, number, True), bytes(held), head)


def unseal(file: BinaryIO, passphrase: str, named: object) -> Iterator[bytes]:
    """Read a sealed file; each part is checked before it is returned.

    Args:
        file: at its beginning.
        passphrase: the one it was sealed with.
        named: the file, for messages.

    Returns:
        The plain text, in parts.

    Raises:
        BackupError: the file is not sealed, it is damaged or cut short, or the passphrase is wrong.
    """
    head = file.read(_HEAD)
    if len(head) < _HEAD or not head.startswith(MAGIC):
        raise BackupError(f"{named} is no backup of cloud-server, or its beginning is damaged")
    if head[len(MAGIC)] != VERSION:
        raise BackupError(
            f"{named} is sealed in form {head[len(MAGIC)]}, this version knows {VERSION}: it is "
            "damaged, or of a newer version"
        )
    cipher = _cipher(head, passphrase)
    chunk, number = file.read(_CHUNK + _TAG), 0
    while True:
        after = file.read(_CHUNK + _TAG)
        try:
            yield cipher.decrypt(_nonce(head, number, not after), chunk, head)
        except InvalidTag:
            why = "is damaged or cut short" if number else "is damaged, or the passphrase is wrong"
            raise BackupError(f"{named} {why}") from None
        if not after:
            return
        chunk, number = after, number + 1


def _cipher(head: bytes, passphrase: str) -> ChaCha20Poly1305:
    salt = head[len(MAGIC) + 1 :][:_SALT]
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, **SCRYPT).derive(passphrase.encode()))


def _nonce(head: bytes, number: int, last: bool) -> bytes:
    return head[-_PREFIX:] + number.to_bytes(4, "big") + bytes([last])
