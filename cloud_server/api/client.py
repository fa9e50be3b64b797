"""A small client of the HTTP port, for the command line: the answer arrives piece by piece."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from protos.errors import BridgeError, ConfigError, OfflineError, OverloadedError, from_code

_TIMEOUT_S = 120.0
_SILENT_S = 30.0
"""A feed says something every ten seconds."""
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Asking:
    """A question about a scene.

    Attributes:
        device: name of the device that sent it.
        at: `latest`, or the scene's id.
        tenant: the device's tenant; None for the key's.
        max_risk: highest accepted risk; None for any.
        max_tokens: longest answer in tokens; None for the service's bound.
    """

    device: str
    question: str
    at: str = "latest"
    tenant: str | None = None
    max_risk: float | None = None
    max_tokens: int | None = None


class Client:
    """Talks to one service.

    Args:
        url: `https://host:port`, or `http://` for a service without identities.
        key: bearer key; empty for none.
        roots: PEM file of the roots to trust; None for the system's.

    Raises:
        ConfigError: the URL is malformed, or the file holds no certificates.
    """

    def __init__(self, url: str, key: str, roots: Path | None) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is no URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host or parts.path.strip("/"):
            raise ConfigError(f"{url!r}: expected https://HOST:PORT")
        self._url, self._host, self._port = url, host, port
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._context = _context(roots) if parts.scheme == "https" else None

    def ask(self, asking: Asking) -> Iterator[dict[str, Any]]:
        """Ask a question; yields the chunks of the answer (`ChatChunk`).

        Raises:
            OfflineError: the service cannot be reached, or went away.
            BridgeError: the service's own error.
        """
        models = json.loads(self._open("GET", "/v1/models", None).read(_MOST_BYTES))
        scene = {"type": "scene", "device": asking.device, "at": asking.at}
        if asking.tenant is not None:
            scene["tenant"] = asking.tenant
        content = [scene, {"type": "text", "text": asking.question}]
        body: dict[str, Any] = {
            "model": models["data"][0]["id"],
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        given = {"max_risk": asking.max_risk, "max_tokens": asking.max_tokens}
        body |= {name: value for name, value in given.items() if value is not None}
        reply = self._open("POST", "/v1/chat/completions", json.dumps(body).encode())
        try:
            yield from _chunks(reply)
        except (OSError, http.client.HTTPException) as error:
            raise OfflineError(f"{self._url}: the answer broke off: {error}") from error

    def look(self, path: str) -> dict[str, Any]:
        """What a path says.

        Raises:
            OfflineError: the service cannot be reached, or went away.
            BridgeError: the service's own error.
        """
        raw = self._open("GET", path, None).read(_MOST_BYTES + 1)
        try:
            return dict(json.loads(raw))
        except (TypeError, ValueError) as error:
            raise OfflineError(f"{self._url}{path}: no JSON object: {error}") from error

    def follow(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The server-sent events of a path: their names and what they say, until they end.

        Raises:
            OfflineError: the service cannot be reached, or went away.
            BridgeError: the service's own error.
        """
        reply, name = self._open("GET", path, None, _SILENT_S), "message"
        try:
            while line := reply.readline(_MOST_BYTES):
                field, _, text = line.decode("utf-8", "replace").strip().partition(": ")
                if field == "event":
                    name = text
                elif field == "data":
                    said = json.loads(text)
                    if name == "message" and "error" in said:
                        raise _typed(said["error"])
                    yield name, said
                elif not field:
                    name = "message"
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise OfflineError(f"{self._url}: the feed broke off: {error}") from error
        finally:
            reply.close()

    def _open(
        self, method: str, path: str, body: bytes | None, timeout_s: float = _TIMEOUT_S
    ) -> http.client.HTTPResponse:
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout_s, context=self._context
            )
        try:
            connection.request(method, path, body, self._headers)
            reply = connection.getresponse()
            if reply.status != 200:
                raise _error(reply.status, reply.read(_MOST_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise OfflineError(f"{self._url} cannot be reached: {error}") from error
        return reply


def _context(roots: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if roots is None else str(roots))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{roots}: no certificates can be read from it: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _chunks(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The server-sent events of a reply, to the last.

    Raises:
        OfflineError: the last one is missing.
        BridgeError: one of them is an error.
    """
    while line := reply.readline(_MOST_BYTES):
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise OfflineError(f"the answer is damaged: {error}") from error
        if "error" in chunk:
            raise _typed(chunk["error"])
        yield chunk
    raise OfflineError("the answer broke off before its end")


def _error(status: int, raw: bytes) -> BridgeError:
    try:
        return _typed(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError):
        return OfflineError(f"HTTP status {status}: this is no service of Neural Bridge")


def _typed(told: dict[str, Any]) -> BridgeError:
    error = from_code(int(told["number"]), str(told["message"]))
    if isinstance(error, OverloadedError):
        error.cause = "service"
    return error
