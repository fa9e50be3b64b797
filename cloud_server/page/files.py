"""The page's files, read once at the start, with the headers that keep a browser strict."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from protos.errors import MissingError

PATH = "/live"
FILES = f"{PATH}/files/"
_FOLDER = Path(__file__).with_name("static")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}
"""Of every file. `no-cache`: a browser asks each time whether its copy is still the newest."""


@dataclass(frozen=True)
class _File:
    plain: bytes
    packed: bytes
    kind: str
    tag: str


def router() -> APIRouter:
    """The routes of the page's files; they need no key."""
    files = {
        path.relative_to(_FOLDER).as_posix(): _read(path)
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _TYPES
    }
    made = APIRouter(include_in_schema=False)

    @made.get("/")
    async def root() -> Response:
        return RedirectResponse(PATH, 307)

    @made.get(PATH)
    async def page(request: Request) -> Response:
        return _sent(files["index.html"], request)

    @made.get(FILES + "{name:path}")
    async def file(request: Request, name: str) -> Response:
        if name not in files:
            raise MissingError(f"the live page has no file '{name[:80]}'")
        return _sent(files[name], request)

    return made


def _read(path: Path) -> _File:
    plain = path.read_bytes()
    tag = f'"{hashlib.sha256(plain).hexdigest()[:32]}"'
    return _File(plain, gzip.compress(plain, 9, mtime=0), _TYPES[path.suffix], tag)


def _sent(file: _File, request: Request) -> Response:
    headers = HEADERS | {"etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        packed = headers | {"content-encoding": "gzip"}
        return Response(file.packed, headers=packed, media_type=file.kind)
    return Response(file.plain, headers=headers, media_type=file.kind)
