"""Captive portals: something on the way that answers in the server's place.

gRPC's error shows most of them. Two look like a wrong setting: a page in plain text, and a
certificate of another authority. `cause` looks once more, without sending anything of ours.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Sequence

from edge_agent.uplink.dial import Dial, SecureDial, explained
from protos.errors import BridgeError, CaptivePortalError, CertificateError
from protos.process import addresses

_LOOK_S = 3.0
_PAGE = b"HTTP/"


def cause(dial: Dial, error: BridgeError) -> BridgeError:
    """Add the probable cause to the error of a failed connection; takes up to some seconds.

    Args:
        dial: made the channel.
        error: of the call.
    """
    typed = explained(dial, error)
    if not isinstance(typed, CertificateError) or not isinstance(dial, SecureDial) or dial.proxy:
        return typed
    if dial.address.startswith("unix"):
        return typed
    server = addresses.first(dial.address)
    with contextlib.suppress(OSError, ValueError):
        if "WRONG_VERSION_NUMBER" in error.message:
            return _portal(dial.address, "a web page in plain text") if _page(server) else typed
        if "handshake failed" in error.message and "Hostname" not in error.message:
            names = _names(server)
            if names and not any(_covers(name, dial.name) for name in names):
                return _portal(dial.address, f"the certificate of {', '.join(names)[:200]}")
    return typed


def _portal(address: str, shown: str) -> CaptivePortalError:
    """The error for a server in whose place something else answers."""
    return CaptivePortalError(
        f"captive portal or proxy: {address} shows {shown}. If this network has a page to log in "
        "at, do that; else have its operator let the address through. Nothing was sent"
    )


def _page(server: addresses.Address) -> bool:
    """Whether a web page answers in plain text."""
    with socket.create_connection((server.host, server.port), _LOOK_S) as plain:
        plain.settimeout(_LOOK_S)
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return plain.recv(len(_PAGE)) == _PAGE


def _names(server: addresses.Address) -> Sequence[str]:
    """The names in the certificate that is shown, unverified."""
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((server.host, server.port), _LOOK_S) as plain,
        context.wrap_socket(plain, server_hostname=server.host) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    if shown is None:
        return ()
    found = x509.load_der_x509_certificate(shown)
    with contextlib.suppress(x509.ExtensionNotFound):
        named = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(one.value) for one in named if isinstance(one, (x509.DNSName, x509.IPAddress))]
    return ()


def _covers(name: str, wanted: str) -> bool:
    name, wanted = name.lower(), wanted.lower().rstrip(".")
    if name.startswith("*."):
        return wanted.partition(".")[2] == name[2:]
    return name == wanted
