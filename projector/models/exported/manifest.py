"""`export.json`: the files of an edge export, and what a device must know of the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from projector.models.foreign import plain_file
from protos.errors import BridgeError, ModelError
from protos.layout import KVLayout
from protos.process.files import write_file, writing
from protos.process.folders import open_file

DESCRIPTION = "export.json"
VISION, DECODER = "vision.onnx", "decoder.onnx"
EMBEDDINGS, TOKENIZER, WITNESS = "embeddings.npy", "tokenizer.json", "witness.npz"
REQUIRED = (VISION, DECODER, EMBEDDINGS, TOKENIZER, WITNESS)
"""Files of every export; a graph's weights are in a further file of its own."""
AGAIN = "copy the export again, or make it again with `projector export-edge`"
"""What to do about a damaged export."""
_MOST_BYTES = 1 << 24
_BLOCK = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ExportedFile(_Part):
    """One file: its size and digest."""

    bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class PictureSteps(_Part):
    """How a picture becomes the vision tower's input.

    Attributes:
        sizes: applied in order: `longest` or `shortest` edge to n pixels, `exact` height and width,
            `crop` to height and width around the centre.
        resample: Pillow's filter.
        scale: multiplies the samples 0..255.
        mean: per channel, subtracted after scaling; empty: nothing is subtracted.
        std: per channel, divides after that.
        images_axis: whether the input has an axis for the images of one prompt.
        pixels: name of the input.
        mask: name of the input that says which pixels are the picture's; empty if there is none.
    """

    sizes: list[tuple[Literal["longest", "shortest", "exact", "crop"], int, int]]
    resample: int = Field(ge=0, le=5)
    scale: float
    mean: list[float]
    std: list[float]
    images_axis: bool
    pixels: str
    mask: str = ""


class PromptParts(_Part):
    """The prompt around one picture.

    Attributes:
        before: ids before the picture.
        cue: ids after the picture when the question is empty.
        tail: ids after the picture, before the question's own.
        image_text: text of the image token; a question is tokenized behind it.
        opening: text between picture and question.
        closing: text after the question.
        strip: whether the template strips the question.
        reserved: texts that a question must not hold.
        eos: ids that end an answer.
        seen_as: ids whose embedding is another one beside a picture, in the order of the last rows
            of the embedding table.
        two_way: whether the picture's tokens see each other both ways.
        max_question_tokens: longest question with its template.
    """

    before: list[int]
    cue: list[int]
    tail: list[int]
    image_text: str
    opening: str
    closing: str
    strip: bool
    reserved: list[str]
    eos: list[int]
    seen_as: list[int]
    two_way: bool
    max_question_tokens: int = Field(ge=1, le=1 << 16)


class Fidelity(_Part):
    """How far the graphs were from the checkpoint in torch when they were exported.

    Attributes:
        cache: largest difference of a token's keys or values in a layer, in median norms.
        variation: total variation of the distribution of a token.
        same_tokens: greedy tokens that were the same.
        tokens: greedy tokens compared.
    """

    cache: float
    variation: float
    same_tokens: int
    tokens: int


class CalibratedConfidence(_Part):
    """How far the model's own answers can be trusted (`projector/codec/confidence.py`).

    Attributes:
        weights: of the features.
        bias: intercept.
        questions: that it was learnt from.
        accuracy: share of them that the model answered rightly.
        error: calibration error, by fits to the other half of the pictures.
    """

    weights: list[float]
    bias: float
    questions: int
    accuracy: float
    error: float


class Manifest(_Part):
    """All of `export.json`.

    Attributes:
        format: version of this file.
        layout: the model's cache layout; its fingerprint is the checkpoint's.
        opset: of the graphs.
        made_with: versions of the libraries that wrote the graphs.
        prompt: the prompt.
        pictures: how pictures are prepared.
        parity: against torch, when it was made.
        resident_bytes: memory that it took on the CPU when it was made, libraries included.
        files: by name.
        confidence: for a cascade; None if it was not calibrated.
    """

    format: Literal[1]
    layout: dict[str, Any]
    opset: int
    made_with: dict[str, str]
    prompt: PromptParts
    pictures: PictureSteps
    parity: Fidelity
    resident_bytes: int = Field(ge=0)
    files: dict[str, ExportedFile]
    confidence: CalibratedConfidence | None = None

    @property
    def kv_layout(self) -> KVLayout:
        """The layout, checked.

        Raises:
            FrameMalformedError: it is none.
        """
        return KVLayout.from_json(json.dumps(self.layout))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the graphs and weights: another model has another one."""
        told = json.dumps({name: file.sha256 for name, file in sorted(self.files.items())})
        return hashlib.sha256(told.encode()).hexdigest()


def is_export(folder: Path) -> bool:
    """Whether a folder is an edge export (not a checkpoint)."""
    return (folder / DESCRIPTION).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read `export.json`; the other files are not opened.

    Raises:
        ModelError: it cannot be read, or is not such a file.
    """
    file = folder / DESCRIPTION
    plain_file(file, AGAIN, most=_MOST_BYTES)
    try:
        made = Manifest.model_validate_json(file.read_bytes())
        made.kv_layout  # noqa: B018 - checks it
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{file}: {where or 'it'}: {first['msg']}; {AGAIN}") from error
    except (BridgeError, OSError) as error:
        raise ModelError(f"{file}: {error}; {AGAIN}") from error
    missing = [name for name in REQUIRED if name not in made.files]
    strange = [name for name in made.files if "/" in name or name.startswith(".")]
    if missing or strange:
        what = f"lists no {missing[0]}" if missing else f"lists a file {strange[0]!r}"
        raise ModelError(f"{file} {what}; {AGAIN}")
    return made


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `export.json`.

    Raises:
        DiskFullError, ConfigError: it cannot be written.
    """
    with writing(folder / DESCRIPTION):
        text = manifest.model_dump_json(indent=1) + "\n"
        write_file(folder / DESCRIPTION, text.encode())


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check the size and digest of every file.

    Raises:
        ModelError: a file is missing, truncated or altered; the message names it.
    """
    for name, wanted in manifest.files.items():
        file = folder / name
        plain_file(file, AGAIN)
        held = file.stat().st_size
        if held != wanted.bytes:
            raise ModelError(f"{file} has {held} bytes, {DESCRIPTION} says {wanted.bytes}; {AGAIN}")
        if sha256_of(file) != wanted.sha256:
            raise ModelError(f"{file} does not match its digest in {DESCRIPTION}; {AGAIN}")


def sha256_of(file: Path) -> str:
    """SHA-256 (hex) of a regular file."""
    digest = hashlib.sha256()
    with open_file(file) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
