"""Hosts and ports as people type them: one parser for every address.

`name:port`, `10.0.0.2:50051`, `[::1]:50051`: an IPv6 address stands in brackets before its port.
Without a port, brackets are optional. The address of a server may also have one of gRPC's own forms
(`dns:`, `ipv4:`, `ipv6:`, `unix:`). Names are resolved only by `listen`.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from contextlib import suppress
from dataclasses import dataclass

from protos.errors import ConfigError

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_GRPC = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract):(.*)", re.S)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.I)
_EXAMPLE = "expected host:port, for example 10.0.0.2:50051, cloud.example:50051 or [::1]:50051"


@dataclass(frozen=True)
class Address:
    """A host without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Read `host:port`.

    Raises:
        ConfigError: the text is something else; the message says what to write instead.
    """
    _no_scheme(text)
    if text.startswith("["):
        inside, closed, rest = text[1:].partition("]")
        if not closed:
            raise ConfigError(f"{text!r}: the bracket is not closed; {_EXAMPLE}")
        if ":" not in inside:
            raise ConfigError(f"{text!r}: only IPv6 addresses stand in brackets")
        if not rest.startswith(":"):
            raise ConfigError(f"{text!r} has no port: expected {text[: len(inside) + 2]}:PORT")
        return Address(host(inside), port(rest[1:], text))
    if text.count(":") > 1:
        raise ConfigError(f"{text!r}: an IPv6 address stands in brackets{_bracketed(text)}")
    before, colon, after = text.rpartition(":")
    if not colon:
        raise ConfigError(f"{text!r} has no port: {_EXAMPLE}")
    if not before:
        raise ConfigError(f"{text!r} has no host: {_EXAMPLE}")
    return Address(host(before), port(after, text))


def host(text: str) -> str:
    """Read a host without a port: a name or an address, IPv6 with or without brackets.

    Returns:
        The host, without brackets.

    Raises:
        ConfigError: it is neither, or a port follows it.
    """
    _no_scheme(text)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    with suppress(ValueError):
        ipaddress.ip_address(bare)
        if bare == text or ":" in bare:
            return bare
    if re.fullmatch(r"\[[^\]]*\]:.*|[^:\[\]]+:\d*", text):
        raise ConfigError(f"{text!r}: expected a host alone; its port is a setting of its own")
    if ":" in bare or "[" in text or "]" in text:
        raise ConfigError(f"{text!r} is no IPv6 address and no host name")
    labels = bare.removesuffix(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or len(bare) > 253:
        raise ConfigError(f"{text!r} is no address and no host name")
    if labels[-1].isdigit():
        raise ConfigError(f"{text!r} is no IPv4 address (four numbers up to 255)")
    return bare


def port(text: str, whole: str = "") -> int:
    """Read a port that something listens on, 1 to 65535.

    Raises:
        ConfigError: it is no such port.
    """
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        where = f"{whole!r}: " if whole else ""
        raise ConfigError(f"{where}{text!r} is no port: expected a number from 1 to 65535")
    return int(text)


def target(text: str) -> str:
    """Read the address of a server as gRPC takes it: `host:port`, or one of gRPC's own forms.

    Raises:
        ConfigError: it is no such address.
    """
    form = _GRPC.fullmatch(text)
    if form is None or form[1] == "dns" and form[2].isdigit():  # a host called dns
        return str(parse(text))
    kind, rest = form[1], form[2]
    if kind.startswith("unix"):
        if not rest.strip("/"):
            raise ConfigError(f"{text!r} names no socket: expected unix:/path/of/socket")
        return text
    if kind == "dns":
        authority, _, named = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest)
        found = parse(named)
        return f"dns://{authority}/{found}" if authority else f"dns:{found}"
    each = [parse(part) for part in rest.split(",")]
    for one in each:
        with suppress(ValueError):
            if ipaddress.ip_address(one.host).version == int(kind[-1]):
                continue
        raise ConfigError(f"{text!r}: {one.host} is no IPv{kind[-1]} address")
    return f"{kind}:{','.join(str(one) for one in each)}"


def first(text: str) -> Address:
    """Host and port of an address from `target`; the first of several. Unix sockets have none."""
    form = _GRPC.fullmatch(text)
    plain = text if form is None else form[2].rpartition("/")[2]
    return parse(plain.partition(",")[0])


def loopback(text: str) -> bool:
    """Whether an address (from `target`) is this machine, as far as its text tells."""
    form = _GRPC.fullmatch(text)
    if form is not None and form[1].startswith("unix"):
        return True
    plain = text if form is None else form[2].rpartition("/")[2]
    hosts = [parse(part).host for part in plain.split(",")]
    return all(_is_loopback(one) for one in hosts)


def listen(host: str, port: int, backlog: int = 16) -> list[socket.socket]:
    """Listen on every address of a host, on one port.

    `::` takes IPv4 too where the system can, as gRPC does.

    Args:
        host: as `host` returns it.
        port: 0 takes a free one.
        backlog: connections that may wait.

    Raises:
        OSError: it cannot be bound, or the name has no address.
    """
    made: list[socket.socket] = []
    failure: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in dict.fromkeys(found):
        chosen = made[0].getsockname()[1] if made else port
        both = host == "::" and socket.has_dualstack_ipv6()
        try:
            made.append(
                socket.create_server(
                    (str(address[0]), chosen, *address[2:]),
                    family=family,
                    backlog=backlog,
                    dualstack_ipv6=both and family == socket.AF_INET6,
                )
            )
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a machine without v6
                for one in made:
                    one.close()
                raise
            failure = error
    if not made:
        raise failure or OSError(errno.EADDRNOTAVAIL, f"{host} has no address")
    return made


def _is_loopback(name: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    plain = name.rstrip(".").lower()
    return plain == "localhost" or plain.endswith(".localhost")


def _bracketed(text: str) -> str:
    """A hint: how an IPv6 address without brackets was probably meant."""
    before, _, after = text.rpartition(":")
    with suppress(ValueError):
        ipaddress.IPv6Address(before)
        if after.isdigit():
            return f": [{before}]:{after}"
    with suppress(ValueError):
        ipaddress.IPv6Address(text)
        return f": [{text}]:PORT"
    return f" and has one port; {_EXAMPLE}"


def _no_scheme(text: str) -> None:
    if not text or text != text.strip() or any(c.isspace() for c in text):
        raise ConfigError(f"{text!r}: an address is not empty and holds no blanks")
    found = _SCHEME.match(text)
    if found and not _GRPC.fullmatch(text):
        raise ConfigError(f"{text!r}: expected host:port without {found[0]}")
