"""Certificates of the service's own authority: makes each kind, and reads PEM files.

Every certificate begins in 1970, so that a device whose clock was never set accepts it.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes,
    PrivateKeyTypes,
    PublicKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protos.errors import CertificateError
from protos.identity import device_uri
from protos.process.addresses import host

LONGEST_REQUEST = 4096
"""Bytes of a certificate request (DER)."""
_BEGIN = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = range(2048, 4097)
_DIGESTS = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_LONGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Signer:
    """A certificate of an authority and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def fresh_key() -> ec.EllipticCurvePrivateKey:
    """A new private key (P-256)."""
    return ec.generate_private_key(ec.SECP256R1())


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number as the database keeps it: 32 or more hex digits."""
    return f"{certificate.serial_number:032x}"


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate (DER), in hex."""
    return hashlib.sha256(der(certificate)).hexdigest()


def end_of(certificate: x509.Certificate) -> float:
    """When it expires, seconds since 1970."""
    return certificate.not_valid_after_utc.timestamp()


def der(certificate: x509.Certificate) -> bytes:
    """The certificate in DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates in PEM, one after another."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def key_pem(key: PrivateKeyTypes) -> bytes:
    """A private key in PEM (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def self_signed(certificate: x509.Certificate) -> bool:
    """Whether it is signed by its own key."""
    return signed_by(certificate, certificate)


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether it names the issuer and the issuer's key signed it."""
    with suppress(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        certificate.verify_directly_issued_by(issuer)
        return True
    return False


def same_key(a: PublicKeyTypes, b: PublicKeyTypes) -> bool:
    """Whether two public keys are the same."""
    return _plain_key(a) == _plain_key(b)


# ---------------------------------------------------------------------- making


def make_root(key: ec.EllipticCurvePrivateKey, end_s: float) -> x509.Certificate:
    """A root: signed by its own key.

    Args:
        key: its key.
        end_s: when it expires, seconds since 1970.
    """
    name = _authority_name("root", key)
    return _authority(name, key, end_s).sign(key, hashes.SHA256())


def make_cross(successor: x509.Certificate, present: Signer) -> x509.Certificate:
    """Cross-certificate: the successor's key, signed by the root that devices trust already."""
    end_s = min(end_of(successor), end_of(present.certificate))
    made = _builder(successor.subject, successor.public_key(), present.certificate, end_s)
    return _as_authority(made, None).sign(present.key, hashes.SHA256())


def make_intermediate(
    key: ec.EllipticCurvePrivateKey, root: Signer, end_s: float
) -> x509.Certificate:
    """The intermediate: it may sign certificates of devices and servers, but no further authority.

    Args:
        key: its key.
        root: who signs it.
        end_s: when it expires, seconds since 1970; never after the root.
    """
    end_s = min(end_s, end_of(root.certificate))
    name = _authority_name("intermediate", key)
    made = _builder(name, key.public_key(), root.certificate, end_s)
    return _as_authority(made, 0).sign(root.key, hashes.SHA256())


def make_server(
    key: ec.EllipticCurvePrivateKey, names: Sequence[str], signer: Signer, end_s: float
) -> x509.Certificate:
    """A server's certificate.

    Args:
        key: its key.
        names: host names and addresses that clients may call it by.
        signer: who signs it.
        end_s: when it expires, seconds since 1970; never after the signer.

    Raises:
        ConfigError: a name is neither a host name nor an address.
    """
    end_s = min(end_s, end_of(signer.certificate))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "neural-bridge server")])
    made = _builder(subject, key.public_key(), signer.certificate, end_s)
    general = [_general_name(name) for name in dict.fromkeys(names)]
    return _as_leaf(made, general, ExtendedKeyUsageOID.SERVER_AUTH).sign(
        signer.key, hashes.SHA256()
    )


def make_device(
    key: CertificatePublicKeyTypes, tenant: str, device: str, signer: Signer, end_s: float
) -> x509.Certificate:
    """A device's certificate.

    Args:
        key: the device's public key, from `request_key`.
        tenant: its tenant.
        device: its name.
        signer: who signs it.
        end_s: when it expires, seconds since 1970; never after the signer.
    """
    end_s = min(end_s, end_of(signer.certificate))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    made = _builder(subject, key, signer.certificate, end_s)
    uri = x509.UniformResourceIdentifier(device_uri(tenant, device))
    return _as_leaf(made, [uri], ExtendedKeyUsageOID.CLIENT_AUTH).sign(signer.key, hashes.SHA256())


def request_key(request_der: bytes) -> CertificatePublicKeyTypes:
    """Check a certificate request and return its public key; its other fields are ignored.

    Args:
        request_der: PKCS #10, DER.

    Raises:
        CertificateError: it is too long, it is no request, its signature is wrong, or its kind of
        key is not accepted.
    """
    if len(request_der) > LONGEST_REQUEST:
        raise CertificateError(
            f"the certificate request has {len(request_der)} bytes, at most {LONGEST_REQUEST} are "
            "taken"
        )
    try:
        request = x509.load_der_x509_csr(request_der)
        key = request.public_key()
        good = _strong(key) and isinstance(request.signature_hash_algorithm, _DIGESTS)
        proved = good and request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError("these bytes are no certificate request (PKCS #10, DER)") from error
    if not good:
        raise CertificateError(
            "a certificate is given for a P-256, P-384 or RSA key (2048 to 4096 bits) whose "
            "request is signed with SHA-256, SHA-384 or SHA-512"
        )
    if not proved:
        raise CertificateError("the certificate request is not signed with its own key")
    return key


def _strong(key: CertificatePublicKeyTypes) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, _CURVES)
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size in _RSA_BITS and key.public_numbers().e == 65537
    return False


def _authority_name(what: str, key: ec.EllipticCurvePrivateKey) -> x509.Name:
    tag = hashlib.sha256(_plain_key(key.public_key())).hexdigest()[:12]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"neural-bridge {what} {tag}")])


def _authority(
    name: x509.Name, key: ec.EllipticCurvePrivateKey, end_s: float
) -> x509.CertificateBuilder:
    return _as_authority(_builder(name, key.public_key(), None, end_s), None)


def _builder(
    subject: x509.Name,
    key: CertificatePublicKeyTypes,
    issuer: x509.Certificate | None,
    end_s: float,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(int.from_bytes(secrets.token_bytes(16), "big") or 1)
        .not_valid_before(_BEGIN)
        .not_valid_after(_BEGIN + datetime.timedelta(seconds=int(end_s)))
        .add_extension(identifier, critical=False)
    )
    if issuer is None:
        return made
    above = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return made.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), critical=False
    )


def _as_authority(
    made: x509.CertificateBuilder, path_length: int | None
) -> x509.CertificateBuilder:
    return made.add_extension(
        x509.BasicConstraints(True, path_length), critical=True
    ).add_extension(_usage(signs_certificates=True), critical=True)


def _as_leaf(
    made: x509.CertificateBuilder,
    names: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    return (
        made.add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    plain = host(name)
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(plain))
    return x509.DNSName(plain)


def _plain_key(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


# ---------------------------------------------------------------------- reading


def read_file(path: Path) -> bytes:
    """The bytes of a PEM file.

    Raises:
        CertificateError: it cannot be read, or is far too long.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(raw) > _LONGEST_FILE:
        raise CertificateError(f"{path}: is too long for a file of certificates")
    return raw


def read_certificates(raw: bytes, named: object) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, in its order.

    Args:
        raw: the file's bytes.
        named: the file, for the message.

    Raises:
        CertificateError: it holds none, or one is damaged.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(raw))
    except ValueError as error:
        raise CertificateError(f"{named}: holds no certificate that can be read") from error


def read_key(raw: bytes, named: object) -> PrivateKeyTypes:
    """The private key of a PEM file.

    Args:
        raw: the file's bytes.
        named: the file, for the message.

    Raises:
        CertificateError: it holds no key, or the key is encrypted or damaged.
    """
    try:
        return serialization.load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"{named}: holds no private key that can be read (PEM, not encrypted): {error}"
        ) from None


def read_signer(certificate: x509.Certificate, raw: bytes, named: object) -> Signer:
    """Pair an authority's certificate with the private key in a PEM file.

    Args:
        certificate: the authority's.
        raw: the file's bytes.
        named: the file, for the message.

    Raises:
        CertificateError: the file holds no key, or the key of another certificate.
    """
    key = read_key(raw, named)
    if not same_key(key.public_key(), certificate.public_key()):
        subject = certificate.subject.rfc4514_string()
        raise CertificateError(f"{named}: is not the private key of {subject}")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(
            f"{named}: wrong kind of key: use the one made by 'cloud-server init'"
        )
    return Signer(certificate, key)
