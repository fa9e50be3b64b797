"""Devices with certificates, and a company's authority, for tests of TLS."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_server.identity import certificates
from cloud_server.identity.authority import DAY_S, Authority
from cloud_server.identity.tls import AUTHORITY
from edge_agent.identity.enrol import request_of


@dataclass(frozen=True)
class Device:
    """What a device keeps, all in PEM."""

    key_pem: bytes
    chain_pem: bytes
    roots_pem: bytes

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.roots_pem, self.key_pem, self.chain_pem)

    def only_roots(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.roots_pem)

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.roots_pem.decode())
        context.set_alpn_protocols(["h2"])
        return context


def enrolled(
    directory: Path,
    tenant: str = "acme",
    device: str = "gate-3",
    life_s: float = DAY_S,
    begins_s: float | None = None,
) -> Device:
    """A device whose certificate the authority signed; no database knows of it."""
    authority = Authority.open(directory / AUTHORITY)
    key = certificates.fresh_key()
    if begins_s is None:
        chain = authority.sign_device(request_of(key), tenant, device, time.time(), life_s)
        return Device(certificates.key_pem(key), chain.chain_pem, authority.roots_pem)
    signer = authority.intermediate
    end_s = begins_s + DAY_S
    usual = certificates.make_device(key.public_key(), tenant, device, signer, end_s)
    late = x509.CertificateBuilder(
        usual.issuer,
        usual.subject,
        key.public_key(),
        usual.serial_number,
        datetime.datetime.fromtimestamp(begins_s, datetime.timezone.utc),
        usual.not_valid_after_utc,
        list(usual.extensions),
    ).sign(signer.key, hashes.SHA256())
    chain_pem = certificates.pem(late, signer.certificate)
    return Device(certificates.key_pem(key), chain_pem, authority.roots_pem)


def foreign_server(
    certificate: Path, key: Path, private: CertificateIssuerPrivateKeyTypes | None = None
) -> bytes:
    """Write a server's certificate of a company's new authority; returns that authority's root."""
    root_key, private = certificates.fresh_key(), private or certificates.fresh_key()
    now = datetime.datetime.now(datetime.timezone.utc)
    company = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Company CA")])
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bridge.example")])

    def made(subject: x509.Name, public: object, authority: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(company)
            .public_key(public)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )

    root = made(company, root_key.public_key(), True).sign(root_key, hashes.SHA256())
    address = ipaddress.ip_address("127.0.0.1")
    names = x509.SubjectAlternativeName([x509.IPAddress(address), x509.DNSName("bridge.example")])
    leaf = (
        made(named, private.public_key(), False)
        .add_extension(names, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pair = {certificate: certificates.pem(leaf)}
    pair[key] = pair.get(key, b"") + certificates.key_pem(private)
    for path, content in pair.items():
        path.write_bytes(content)
    return certificates.pem(root)
