"""First contact with a service: gets the root that the one-time code names from the TLS chain.

This handshake verifies nothing, and nothing is sent over it. Afterwards gRPC verifies the server
against that root alone, so a stranger with the root's certificate but not its key is refused.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import unquote

from edge_agent.identity.roots import pem_of
from protos.errors import CertificateError, OfflineError
from protos.identity import root_fingerprint
from protos.process import addresses
from protos.process.proxies import proxy_url

_CERTIFICATES_READ = 16


def root_of(target: str, fingerprint: bytes, timeout_s: float, environ: Mapping[str, str]) -> str:
    """Find the root certificate (PEM) that a code names in a service's TLS chain.

    Args:
        target: the service, as `addresses.target` returns it.
        fingerprint: the root's, from the code (`protos.identity.root_fingerprint`).
        timeout_s: longest wait for each step.
        environ: names the HTTP proxy on the way, if there is one.

    Raises:
        OfflineError: nobody answers, or not with TLS 1.3.
        CertificateError: the root is not in the service's chain.
    """
    try:
        shown = _chain(target, timeout_s, environ)
    except ssl.SSLError as error:
        raise OfflineError(
            f"{target} does not speak TLS 1.3 ({error.reason or error}): give the address of the "
            "port where devices enrol; a service in plain text (--insecure) enrols nobody"
        ) from error
    except OSError as error:
        raise OfflineError(f"{target} cannot be reached: {error.strerror or error}") from error
    from cryptography import x509

    for der in shown:
        if root_fingerprint(der) == fingerprint:
            return pem_of([x509.load_der_x509_certificate(der)])
    raise CertificateError(
        f"none of the {len(shown)} certificates that {target} shows is the root that the code "
        "names; nothing was sent. Is this the port where devices enrol (50052 unless the operator "
        "chose another)? Then it is not the service that the code is for, or somebody stands "
        "between. If the service has certificates of another authority, give its roots with --ca"
    )


def _chain(target: str, timeout_s: float, environ: Mapping[str, str]) -> list[bytes]:
    """The certificates that a server shows (DER), unverified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    name = None if target.startswith("unix") else addresses.first(target).host
    with (
        _connect(target, timeout_s, environ) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        if hasattr(secured, "get_unverified_chain"):  # Python 3.13 and later
            return list(secured.get_unverified_chain())[:_CERTIFICATES_READ]
        # The same method, before Python 3.13 made it public.
        shown = secured._sslobj.get_unverified_chain() or []  # type: ignore[attr-defined]
        return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in shown[:_CERTIFICATES_READ]]


def _connect(target: str, timeout_s: float, environ: Mapping[str, str]) -> socket.socket:
    kind, _, rest = target.partition(":")
    if kind in ("unix", "unix-abstract"):
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(timeout_s)
        made.connect("\0" + rest if kind == "unix-abstract" else "/" + rest.lstrip("/"))
        return made
    server = addresses.first(target)
    proxy, _ = proxy_url(target, environ)
    if proxy is None:
        return socket.create_connection((server.host, server.port), timeout_s)
    tunnel = http.client.HTTPConnection(str(proxy.hostname), proxy.port or 80, timeout=timeout_s)
    headers = {}
    if proxy.username is not None:
        said = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(said.encode()).decode()
    tunnel.set_tunnel(server.host, server.port, headers)
    tunnel.connect()
    return tunnel.sock
