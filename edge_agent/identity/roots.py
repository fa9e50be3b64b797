"""The roots that a device trusts: first the code's, then only roots that a trusted root signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from protos.errors import CertificateError
from protos.identity import device_of

if TYPE_CHECKING:
    from cryptography import x509


def certificates(pem: bytes) -> list[x509.Certificate]:
    """Parse the certificates in a PEM text.

    Raises:
        ValueError: it holds none, or one is damaged.
    """
    from cryptography import x509

    return x509.load_pem_x509_certificates(pem)


def pem_of(several: Sequence[x509.Certificate]) -> str:
    """Certificates in PEM, one after another."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return "".join(one.public_bytes(Encoding.PEM).decode() for one in several)


def signed(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    """Whether another certificate, which may sign certificates, has signed this one."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        basic = by.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return basic.ca


def device_in(certificate: x509.Certificate) -> tuple[str, str] | None:
    """Tenant and device in a certificate; None if it is not a device's."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return device_of(uris[0]) if len(uris) == 1 else None


def issued_by(chain: Sequence[x509.Certificate], root: x509.Certificate) -> bool:
    """Whether a certificate in a chain, which begins with the device's, is signed by a root."""
    return any(
        all(map(signed, chain[:count], [*chain[1:count], root]))
        for count in range(1, len(chain) + 1)
    )


def accepted(trusted_pem: str, offered_pem: bytes) -> tuple[str, list[str]]:
    """Choose the roots to trust from now on.

    An offered root is accepted if it is trusted already, or if a cross-certificate is offered too:
    a certificate with its name and key, signed by a trusted root.

    Args:
        trusted_pem: roots trusted so far.
        offered_pem: `Certificates.roots_pem`: roots and cross-certificates.

    Returns:
        The accepted roots (PEM), and the names of those that were refused.

    Raises:
        CertificateError: none is accepted, or the offer is no PEM.
    """
    try:
        offered = certificates(offered_pem)
        trusted = certificates(trusted_pem.encode())
    except ValueError as error:
        raise CertificateError(f"the service sent roots that cannot be read: {error}") from error
    roots = [one for one in offered if signed(one, one)]
    vouching = [one for one in offered if one not in roots]
    taken: list[x509.Certificate] = []
    for root in roots:
        vouched = any(
            one.subject == root.subject
            and one.public_key() == root.public_key()
            and any(signed(one, by) for by in [*trusted, *taken])
            for one in vouching
        )
        if root in trusted or vouched:
            taken.append(root)
    if not taken:
        raise CertificateError(
            "the service offers other roots than this device trusts, and none is signed by one "
            "that it does: the device keeps what it has"
        )
    return pem_of(taken), [one.subject.rfc4514_string() for one in roots if one not in taken]
