"""Operating points: the ways to send a picture, with calibration's measurements of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from protos.errors import FrameMalformedError
from protos.strict_json import read_json

PICTURE_POINT = 254
RAW_KV_FP8_POINT = 253
_OPTIONAL = {"dead_zone", "quiet", "measured"}
_MAX_DEAD_ZONE = 0.5
_MAX_MEASURED = 1e9


@dataclass(frozen=True)
class Measured:
    """Calibration's measurements of an operating point: means over held-out pictures.

    Attributes:
        payload_bytes: `Frame.payload`, as sent (with a bitmap if it travels there).
        wire_bytes: Estimate of uplink bytes: the request without a question, in gRPC's and
            HTTP/2's framing (`requests.wire_bytes`).
        accuracy: Share of questions answered right, 0..1.
        quantize: As headers carry it.
        dropped_attention: As headers carry it.

    Raises:
        FrameMalformedError: A figure is no number, or out of bounds.
    """

    payload_bytes: float
    wire_bytes: float
    accuracy: float
    quantize: float
    dropped_attention: float

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            most = 1.0 if entry.name in ("accuracy", "dropped_attention") else _MAX_MEASURED
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FrameMalformedError(f"operating point: {entry.name} {value!r} is no number")
            if not 0 <= value <= most:
                raise FrameMalformedError(
                    f"operating point: {entry.name} {value!r} is not in 0..{most:g}"
                )


@dataclass(frozen=True)
class OperatingPoint:
    """One way to send a picture: how many tokens, how many latents, how coarse.

    Attributes:
        index: The header's byte; 253 and 254 are reserved.
        name: For people, metrics and `steps/<name>`.
        kind: "latent", "raw_kv" or "picture".
        quantizer: Name in `protos.quantize.QUANTIZERS`.
        tokens: Budget of kept tokens, 0 = all.
        rank: Latents per token, the first ones of the encoder's; 0 if the kind has none.
        steps: Name of the steps in the encoder; empty if none are needed.
        dead_zone: Values of up to 0.5 + dead_zone steps are rounded to 0; 0..0.5, in steps. The
            decoder need not know it.
        quiet: Tokens closer than this to the mean at their position (squared distance in steps,
            summed over the latents that travel) are sent as zeros, which cost next to nothing. 0
            turns this off. The decoder need not know it.
        measured: What calibration found; None if nothing was measured.

    Raises:
        FrameMalformedError: A field is out of bounds.
    """

    index: int
    name: str
    kind: str = "latent"
    quantizer: str = "fp8_e4m3"
    tokens: int = 0
    rank: int = 0
    steps: str = ""
    dead_zone: float = 0.0
    quiet: float = 0.0
    measured: Measured | None = None

    def __post_init__(self) -> None:
        for name, most in (("index", 255), ("tokens", 65535), ("rank", 65535)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise FrameMalformedError(f"operating point: {name} {value!r} not in 0..{most}")
        for name in ("name", "kind", "quantizer", "steps"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > 64:
                raise FrameMalformedError(f"operating point: {name} must be a short text")
        if not self.name:
            raise FrameMalformedError("operating point: name is empty")
        if self.kind not in ("latent", "raw_kv", "picture"):
            raise FrameMalformedError(
                f"operating point {self.name!r}: kind {self.kind!r} is none of latent, raw_kv, "
                "picture"
            )
        if (self.kind == "picture") != (self.index == PICTURE_POINT):
            raise FrameMalformedError(
                f"operating point {self.name!r}: kind picture and index {PICTURE_POINT} "
                "belong together"
            )
        for name, limit in (("dead_zone", _MAX_DEAD_ZONE), ("quiet", _MAX_MEASURED)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise FrameMalformedError(f"operating point: {name} {number!r} is no number")
            if not 0 <= number <= limit:
                raise FrameMalformedError(
                    f"operating point: {name} {number!r} is not in 0..{limit:g}"
                )

    def to_json(self) -> str:
        """Canonical JSON object."""
        return points_to_json([self])[1:-1]

    @classmethod
    def from_json(cls, text: str | bytes) -> OperatingPoint:
        """Read what `to_json` wrote.

        Raises:
            FrameMalformedError: Not exactly the fields of a valid point.
        """
        return cls._from_plain(read_json(text, 4096, "operating point"))

    @classmethod
    def _from_plain(cls, plain: Any) -> OperatingPoint:
        names = {entry.name for entry in fields(cls)}
        if not isinstance(plain, dict) or not names - _OPTIONAL <= set(plain) <= names:
            raise FrameMalformedError(
                f"operating point: expected the fields {sorted(names - _OPTIONAL)} "
                f"and at most {sorted(_OPTIONAL)} besides"
            )
        return cls(**{**plain, "measured": _measured(plain.get("measured"))})


def _measured(plain: Any) -> Measured | None:
    if plain is None:
        return None
    names = {entry.name for entry in fields(Measured)}
    if not isinstance(plain, dict) or set(plain) != names:
        raise FrameMalformedError(f"operating point: measured has the fields {sorted(names)}")
    return Measured(**plain)


PICTURE = OperatingPoint(PICTURE_POINT, "picture", kind="picture", quantizer="none")
RAW_KV_FP8 = OperatingPoint(
    RAW_KV_FP8_POINT, "raw_kv_fp8", kind="raw_kv", quantizer="fp8_e4m3", steps="raw_scale"
)


def points_to_json(points: Iterable[OperatingPoint]) -> str:
    """Canonical JSON array of operating points, as `Negotiate` and bundles carry it.

    Optional fields are left out if they are empty.
    """
    plain = [
        {
            name: value
            for name, value in asdict(point).items()
            if name not in _OPTIONAL or value not in (None, 0.0)
        }
        for point in points
    ]
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def points_from_json(text: str | bytes) -> tuple[OperatingPoint, ...]:
    """Read what `points_to_json` wrote.

    Raises:
        FrameMalformedError: Not a list of valid points, or an index or name occurs twice.
    """
    plain = read_json(text, 1 << 18, "operating points")
    if not isinstance(plain, list) or len(plain) > 256:
        raise FrameMalformedError("operating points: expected a list of at most 256")
    points = tuple(OperatingPoint._from_plain(item) for item in plain)
    for unique in ({p.index for p in points}, {p.name for p in points}):
        if len(unique) != len(points):
            raise FrameMalformedError("operating points: an index or a name occurs twice")
    return points
