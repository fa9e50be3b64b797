"""Makes channels to the server, in plain text or TLS; says why one cannot be made.

Only connections that leave this machine use a proxy. gRPC checks certificates by this device's
clock. A refusal during the handshake reaches the client only as "Socket closed", so
`SecureDial.explained` checks the device's own certificate for the cause.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import grpc

from edge_agent.identity.enrolled import Enrolled
from edge_agent.uplink.keepalive import Keepalive
from protos.errors import (
    BridgeError,
    CaptivePortalError,
    CertificateError,
    ClockError,
    OfflineError,
    UnauthenticatedError,
)
from protos.process import addresses
from protos.process.proxies import proxy_of, proxy_url

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.use_local_subchannel_pool", 1),  # a fresh channel must not inherit an old back-off
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", -1),  # `Session.check_message` enforces the limit
    ("grpc.http2.bdp_probe", 0),  # its pings cost a narrow uplink more than they gain
]


Dial = Callable[[], grpc.aio.Channel]


@runtime_checkable
class Located(Protocol):
    """A dial that knows where it leads."""

    @property
    def address(self) -> str:
        """As `protos.process.addresses.target` returns it."""


@runtime_checkable
class Explaining(Protocol):
    """A dial that knows why its calls fail."""

    def explained(self, error: BridgeError) -> BridgeError:
        """Add the probable cause to the error of a failed call."""


@dataclass(frozen=True)
class InsecureDial:
    """A factory of plain-text channels to one server.

    Attributes:
        address: as `protos.process.addresses.target` returns it.
        proxy: name of the HTTP proxy on the way there; empty without one.
        via: URL of that proxy, with its password.
        keepalive: keeps idle connections alive; None: nothing does.
    """

    address: str
    proxy: str = ""
    via: str = field(default="", repr=False)
    keepalive: Keepalive | None = field(default=None, repr=False, compare=False)

    def __call__(self) -> grpc.aio.Channel:
        """Make a channel; it connects when it is used."""
        return grpc.aio.insecure_channel(self.address, options=_options(self))

    def explained(self, error: BridgeError) -> BridgeError:
        """Add the probable cause to the error of a failed call."""
        if not isinstance(error, OfflineError):
            return error
        if _page(error):
            return _portal(self.address, self.proxy, error)
        if _closed(error):
            error = OfflineError(
                f"{error.message}; this connection is in plain text: if the server speaks TLS, "
                "enrol this device (edge-agent enrol) or give --ca"
            )
        return by_proxy(error, self.proxy)


@dataclass(frozen=True)
class SecureDial:
    """Makes TLS channels to one server.

    Attributes:
        address: as `protos.process.addresses.target` returns it.
        enrolled: the device's identity; None for no client certificate.
        roots_pem: roots that the server's certificate must lead to; empty for the identity's.
        server_name: the name in the server's certificate; empty for the host in `address`.
        proxy: name of the HTTP proxy on the way there; empty without one.
        wall: this device's clock, seconds since 1970, for messages.
        via: URL of the proxy, with its password.
        keepalive: keeps idle connections alive; None: nothing does.
    """

    address: str
    enrolled: Enrolled | None = None
    roots_pem: bytes = b""
    server_name: str = ""
    proxy: str = ""
    wall: Callable[[], float] = time.time
    via: str = field(default="", repr=False)
    keepalive: Keepalive | None = field(default=None, repr=False, compare=False)

    def __call__(self) -> grpc.aio.Channel:
        """Make a channel; it connects when it is used.

        Raises:
            CertificateError: the device's identity cannot be used.
        """
        options: list[tuple[str, int | str]] = [*_options(self)]
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        key = chain = None
        roots = self.roots_pem
        if self.enrolled is not None:
            identity = self.enrolled.now
            key, chain = identity.key_pem.encode(), identity.chain_pem.encode()
            roots = roots or identity.roots_pem.encode()
        credentials = grpc.ssl_channel_credentials(roots, key, chain)
        return grpc.aio.secure_channel(self.address, credentials, options=options)

    @property
    def name(self) -> str:
        """The name that the server's certificate has to have."""
        return self.server_name or addresses.first(self.address).host

    @property
    def credential(self) -> str:
        """Serial number of the next channel's certificate; empty without one."""
        return self.enrolled.now.serial if self.enrolled is not None else ""

    def explained(self, error: BridgeError) -> BridgeError:
        """Add the probable cause to the error of a failed call."""
        if isinstance(error, UnauthenticatedError) and self.enrolled is not None:
            mine = self.enrolled.now
            if self.enrolled.clock.now() >= mine.not_after_s:
                return UnauthenticatedError(
                    f"this device's certificate expired on {_date(mine.not_after_s)}: the agent "
                    "asks for a new one; if the service does not renew it any more, have a new "
                    "code made and enrol again (edge-agent enrol --force)"
                )
            return UnauthenticatedError(
                f"the service does not accept the certificate of {mine.tenant}/{mine.device} "
                f"(serial {mine.serial}): it was revoked, the device was disabled or removed, or "
                f"{self.address} is not the port for devices (50051 unless the operator chose "
                "another). Ask the operator, and with a new code: edge-agent enrol --force "
                f"({error.message})"
            )
        if not isinstance(error, OfflineError):
            return error
        text, now = error.message, _date(self.wall())
        if _page(error):
            return _portal(self.address, self.proxy, error)
        if "not yet valid" in text:
            return ClockError(
                f"this device's clock says {now}, and the server's certificate begins later: "
                "waiting for the time (set the clock, or run a time service)"
            )
        if "certificate has expired" in text:
            return CertificateError(
                f"by this device's clock ({now}) the server's certificate has expired: set the "
                "clock if it is wrong; else the server needs a new certificate"
            )
        if "Hostname Verification" in text:
            return CertificateError(
                f"the server's certificate is not for the name {self.name}: reach it by a name in "
                "its certificate, or give that name with --server-name; or a captive portal or "
                "proxy on the way shows its own certificate"
            )
        if "WRONG_VERSION_NUMBER" in text:
            return CertificateError(
                f"{self.address} does not speak TLS: check the address and port; if the service "
                "is in plain text on purpose, give --insecure"
            )
        if "certificate" in text.lower() and "handshake failed" in text:
            return CertificateError(
                f"the server's certificate is not from {self._authority()} ({_cause(text)}); "
                f"nothing was sent: check the address{self._else()}"
            )
        if _closed(error):
            return self._refused(error)
        return by_proxy(error, self.proxy)

    def _refused(self, error: OfflineError) -> BridgeError:
        """The error of a connection that the server closed, perhaps because of the certificate."""
        if self.enrolled is None:
            return OfflineError(
                f"{error.message}; this device shows no certificate: if the server wants one, "
                "enrol it (edge-agent enrol)"
            )
        identity = self.enrolled.now
        if self.enrolled.clock.now() >= identity.not_after_s:
            return CertificateError(
                f"this device's certificate expired on {_date(identity.not_after_s)}, and the "
                "server no longer renews it: have a new code made and enrol again (edge-agent "
                "enrol --force)"
            )
        return by_proxy(
            OfflineError(
                f"{error.message}; if the server is up, it refuses the certificate of "
                f"{identity.tenant}/{identity.device}, from {identity.service}: is this the "
                "service where the device enrolled?"
            ),
            self.proxy,
        )

    def _else(self) -> str:
        if self.enrolled is None or self.roots_pem:
            return ""
        return (
            "; if the service has a new root that this device has not heard of, enrol again; if it "
            "has certificates of another authority, give --ca"
        )

    def _authority(self) -> str:
        if self.roots_pem:
            return "an authority named by --ca"
        return (
            "the authority of the service where this device enrolled, or a later one that it signed"
        )


def dial_insecure(
    address: str, environ: Mapping[str, str] = os.environ, proxy: str = ""
) -> InsecureDial:
    """A factory of plain-text channels; only connections that leave this machine use a proxy.

    Args:
        address: of the server.
        environ: names the proxy on the way, unless `proxy` does, and the exceptions.
        proxy: URL of a proxy (`proxies.checked`).

    Raises:
        ConfigError: `address` is not an address.
    """
    target = addresses.target(address)
    return InsecureDial(target, *_proxy(target, environ, proxy))


def dial_secure(
    address: str,
    enrolled: Enrolled | None,
    roots_pem: bytes = b"",
    server_name: str = "",
    environ: Mapping[str, str] = os.environ,
    proxy: str = "",
) -> SecureDial:
    """Make a `SecureDial`; `environ` and `proxy` as for `dial_insecure`.

    Raises:
        ConfigError: `address` is not an address.
    """
    target = addresses.target(address)
    name, via = _proxy(target, environ, proxy)
    return SecureDial(target, enrolled, roots_pem, server_name, name, via=via)


def _proxy(target: str, environ: Mapping[str, str], proxy: str) -> tuple[str, str]:
    """Name and URL of the proxy on the way; both empty without one."""
    if proxy:
        environ = {**environ, "grpc_proxy": proxy}
    url, _ = proxy_url(target, environ)
    name = proxy_of(target, environ)
    if proxy:
        name = name.replace("(grpc_proxy)", "(--proxy)")
    return name, "" if url is None else url.geturl()


def explained(dial: Dial, error: BridgeError) -> BridgeError:
    """Add the probable cause to the error of a call that failed on a channel of `dial`."""
    return dial.explained(error) if isinstance(dial, Explaining) else error


def keepalive_of(dial: Dial) -> Keepalive | None:
    """What keeps its connections alive; None if nothing does."""
    return dial.keepalive if isinstance(dial, InsecureDial | SecureDial) else None


def by_proxy(error: OfflineError, proxy: str) -> OfflineError:
    """Add the HTTP proxy's name to the error."""
    if not proxy or proxy in error.message:
        return error
    if "response code 407" in error.message:
        return OfflineError(
            f"{error.message}; the HTTP proxy {proxy} wants a user and password: "
            "http://user:password@host:port, in the configuration file or the environment"
        )
    return OfflineError(
        f"{error.message}; the connection goes through the HTTP proxy {proxy}: to bypass it, "
        "name the server in no_proxy"
    )


def _options(dial: InsecureDial | SecureDial) -> list[tuple[str, int | str]]:
    more: list[tuple[str, int | str]] = []
    if addresses.loopback(dial.address):
        more = [("grpc.enable_http_proxy", 0)]
    elif dial.via:
        more = [("grpc.http_proxy", dial.via)]
    if dial.keepalive is not None:
        more += dial.keepalive.options(dial.address)
    return [*CHANNEL_OPTIONS, *more]


def _page(error: OfflineError) -> bool:
    """Whether a web server answered: HTTP/1, or TLS without HTTP/2."""
    return "http1.x server" in error.message or "missing selected ALPN" in error.message


def _portal(address: str, proxy: str, error: OfflineError) -> CaptivePortalError:
    way = f", reached through the HTTP proxy {proxy}," if proxy else ""
    return CaptivePortalError(
        f"captive portal or proxy: a web server answers in the place of {address}{way}: if this "
        "network has a page to log in at, do that; else check the address and port, or have the "
        f"network's operator let it through ({error.message})"
    )


def _closed(error: OfflineError) -> bool:
    """Whether the server accepted the connection and closed it before any HTTP/2."""
    return "failed to connect" in error.message and "Socket closed" in error.message


def _cause(text: str) -> str:
    """OpenSSL's message at the end of gRPC's."""
    return text.removesuffix(": OK").rpartition(":")[2].strip()


def _date(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))
