"""A source's address: scheme, place and typed options. Credentials in it are never shown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from protos.errors import SourceError
from protos.identity import NAME, NAME_RULE
from protos.process.nearest import nearest

_HIDDEN = "***"
_SECRET = re.compile(r"\b([a-z][a-z0-9+.-]*://)\S*@", re.IGNORECASE)
_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[^\[\]:#\s]+)(?::([0-9]{1,5}))?")
_LOCAL = re.compile(r"^(folder|file|v4l2|csi|yard):")


def shown(address: str) -> str:
    """An address as logs and errors may show it: without user and password."""
    return address if _LOCAL.match(address) else _SECRET.sub(rf"\1{_HIDDEN}@", address)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(NAME_RULE.removeprefix("a name has "))
    return text


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return read


def _real(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return value

    return read


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(" or ".join(words))
        return text.lower()

    return read


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


Readers = Mapping[str, Callable[[str], Any]]
NAMED: Readers = {"name": _name}
CAMERA: Readers = {
    **NAMED,
    "width": _whole(16, 16384),
    "height": _whole(16, 16384),
    "fps": _real(0.001, 240.0),
    "by": _one_of("pyav", "gstreamer"),
    "open_s": _real(1.0, 600.0),
    "stall_s": _real(0.5, 3600.0),
    "frozen_s": _real(0.0, 86400.0),
}
OPTIONS: Mapping[str, Readers] = {
    "csi": CAMERA,
    "v4l2": {**CAMERA, "format": _one_of("mjpeg", "yuyv422", "h264", "nv12", "rgb24", "gray")},
    "rtsp": {**CAMERA, "transport": _one_of("tcp", "udp"), "query": str},
    "file": {**CAMERA, "realtime": _flag, "loop": _flag},
    "folder": {**NAMED, "watch": _flag},
}
"""By scheme, the options that its addresses may have."""
OF_MAKERS = frozenset(
    "camera channel compression profile proto protocol resolution source stream streamprofile "
    "streamtype subtype token transportmode unicast videocodec".split()
)
"""Parameters in the RTSP addresses of camera makers; they are passed on to the camera."""


@dataclass(frozen=True)
class Address:
    """Where a camera is.

    Attributes:
        scheme: `csi`, `v4l2`, `rtsp`, `file`; `rtsps` is `rtsp` over TLS.
        place: what stands after the scheme without our options: a path, or host, port and path
            with credentials.
        options: by name, typed.
        shown: the whole without credentials, for logs.
    """

    scheme: str
    place: str
    shown: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Read `scheme://place?option=value&…`.

        Raises:
            SourceError: there is no place, an option is unknown or given twice, or its value
                cannot be used.
        """
        scheme, _, rest = uri.partition(":")
        place, mark, query = rest.removeprefix("//").partition("?")
        family = scheme.removesuffix("s") if scheme == "rtsps" else scheme
        options, passed = options_of(family, query, shown(uri))
        if passed:
            place += "?" + passed
        if family in ("csi", "v4l2", "file"):
            place = unquote(place)
        if not place or place.startswith("?") or "\0" in place:
            example = {"csi": "csi://0", "rtsp": "rtsp://camera.example/stream"}
            hint = example.get(family, f"{family}:///path")
            raise SourceError(f"source {shown(uri)!r} names no camera: write {hint}")
        if family == "rtsp" and not _is_host(place.partition("/")[0].rpartition("@")[2]):
            raise SourceError(
                f"source {shown(uri)!r}: write a host or an address after rtsp://, and after a "
                "colon a port from 1 to 65535; percent-encode /, ?, # and @ in a password"
            )
        if family == "csi" and not (place.isascii() and place.isdigit()):
            raise SourceError(f"source {shown(uri)!r}: the camera is a number, as in csi://0")
        return cls(scheme, place, shown(uri), options)

    @property
    def url(self) -> str:
        """The address that a decoder opens, credentials included."""
        return f"{self.scheme}://{self.place}" if self.scheme.startswith("rtsp") else self.place

    def scrub(self, text: str) -> str:
        """Take this camera's user and password out of a text, such as a decoder's message."""
        user, at, _ = self.place.partition("/")[0].rpartition("@")
        if at and self.scheme.startswith("rtsp"):
            for secret in sorted({user, *user.split(":", 1)[1:]}, key=len, reverse=True):
                for form in {secret, unquote(secret)}:
                    text = text.replace(form, _HIDDEN) if form else text
        return shown(text)


def _is_host(text: str) -> bool:
    """Whether a text is a host, perhaps with a port."""
    found = _HOST.fullmatch(text)
    return found is not None and (found[1] is None or 0 < int(found[1]) < 1 << 16)


def options_of(scheme: str, query: str, where: str) -> tuple[dict[str, Any], str]:
    """The typed options of an address, and the part of the query that the camera itself gets.

    Args:
        scheme: one of `OPTIONS`.
        query: what stands after the question mark.
        where: the address as messages show it.

    Raises:
        SourceError: see `Address.parse`.
    """
    readers = OPTIONS[scheme]
    options: dict[str, Any] = {}
    passed: list[tuple[str, str]] = []
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in readers:
            if scheme == "rtsp" and name.lower() in OF_MAKERS:
                passed.append((name, text))
                continue
            hint = nearest(name, list(readers)) or f"; known: {', '.join(readers)}"
            if scheme == "rtsp":
                hint += " (a parameter of the camera's own goes into query=, percent-encoded)"
            raise SourceError(f"source {where!r}: there is no option {name!r}{hint}")
        if name in options:
            raise SourceError(f"source {where!r}: {name} is given twice")
        try:
            options[name] = readers[name](text)
        except ValueError as error:
            raise SourceError(f"source {where!r}: {name} must be {error}, not {text!r}") from None
    own = options.pop("query", "")
    return options, "&".join(part for part in (urlencode(passed), own) if part)
