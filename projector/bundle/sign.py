"""Writes and checks `signature.json`, the signature of a bundle."""

from __future__ import annotations

from pathlib import Path

from projector.bundle.describe import FORMAT, canonical_json, describe
from projector.bundle.files import DESCRIPTION, SIGNATURE, Reader, files_of, read_at_most, verified
from projector.bundle.keys import Signature, SigningKey, TrustedKeys, check
from projector.bundle.refusals import refusal
from projector.models.foreign import in_words
from protos.errors import FrameMalformedError, SignatureError
from protos.process.files import write_files
from protos.strict_json import read_json

_MAX_SIGNATURE_BYTES = 1024
_SIGNED = b"neural-bridge bundle 1\n"  # prefix: a bundle's signature is valid for nothing else


def sign_bundle(path: str | Path, key: SigningKey) -> Signature:
    """Verify a bundle's bytes, then sign it; replaces an earlier signature.

    Raises:
        BundleMissingError: the bundle or one of its files is missing.
        BundleFormatError: it has another format.
        BundleCorruptError: it was altered.
        DiskFullError: there is no room for the signature.
    """
    folder = Path(path)
    read = files_of(folder)
    description = read_at_most(read, folder, DESCRIPTION)
    info = describe(description, folder)
    for name in info.names:
        verified(read, folder, name, *info.files[name])
    return write_signature(folder, _SIGNED + description, key)


def write_signature(folder: Path, message: bytes, key: SigningKey) -> Signature:
    """Sign a message and write `signature.json` into a folder.

    Raises:
        DiskFullError: there is no room for it.
    """
    signature = key.sign(message)
    write_files(folder, {SIGNATURE: _signature_file(signature)})
    return signature


def _signature_file(signature: Signature) -> bytes:
    return canonical_json({"format": FORMAT, "key": signature.key, "value": signature.value})


def signed_by(
    read: Reader,
    folder: Path,
    description: bytes,
    trusted: TrustedKeys | None,
    prefix: bytes = _SIGNED,
) -> tuple[str | None, str | None]:
    """The key that signed a bundle, and its name if it is trusted.

    The file must be valid even if no keys are trusted.

    Args:
        read: reads the folder's files.
        folder: for messages.
        description: the bytes that are signed.
        trusted: keys that are trusted; None to accept no signature too.
        prefix: what stands before the description in the signed message.
    """
    file = folder / SIGNATURE
    try:
        blob = read(SIGNATURE, _MAX_SIGNATURE_BYTES + 1)
    except FileNotFoundError as error:
        if trusted is None:
            return None, None
        raise refusal("605.3", f"{folder} is not signed, a trusted key must sign it") from error
    except OSError as error:
        raise refusal("601.1", f"no bundle file {file}: {error.strerror}") from error
    try:
        plain = read_json(blob, _MAX_SIGNATURE_BYTES, SIGNATURE)
        signature = Signature(key=str(plain["key"]), value=str(plain["value"]))
    except (FrameMalformedError, KeyError, TypeError) as error:
        raise refusal("605.1", f"{file} holds no signature: {in_words(error)}") from error
    if blob != _signature_file(signature):
        raise refusal("605.1", f"{file} is not in its canonical form")
    message = prefix + description
    try:
        check(message, signature)
    except SignatureError as error:
        raise refusal("605.2", f"{file}: {error}") from error
    if trusted is None:
        return signature.key, None
    try:
        return signature.key, trusted.verify(message, signature)
    except SignatureError as error:
        raise refusal("605.4", f"{file}: {error}") from error
