"""Which HTTP proxy gRPC uses to reach a server.

gRPC itself reads grpc_proxy, https_proxy, http_proxy, no_grpc_proxy and no_proxy, and connects
through that proxy by CONNECT, even to this machine. This module only finds the proxy's name, for
channel options and messages.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from protos.errors import ConfigError
from protos.process import addresses

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def proxy_of(target: str, environ: Mapping[str, str]) -> str:
    """The proxy on the way to a server, without its password, and the variable that names it.

    Args:
        target: as `addresses.target` returns it.
        environ: the environment.

    Returns:
        `proxy.example:3128 (http_proxy)`; empty if none is on the way.
    """
    parts, variable = proxy_url(target, environ)
    if parts is None:
        return ""
    with suppress(ValueError):
        if parts.port:
            return f"{addresses.Address(str(parts.hostname), parts.port)} ({variable})"
    return f"{parts.hostname} ({variable})"


def proxy_url(target: str, environ: Mapping[str, str]) -> tuple[SplitResult | None, str]:
    """The URL of the proxy for a server, and the variable that names it.

    Args:
        target: as `addresses.target` returns it.
        environ: the environment.

    Returns:
        The URL with its password; None if no proxy is used.
    """
    if addresses.loopback(target):
        return None, ""
    variable = next((name for name in _VARIABLES if environ.get(name)), "")
    parts = urlsplit(environ.get(variable, ""))
    if parts.scheme != "http" or not parts.hostname:
        return None, ""
    exceptions = next((environ[name] for name in _EXCEPTIONS if environ.get(name)), "")
    host = addresses.first(target).host
    if any(_excepted(host, entry.strip()) for entry in exceptions.split(",")):
        return None, ""
    return parts, variable


def checked(url: str) -> str:
    """Check the URL of a proxy; no message shows it, since it may have a password.

    Raises:
        ConfigError: it is none.
    """
    wrong = ConfigError("--proxy: expected http://host:port or http://user:password@host:port")
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port or parts.path.strip("/"):
            raise wrong
    except ValueError as error:
        raise wrong from error
    return url


def _excepted(host: str, entry: str) -> bool:
    if not entry:
        return False
    with suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    return host.lower().endswith(entry.lower())
