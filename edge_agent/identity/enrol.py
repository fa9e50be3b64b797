"""Gets certificates from a service: first with a one-time code, later with the present certificate.

Calls, in order: a new key and its certificate request → `Enrol` or `Renew` → check of the reply →
`Identity`. The private key is made here and stored only in the identity's file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc

from edge_agent.identity.first_contact import root_of
from edge_agent.identity.identity import Identity
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.identity.roots import accepted, certificates, pem_of
from edge_agent.identity.trust import foreign_roots
from edge_agent.uplink.call_errors import error_of
from edge_agent.uplink.dial import dial_secure
from protos.errors import BridgeError, CertificateError, ConflictError
from protos.identity import OneTimeCode, root_fingerprint
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.process import addresses
from protos.process.settings import installed_version

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AGENT_VERSION = installed_version()[:64]


async def enrol(
    server: str,
    code: OneTimeCode,
    file: IdentityFile,
    ca: str = "",
    server_name: str = "",
    force: bool = False,
    timeout_s: float = 10.0,
    environ: Mapping[str, str] = os.environ,
) -> Identity:
    """Enrol this device and store its identity.

    Args:
        server: address of the service's port for enrolment.
        code: the one-time code.
        file: the file to store the identity in.
        ca: roots of another authority, if that issued the server's certificate (see
        `foreign_roots`). Empty for the service's own authority; the code names its root.
        server_name: the name in the server's certificate; empty for the host in `server`.
        force: replace an existing identity; it stays until the new one is stored.
        timeout_s: longest wait for each call.
        environ: names the HTTP proxy on the way, if there is one.

    Raises:
        ConflictError: the device is enrolled, and `force` was not given.
        CertificateError: the server is not the one that the code names; nothing was sent.
        EnrolmentError: the code is wrong, used or expired.
        BridgeError: the server cannot be reached, or refuses; the identity cannot be stored.
    """
    if not force:
        _not_enrolled(file)
    target = addresses.target(server)
    with file.room():
        roots = (
            foreign_roots(ca, environ)
            if ca
            else root_of(target, code.root, timeout_s, environ).encode()
        )
        dial = dial_secure(server, None, roots, server_name, environ)
        key = fresh_key()
        request = bridge_pb2.EnrolRequest(
            code=str(code), request_der=request_of(key), agent_version=AGENT_VERSION
        )
        async with dial() as channel:
            try:
                reply = await bridge_pb2_grpc.BridgeStub(channel).Enrol(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                raise dial.explained(error_of(error)) from error
        named = [one for one in _read(reply.roots_pem) if _fingerprint(one) == code.root]
        identity, _ = _identity(reply, key, target, pem_of(named))
    file.save(identity)
    return identity


async def renew(
    channel: grpc.aio.Channel, present: Identity, timeout_s: float = 10.0
) -> tuple[Identity, list[str]]:
    """Get this device's next identity, with a new key; it is not stored yet.

    Args:
        channel: a connection with the present identity.
        present: the present identity.
        timeout_s: longest wait.

    Returns:
        The identity, and the names of offered roots that this device refuses.

    Raises:
        CertificateError: the reply is not for this device.
        BridgeError: the server's refusal, typed; OfflineError if nobody answers.
    """
    key = fresh_key()
    request = bridge_pb2.RenewRequest(request_der=request_of(key), agent_version=AGENT_VERSION)
    try:
        reply = await bridge_pb2_grpc.BridgeStub(channel).Renew(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error
    if (reply.tenant, reply.device) != (present.tenant, present.device):
        raise CertificateError(
            f"the service sent a certificate for {reply.tenant}/{reply.device}, this device is "
            f"{present.tenant}/{present.device}: the old one is kept"
        )
    return _identity(reply, key, present.service, present.roots_pem, present.server)


def _not_enrolled(file: IdentityFile) -> None:
    try:
        found = file.load()
    except BridgeError as error:
        raise ConflictError(f"{error.message}; or enrol anew with --force") from error
    if found is not None:
        raise ConflictError(
            f"this device is enrolled already, as {found.tenant}/{found.device} at "
            f"{found.service} ({file.path}): nothing was sent; --force replaces that identity"
        )


def fresh_key() -> ec.EllipticCurvePrivateKey:
    """A device's new key (P-256)."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def request_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request (DER) with the key alone; the service adds the name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _identity(
    reply: bridge_pb2.Certificates,
    key: ec.EllipticCurvePrivateKey,
    service: str,
    trusted_pem: str,
    server: str = "",
) -> tuple[Identity, list[str]]:
    """Check the service's reply, and make an identity of it and the key.

    Args:
        reply: the reply.
        key: the key that was sent to be certified.
        service: the address where the device enrolled.
        trusted_pem: the roots that the device trusts.
        server: the address for frames if the reply names no port.
    """
    from cryptography.hazmat.primitives import serialization

    if not trusted_pem:
        raise CertificateError("the service's roots are not the one that the code names")
    roots_pem, refused = accepted(trusted_pem, reply.roots_pem)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    made = Identity(
        tenant=reply.tenant,
        device=reply.device,
        service=service,
        key_pem=key_pem.decode(),
        chain_pem=pem_of(_read(reply.chain_pem)),
        roots_pem=roots_pem,
        issued_s=reply.now_s,
        not_after_s=reply.not_after_s,
        server=_for_frames(service, reply.device_port) or server,
    )
    try:
        made.check()
    except ValueError as error:
        raise CertificateError(f"the service sent what this device cannot use: {error}") from error
    return made, refused


def _for_frames(service: str, port: int) -> str:
    """The address for frames, on the host that enrolled the device; empty if it is not known."""
    if not 0 < port < 65536 or service.startswith("unix"):
        return ""
    return str(addresses.Address(addresses.first(service).host, port))


def _read(pem: bytes) -> list[x509.Certificate]:
    try:
        return certificates(pem)
    except ValueError as error:
        raise CertificateError(f"the service sent no certificates: {error}") from error


def _fingerprint(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return root_fingerprint(certificate.public_bytes(Encoding.DER))
