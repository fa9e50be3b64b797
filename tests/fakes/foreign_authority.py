"""An authority as others are: its certificates begin when they are made."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


class ForeignAuthority:
    """A root, and servers' certificates with a begin and an end."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._root = self._make("a foreign root", self._key, 0, 4e9, True)
        self.root_pem = self._root.public_bytes(Encoding.PEM)

    def server(self, begin_s: float, end_s: float, name: str = "localhost") -> bytes:
        """Key and chain (PEM) of a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._make(name, key, begin_s, end_s, False)
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return plain + made.public_bytes(Encoding.PEM) + self.root_pem

    def _make(
        self, name: str, key: Key, begin_s: float, end_s: float, root: bool
    ) -> x509.Certificate:
        begin, end = (
            datetime.datetime.fromtimestamp(int(s), datetime.timezone.utc) for s in (begin_s, end_s)
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if root else self._root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(root, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name.split()[0])]), False)
            .sign(self._key, hashes.SHA256())
        )
