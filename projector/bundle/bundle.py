"""What training leaves and serving loads: a folder in which every bit is accounted for.

Knows: the files, their digests, the signature, the two layouts, the operating points. Does not
know: how the map was trained, sockets, models. There is no plain load: both live layouts are
required.

| File | Holds |
|---|---|
| `bundle.json` | canonical JSON; `digest` covers its other fields, they cover the other files |
| `edge.safetensors` | the `Encoder` |
| `cloud.safetensors` | the `CloudHalf` |
| `cloud.onnx` | the same as a graph |
| `certificate.json` | what was measured of this bundle |
| `reverse_encoder.safetensors` | only where the map goes both ways: an `Encoder` of the cloud |
| `reverse_decoder.safetensors` | with it: the `ReverseDecoder` of the edge |
| `signature.json` | only where `sign_bundle` was called: an Ed25519 signature of `bundle.json` |
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from projector.bundle.signing import Signature, SigningKey, TrustedKeys, check
from projector.codec.encoder import Encoder
from projector.codec.reverse import ReverseDecoder
from projector.models.foreign import in_words
from projector.serving import backends
from projector.serving.backends import Backend, CloudFiles
from protos.errors import (
    BridgeError,
    BundleCorruptError,
    BundleFormatError,
    BundleLayoutError,
    BundleMissingError,
    BundleVersionError,
    ConfigError,
    DiskFullError,
    FrameMalformedError,
    SignatureError,
)
from protos.layout import KVLayout
from protos.points import OperatingPoint, points_from_json, points_to_json
from protos.process.folders import open_file
from protos.strict_json import read_json

FORMAT = 1
DESCRIPTION = "bundle.json"
SIGNATURE = "signature.json"
EDGE, CLOUD, GRAPH, CERTIFICATE = (
    "edge.safetensors",
    "cloud.safetensors",
    "cloud.onnx",
    "certificate.json",
)
FILES = (EDGE, CLOUD, GRAPH, CERTIFICATE)
"""What every bundle holds besides its description."""
REVERSE_ENCODER, REVERSE_DECODER = "reverse_encoder.safetensors", "reverse_decoder.safetensors"
REVERSE_FILES = (REVERSE_ENCODER, REVERSE_DECODER)
"""What one of a map that goes both ways holds as well."""

REFUSALS: dict[str, tuple[type[BridgeError], str]] = {
    "302.1": (BundleVersionError, "another version than the required one"),
    "601.1": (BundleMissingError, "a file is not there or cannot be read"),
    "602.1": (BundleCorruptError, "a file is longer than stated"),
    "602.2": (BundleCorruptError, "a file is shorter than stated"),
    "602.3": (BundleCorruptError, "a file does not match its SHA-256"),
    "602.4": (BundleCorruptError, "a JSON file is no JSON, repeats a key, or holds NaN"),
    "602.5": (BundleCorruptError, "bundle.json does not match its own digest"),
    "602.6": (BundleCorruptError, "bundle.json is not in canonical form"),
    "603.1": (BundleLayoutError, "trained for another edge model"),
    "603.2": (BundleLayoutError, "trained for another cloud model"),
    "604.1": (BundleFormatError, "of another format version"),
    "604.2": (BundleFormatError, "a JSON file holds no object"),
    "604.3": (BundleFormatError, "bundle.json lacks a field or has an unknown one"),
    "604.4": (BundleFormatError, "a field of bundle.json has an impossible value"),
    "604.5": (BundleFormatError, "the default point or the ladder names an unknown point"),
    "604.6": (BundleFormatError, "bundle.json lists other files, or an impossible size"),
    "604.7": (BundleFormatError, "the edge half is no encoder"),
    "604.8": (BundleFormatError, "the edge half and bundle.json contradict each other"),
    "604.9": (BundleFormatError, "a half of the way back is not what it should be"),
    "604.10": (BundleFormatError, "the way back and bundle.json contradict each other"),
    "604.11": (BundleFormatError, "cloud.onnx takes weights from outside of the bundle"),
    "605.1": (SignatureError, "signature.json is not in its canonical form"),
    "605.2": (SignatureError, "the signature does not fit bundle.json"),
    "605.3": (SignatureError, "trusted keys are required and there is no signature"),
    "605.4": (SignatureError, "signed by a key that is not trusted"),
}
"""Every reason for which loading refuses: the error's code and a number, which ends the message.

Like the codes, a number is never reused.
"""

Reader = Callable[[str, int], bytes]
"""A file's name and the most bytes to read, to its bytes; raises `OSError`."""

_MAX_DESCRIPTION_BYTES = 1 << 20
_MAX_SIGNATURE_BYTES = 1024
_MAX_ID = 256
_MAX_FILE_BYTES = 1 << 31
_SIGNED = b"neural-bridge bundle 1\n"  # what a key signs for a bundle passes for nothing else
_FIELDS = {
    "format",
    "id",
    "version",
    "source_layout",
    "target_layout",
    "rank",
    "files",
    "operating_points",
    "default_point",
    "ladder",
    "digest",
}


@dataclass(frozen=True)
class BundleInfo:
    """What `bundle.json` says.

    Attributes:
        id: name of the bundle.
        version: counts up with every training of the same id.
        digest: SHA-256 hex over the description, hence over everything.
        source: the edge model's layout.
        target: the cloud model's layout.
        rank: numbers per latent.
        points: the operating points.
        default_point: index of the one to start with.
        ladder: indices, from the cheapest to the most faithful.
        files: per file its size in bytes and SHA-256 hex.
    """

    id: str
    version: int
    digest: str
    source: KVLayout
    target: KVLayout
    rank: int
    points: tuple[OperatingPoint, ...]
    default_point: int
    ladder: tuple[int, ...]
    files: Mapping[str, tuple[int, str]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its files, in their order, the description left out."""
        return tuple(name for name in (*FILES, *REVERSE_FILES) if name in self.files)


@dataclass(frozen=True)
class Reverse:
    """The way back, from the cloud's states to the edge's.

    Attributes:
        encoder: the cloud's half; its source is the cloud's layout.
        decoder: the edge's half.
    """

    encoder: Encoder
    decoder: ReverseDecoder


@dataclass(frozen=True)
class Bundle:
    """A verified bundle that fits the models at hand. Build it with `Bundle.load`.

    Attributes:
        info: the description.
        encoder: the edge half.
        cloud: the cloud half, both forms.
        certificate: what was measured.
        path: where it lies.
        signer: name of the trusted key that signed it; None where trusted keys were not required.
        key: public key of who signed it, trusted or not; None where nobody did.
        reverse: the way back; None where the map has none.
    """

    info: BundleInfo
    encoder: Encoder
    cloud: CloudFiles = field(repr=False)
    certificate: Mapping[str, Any] = field(repr=False)
    path: Path
    signer: str | None = None
    key: str | None = None
    reverse: Reverse | None = None

    @property
    def digest(self) -> str:
        """SHA-256 hex that stands for the whole bundle."""
        return self.info.digest

    @classmethod
    def peek(cls, path: str | Path) -> BundleInfo:
        """Read and verify the description only, to find out which models a bundle is for.

        Raises:
            BundleMissingError: there is no bundle.
            BundleFormatError: it is of another format version.
            BundleCorruptError: the description was altered.
        """
        folder = Path(path)
        return _describe(_read(_files_of(folder), folder, DESCRIPTION), folder)

    @classmethod
    def load(
        cls,
        path: str | Path,
        source: KVLayout | str,
        target: KVLayout | str,
        version: int | None = None,
        trusted: TrustedKeys | None = None,
    ) -> Bundle:
        """Load a bundle for the two models that are running, verifying every byte.

        Args:
            path: the bundle's folder.
            source: the edge model's live layout, or its fingerprint as negotiated.
            target: the cloud model's live layout, or its fingerprint as the engine reports it.
            version: require this version.
            trusted: require a signature by one of these keys. Without them a bundle need not be
                signed, but a signature that is there must be whole and fit.

        Raises:
            BundleMissingError: the folder or one of its files is missing.
            BundleFormatError: another format, or parts that contradict each other.
            BundleCorruptError: a size or digest differs: truncated or altered.
            BundleLayoutError: it was trained for another source or target model.
            BundleVersionError: it is not of the required version.
            SignatureError: unsigned, signed by another key, or altered since.
        """
        folder = Path(path)
        return cls.load_from(_files_of(folder), folder, source, target, version, trusted)

    @classmethod
    def load_from(
        cls,
        read: Reader,
        path: Path,
        source: KVLayout | str,
        target: KVLayout | str,
        version: int | None = None,
        trusted: TrustedKeys | None = None,
    ) -> Bundle:
        """`load` from anywhere; each file is read once. `path` is what the messages call it.

        Raises:
            BridgeError: as `load`.
        """
        description = _read(read, path, DESCRIPTION)
        key, signer = _signed(read, path, description, trusted)
        info = _describe(description, path)
        _require_layout(info, "source", info.source, source)
        _require_layout(info, "target", info.target, target)
        if version is not None and info.version != version:
            raise refusal(
                "302.1",
                f"bundle '{info.id}' in {path} is version {info.version}, "
                f"version {version} is required",
            )
        blobs = {name: _verified(read, path, name, *info.files[name]) for name in info.names}
        _require_whole(blobs[GRAPH], path)
        return cls(
            info=info,
            encoder=_encoder(blobs[EDGE], info, path),
            cloud=CloudFiles(weights=blobs[CLOUD], graph=blobs[GRAPH]),
            certificate=_parse(blobs[CERTIFICATE], path / CERTIFICATE),
            path=path,
            signer=signer,
            key=key,
            reverse=_reverse(blobs, info, path),
        )

    def backend(self, name: str = "onnxruntime", threads: int = 1, device: str = "cpu") -> Backend:
        """Open the cloud half.

        Raises:
            ConfigError: no such backend, or what it needs is missing.
            BundleFormatError: it cannot run the cloud half.
        """
        made = backends.get(name)
        return made(
            self.cloud,
            self.info.target,
            self.info.rank,
            threads=threads,
            device=device,
            tokens=self.info.source.tokens,
        )


def write_bundle(
    path: str | Path,
    *,
    id: str,
    version: int,
    source: KVLayout,
    target: KVLayout,
    encoder: Encoder,
    cloud: CloudFiles,
    certificate: Mapping[str, Any],
    default_point: int,
    ladder: Sequence[int] | None = None,
    reverse: Reverse | None = None,
) -> BundleInfo:
    """Write a bundle, unsigned; whatever happens, no half-written one can be loaded.

    All files are written beside their places first. Only then is an earlier bundle's description
    removed, and the new one's put in place last.

    Args:
        path: a folder, made if need be; files of an earlier bundle in it are replaced.
        id: name of the bundle.
        version: counts up.
        source: the edge model's layout.
        target: the cloud model's layout.
        encoder: the edge half.
        cloud: the cloud half, as weights and as graph.
        certificate: anything JSON can hold.
        default_point: index of the operating point to start with.
        ladder: indices from the cheapest to the most faithful; by default in the encoder's order.
        reverse: the way back, where the map has one.

    Raises:
        BundleFormatError: the parts contradict each other.
        DiskFullError: there is no room; an earlier bundle in the folder is still whole.
        ConfigError: the folder cannot be written for another reason.
    """
    if encoder.source_fingerprint != source.fingerprint or encoder.state_dim != source.state_dim:
        raise BundleFormatError("the encoder was made for another source layout")
    folder = Path(path)
    _require_whole(cloud.graph, folder)
    text = json.dumps(certificate, indent=2, sort_keys=True, allow_nan=False) + "\n"
    contents = {
        EDGE: encoder.to_bytes(),
        CLOUD: cloud.weights,
        GRAPH: cloud.graph,
        CERTIFICATE: text.encode(),
    }
    if reverse is not None:
        contents[REVERSE_ENCODER] = reverse.encoder.to_bytes()
        contents[REVERSE_DECODER] = reverse.decoder.to_bytes()
    plain: dict[str, Any] = {
        "format": FORMAT,
        "id": id,
        "version": version,
        "source_layout": json.loads(source.to_json()),
        "target_layout": json.loads(target.to_json()),
        "rank": encoder.rank,
        "files": {
            name: {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
            for name, blob in contents.items()
        },
        "operating_points": json.loads(points_to_json(encoder.points)),
        "default_point": default_point,
        "ladder": list(ladder) if ladder is not None else [p.index for p in encoder.points],
    }
    plain["digest"] = hashlib.sha256(canonical_json(plain)).hexdigest()
    description = canonical_json(plain)
    info = _describe(description, folder)
    _reverse(contents, info, folder)
    gone = (DESCRIPTION, SIGNATURE, *(name for name in REVERSE_FILES if name not in contents))
    write_files(folder, {**contents, DESCRIPTION: description}, gone=gone)
    return info


def write_next(
    bundle: Bundle,
    path: str | Path,
    *,
    encoder: Encoder,
    certificate: Mapping[str, Any] | None = None,
    default_point: int | None = None,
    ladder: Sequence[int] | None = None,
) -> BundleInfo:
    """Write a bundle again with another edge half, one version up; all else stays, unsigned.

    Args:
        bundle: what is written again.
        path: as `write_bundle`.
        encoder: as `write_bundle`.
        certificate: as `write_bundle`; the bundle's own by default.
        default_point: likewise.
        ladder: likewise.

    Raises:
        BundleFormatError, DiskFullError, ConfigError: as `write_bundle`.
    """
    info = bundle.info
    return write_bundle(
        path,
        id=info.id,
        version=info.version + 1,
        source=info.source,
        target=info.target,
        encoder=encoder,
        cloud=bundle.cloud,
        certificate=bundle.certificate if certificate is None else certificate,
        default_point=info.default_point if default_point is None else default_point,
        ladder=info.ladder if ladder is None else ladder,
        reverse=bundle.reverse,
    )


def sign_bundle(path: str | Path, key: SigningKey) -> Signature:
    """Verify a bundle's bytes, then sign it; a signature that is there is replaced.

    Raises:
        BundleMissingError: there is no bundle, or one of its files is missing.
        BundleFormatError: it is of another format.
        BundleCorruptError: it was altered.
        DiskFullError: there is no room for the signature.
    """
    folder = Path(path)
    read = _files_of(folder)
    description = _read(read, folder, DESCRIPTION)
    info = _describe(description, folder)
    for name in info.names:
        _verified(read, folder, name, *info.files[name])
    signature = key.sign(_SIGNED + description)
    write_files(folder, {SIGNATURE: _signature_file(signature)})
    return signature


def refusal(number: str, message: str) -> BridgeError:
    """The error of that row of `REFUSALS`."""
    return REFUSALS[number][0](f"{message} [{number}]")


def canonical_json(plain: Mapping[str, Any]) -> bytes:
    """The one form in which `bundle.json` and `signature.json` are accepted."""
    return (json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write_files(folder: Path, contents: Mapping[str, bytes], gone: Sequence[str] = ()) -> None:
    """Write all of some files or none of them.

    Args:
        folder: made if need be.
        contents: all written beside their places first, then put there in this order.
        gone: files to remove in between.

    Raises:
        DiskFullError: there is no room; what was there still is.
        ConfigError: they cannot be written for another reason.
    """
    drafts = {name: folder / (name + ".part") for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draft in drafts.items():
            with draft.open("wb") as stream:
                stream.write(contents[name])
                stream.flush()
                os.fsync(stream.fileno())
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        for name, draft in drafts.items():
            os.replace(draft, folder / name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = sum(map(len, contents.values()))
            raise DiskFullError(f"no room for {size} bytes in {folder}") from error
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def _files_of(folder: Path) -> Reader:
    def read(name: str, most: int) -> bytes:
        with open_file(folder / name) as stream:  # a pipe is not waited for
            return stream.read(most)

    return read


def _read(read: Reader, folder: Path, name: str, most: int = _MAX_DESCRIPTION_BYTES) -> bytes:
    try:
        blob = read(name, most + 1)
    except OSError as error:
        raise refusal("601.1", f"no bundle file {folder / name}: {error.strerror}") from error
    if len(blob) > most:
        raise refusal(
            "602.1", f"{folder / name} is larger than the {most} bytes it should have at most"
        )
    return blob


def _verified(read: Reader, folder: Path, name: str, size: int, digest: str) -> bytes:
    blob = _read(read, folder, name, size)
    if len(blob) != size:
        raise refusal("602.2", f"{folder / name} has {len(blob)} of {size} bytes: truncated")
    if hashlib.sha256(blob).hexdigest() != digest:
        raise refusal("602.3", f"{folder / name} does not match its digest: altered")
    return blob


def _signature_file(signature: Signature) -> bytes:
    return canonical_json({"format": FORMAT, "key": signature.key, "value": signature.value})


def _signed(
    read: Reader, folder: Path, description: bytes, trusted: TrustedKeys | None
) -> tuple[str | None, str | None]:
    """The key that signed it, and its name among the trusted.

    What is in the file must be right even if no key is trusted.
    """
    file = folder / SIGNATURE
    try:
        blob = read(SIGNATURE, _MAX_SIGNATURE_BYTES + 1)
    except FileNotFoundError as error:
        if trusted is None:
            return None, None
        raise refusal("605.3", f"{folder} is not signed, and only trusted keys' are") from error
    except OSError as error:
        raise refusal("601.1", f"no bundle file {file}: {error.strerror}") from error
    try:
        plain = read_json(blob, _MAX_SIGNATURE_BYTES, SIGNATURE)
        signature = Signature(key=str(plain["key"]), value=str(plain["value"]))
    except (FrameMalformedError, KeyError, TypeError) as error:
        raise refusal("605.1", f"{file} holds no signature: {in_words(error)}") from error
    if blob != _signature_file(signature):
        raise refusal("605.1", f"{file} is not in its canonical form")
    message = _SIGNED + description
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


def _parse(blob: bytes, file: Path) -> dict[str, Any]:
    try:
        plain = read_json(blob, len(blob), file.name)
    except FrameMalformedError as error:
        raise refusal("602.4", f"{file}: {error}") from error
    if not isinstance(plain, dict):
        raise refusal("604.2", f"{file} must hold a JSON object")
    try:
        json.dumps(plain, allow_nan=False)
    except ValueError as error:  # such as 1e999, which JSON reads as infinity
        raise refusal("602.4", f"{file}: {error}") from error
    return plain


def _describe(blob: bytes, folder: Path) -> BundleInfo:
    file = folder / DESCRIPTION
    plain = _parse(blob, file)
    if plain.get("format") != FORMAT and type(plain.get("format")) is int:
        raise refusal(
            "604.1", f"{file} is of format {plain['format']}, this version reads {FORMAT}"
        )
    digest = plain.get("digest")
    rest = {key: value for key, value in plain.items() if key != "digest"}
    try:
        sealed, canonical = hashlib.sha256(canonical_json(rest)).hexdigest(), canonical_json(plain)
    except ValueError as error:  # such as 1e999, which JSON reads as infinity
        raise refusal("602.4", f"{file}: {error}") from error
    if digest != sealed:
        raise refusal("602.5", f"{file} does not match its own digest: altered")
    if blob != canonical:
        raise refusal("602.6", f"{file} is not in canonical form: altered")
    if set(plain) != _FIELDS:
        raise refusal("604.3", f"{file} has the fields {sorted(plain)}")
    try:
        source = KVLayout.from_json(json.dumps(plain["source_layout"]))
        target = KVLayout.from_json(json.dumps(plain["target_layout"]))
        points = points_from_json(json.dumps(plain["operating_points"]))
        files = {
            str(name): (_integer(entry["bytes"]), str(entry["sha256"]))
            for name, entry in plain["files"].items()
        }
        version, rank = _integer(plain["version"]), _integer(plain["rank"])
        name = plain["id"]
        if _integer(plain["format"]) != FORMAT or version < 0:
            raise ValueError("a format or version that cannot be")
        if not isinstance(name, str) or not 1 <= len(name) <= _MAX_ID or not name.isprintable():
            raise ValueError(f"an id is a printable text of 1 to {_MAX_ID} characters")
        default = _integer(plain["default_point"])
        ladder = tuple(_integer(index) for index in plain["ladder"])
    except (FrameMalformedError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise refusal("604.4", f"{file}: {in_words(error)}") from error
    known = {point.index for point in points}
    sound = ladder and len(set(ladder)) == len(ladder) and set(ladder) <= known
    if default not in known or not sound:
        raise refusal(
            "604.5",
            f"{file}: its default point or ladder names an unknown point, one twice, or none",
        )
    complete = set(files) in ({*FILES}, {*FILES, *REVERSE_FILES})
    if not complete or any(not 0 < s <= _MAX_FILE_BYTES for s, _ in files.values()):
        raise refusal(
            "604.6",
            f"{file} must list {', '.join(FILES)} with their sizes, and either both or none of "
            f"{', '.join(REVERSE_FILES)}",
        )
    return BundleInfo(
        id=name,
        version=version,
        digest=str(digest),
        source=source,
        target=target,
        rank=rank,
        points=points,
        default_point=default,
        ladder=ladder,
        files=files,
    )


def _encoder(blob: bytes, info: BundleInfo, folder: Path) -> Encoder:
    try:
        encoder = Encoder.from_bytes(blob)
    except BridgeError as error:
        raise refusal("604.7", f"{folder / EDGE}: {error}") from error
    theirs = (encoder.source_fingerprint, encoder.state_dim, encoder.rank, encoder.points)
    ours = (info.source.fingerprint, info.source.state_dim, info.rank, info.points)
    if theirs != ours or encoder.text != (info.source.of_text and info.target.of_text):
        raise refusal(
            "604.8", f"{folder}: {EDGE} and {DESCRIPTION} disagree on the source, rank or points"
        )
    return encoder


def _require_whole(graph: bytes, folder: Path) -> None:
    """Refuse a graph with external data, whose bytes no digest of the bundle covers.

    Such a tensor names its file under the key `location` (ONNX, TensorProto.external_data). The
    word is looked for as it is, since a protobuf field can be written in more than one way.
    """
    if b"location" in graph:
        raise refusal("604.11", f"{folder / GRAPH} may name a file that is not in the bundle")


def _reverse(blobs: Mapping[str, bytes], info: BundleInfo, folder: Path) -> Reverse | None:
    if REVERSE_ENCODER not in blobs:
        return None
    try:
        encoder = Encoder.from_bytes(blobs[REVERSE_ENCODER])
        decoder = ReverseDecoder.from_bytes(blobs[REVERSE_DECODER])
    except BridgeError as error:
        raise refusal("604.9", f"{folder}: {error}") from error
    source, target = info.source, info.target
    ours = (encoder.source_fingerprint, encoder.state_dim, encoder.tokens)
    theirs = (decoder.source_fingerprint, decoder.target_fingerprint, decoder.up.shape[1])
    made = decoder.tokens if decoder.regrid is None else len(decoder.regrid)
    if (
        ours != (target.fingerprint, target.state_dim, target.tokens)
        or theirs != (target.fingerprint, source.fingerprint, source.state_dim)
        or made != source.tokens
        or decoder.points != encoder.points
        or not np.array_equal(decoder.centre, encoder.centre)
    ):
        raise refusal(
            "604.10",
            f"{folder}: the halves of the way back are not for these models, or each other",
        )
    return Reverse(encoder, decoder)


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not an integer")
    return value


def _require_layout(info: BundleInfo, side: str, trained: KVLayout, live: KVLayout | str) -> None:
    fitting = (live,) if isinstance(live, str) else live.fingerprints
    if trained.fingerprint in fitting:
        return
    detail, fingerprint = "", fitting[0]
    if isinstance(live, KVLayout):
        ours, theirs = (json.loads(layout.to_json()) for layout in (trained, live))
        differing = [name for name in ours if ours[name] != theirs.get(name)]
        detail = "; they differ in " + ", ".join(differing)
    raise refusal(
        "603.1" if side == "source" else "603.2",
        f"bundle '{info.id}' expects the {side} {trained.model_id} (layout "
        f"{trained.fingerprint[:12]}, d={trained.state_dim}), the running {side} has layout "
        f"{fingerprint[:12]}{detail}",
    )
