"""The canary set of a bundle: frames with questions and the large model's recorded answers.

A service checks a bundle with it before it serves the bundle. `canary.json` is canonical JSON:
`{"format": 1, "max_new_tokens": 16, "frames": [{"header", "payload", "question", "seen",
"answer"}, …]}`. Header and payload are the fields of `Frame` in bridge.proto, in base64.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from projector.bundle.describe import canonical_json, parse_object
from projector.bundle.refusals import refusal
from protos.errors import BridgeError
from protos.header import unpack_header
from protos.limits import Limits
from protos.points import OperatingPoint

_FORMAT = 1
_MOST_FRAMES = 1024
_MOST_TOKENS = 1024
_MOST_CHARACTERS = 4096


@dataclass(frozen=True)
class CanaryFrame:
    """One frame with a question about it.

    Attributes:
        header: `Frame.header` of a key frame with latents.
        payload: `Frame.payload`.
        question: the question.
        seen: the large model's answer from the picture itself.
        answer: the large model's answer from the frame.
    """

    header: bytes
    payload: bytes
    question: str
    seen: str
    answer: str


@dataclass(frozen=True)
class CanarySet:
    """The frames and the bound on their answers.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        frames: at least one.
    """

    max_new_tokens: int
    frames: tuple[CanaryFrame, ...]

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        rows = [
            asdict(frame) | {name: _text(getattr(frame, name)) for name in ("header", "payload")}
            for frame in self.frames
        ]
        return canonical_json(
            {"format": _FORMAT, "max_new_tokens": self.max_new_tokens, "frames": rows}
        )

    @classmethod
    def from_bytes(
        cls, blob: bytes, tokens: int, points: Sequence[OperatingPoint], file: Path
    ) -> CanarySet:
        """Parse the file and check each frame against the bundle.

        Args:
            blob: the file's bytes.
            tokens: tokens in the edge model's grid.
            points: the bundle's operating points.
            file: the file, for messages.

        Raises:
            BundleCorruptError: it is not JSON.
            BundleFormatError: another format, or a frame that this bundle cannot decode.
        """
        plain = parse_object(blob, file)
        try:
            if set(plain) != {"format", "max_new_tokens", "frames"} or plain["format"] != _FORMAT:
                raise ValueError(f"expected format {_FORMAT} with max_new_tokens and frames")
            most, rows = plain["max_new_tokens"], plain["frames"]
            if type(most) is not int or not 1 <= most <= _MOST_TOKENS:
                raise ValueError(f"max_new_tokens must be in 1..{_MOST_TOKENS}")
            if not isinstance(rows, list) or not 1 <= len(rows) <= _MOST_FRAMES:
                raise ValueError(f"expected 1 to {_MOST_FRAMES} frames")
            made = cls(most, tuple(_frame(row, tokens, points) for row in rows))
        except (ValueError, KeyError, TypeError, BridgeError) as error:
            raise refusal("604.13", f"{file}: {error}") from error
        return made


def _frame(row: Any, tokens: int, points: Sequence[OperatingPoint]) -> CanaryFrame:
    if not isinstance(row, dict) or set(row) != {"header", "payload", "question", "seen", "answer"}:
        raise ValueError("a frame has the fields header, payload, question, seen and answer")
    if not all(isinstance(v, str) and len(v) <= 2 * _MOST_CHARACTERS for v in row.values()):
        raise ValueError("a frame's fields are texts")
    if not 1 <= len(row["question"]) <= _MOST_CHARACTERS:
        raise ValueError("a frame has no question, or a very long one")
    made = CanaryFrame(
        _bytes(row["header"]), _bytes(row["payload"]), row["question"], row["seen"], row["answer"]
    )
    header, _ = unpack_header(made.header, made.payload, Limits(max_tokens=tokens))
    kinds = {point.index: point.kind for point in points}
    if kinds.get(header.operating_point) != "latent" or header.base is not None:
        raise ValueError("a frame is not a key frame of latents at a point of this bundle")
    if header.tokens != tokens:
        raise ValueError(f"a frame's grid has {header.tokens} tokens, the edge model's {tokens}")
    return made


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error
