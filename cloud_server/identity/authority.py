"""The service's own authority: an offline root, and an intermediate that signs certificates.

The folder holds `roots.pem` (the roots that devices trust), `intermediate.pem` (key and certificate
in one file, so that readers never see half a change) and `root-key.pem` until it is moved offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509

from cloud_server.identity import certificates as made
from cloud_server.identity.certificates import Signer
from protos.errors import CertificateError, ConflictError
from protos.process.files import write_file, writing

ROOTS, INTERMEDIATE, ROOT_KEY = "roots.pem", "intermediate.pem", "root-key.pem"
SUCCESSOR_KEY = "successor-key.pem"
DAY_S = 86400.0
ROOT_LIFE_S = 20 * 365 * DAY_S
INTERMEDIATE_LIFE_S = 2 * 365 * DAY_S
SERVER_LIFE_S = 90 * DAY_S


@dataclass(frozen=True)
class Issued:
    """A device's new certificate.

    Attributes:
        serial: its number in hex, as the database keeps it.
        fingerprint: SHA-256 of its DER, hex.
        chain_pem: the certificate and the intermediate.
        not_after_s: when it expires, seconds since 1970.
    """

    serial: str
    fingerprint: str
    chain_pem: bytes
    not_after_s: float


@dataclass(frozen=True)
class Authority:
    """The authority in a folder, as last read.

    Attributes:
        folder: where it lies.
        roots: self-signed certificates: the present root, then its successor if there is one.
        cross: the successor's key, signed by the present root; None without a successor.
        intermediate: signs certificates of devices and of the server.
    """

    folder: Path
    roots: tuple[x509.Certificate, ...]
    cross: x509.Certificate | None
    intermediate: Signer

    @classmethod
    def create(cls, folder: Path, now_s: float) -> Authority:
        """Make a root and an intermediate in a folder that exists.

        Raises:
            ConflictError: there is an authority already.
            ConfigError, DiskFullError: the folder cannot be written.
        """
        if any((folder / name).exists() for name in (ROOTS, INTERMEDIATE)):
            raise ConflictError(f"{folder} holds an authority already")
        key = made.fresh_key()
        root = Signer(made.make_root(key, now_s + ROOT_LIFE_S), key)
        intermediate = _fresh_intermediate(root, now_s)
        with writing(f"the authority in {folder}"):
            write_file(folder / ROOT_KEY, made.key_pem(key), 0o600)
            write_file(folder / INTERMEDIATE, _signer_pem(intermediate), 0o600)
            write_file(folder / ROOTS, made.pem(root.certificate), 0o644)
        return cls(folder, (root.certificate,), None, intermediate)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Read an authority and check it.

        Raises:
            CertificateError: a file is missing or damaged, or they do not belong together.
        """
        roots, cross = _read_roots(folder / ROOTS)
        path = folder / INTERMEDIATE
        raw = made.read_file(path)
        certificate = made.read_certificates(raw, path)[0]
        if not any(made.signed_by(certificate, root) for root in roots):
            raise CertificateError(
                f"{path}: is not signed by a root of {folder / ROOTS}: make a new one with "
                "'cloud-server authority renew-intermediate'"
            )
        return cls(folder, roots, cross, made.read_signer(certificate, raw, path))

    @property
    def root_der(self) -> bytes:
        """The present root: one-time codes carry its fingerprint."""
        return made.der(self.roots[0])

    @property
    def roots_pem(self) -> bytes:
        """What devices trust: the present root, its successor, the cross-certificate."""
        return made.pem(*self.roots, *self._crosses)

    @property
    def trusted_pem(self) -> bytes:
        """The roots alone: a device's certificate must lead to one of them."""
        return made.pem(*self.roots)

    @property
    def _crosses(self) -> tuple[x509.Certificate, ...]:
        return () if self.cross is None else (self.cross,)

    @property
    def by_successor(self) -> bool:
        """Whether the successor signed the intermediate."""
        return not made.signed_by(self.intermediate.certificate, self.roots[0])

    def sign_device(
        self,
        request_der: bytes,
        tenant: str,
        device: str,
        now_s: float,
        life_s: float,
        late_s: float = 0.0,
    ) -> Issued:
        """Issue a certificate for a device.

        Args:
            request_der: its certificate request (PKCS #10, DER).
            tenant: its tenant.
            device: its name.
            now_s: seconds since 1970.
            life_s: lifetime in seconds; it never exceeds the intermediate's.
            late_s: seconds after that in which it may still be renewed. TLS accepts it so long,
                the service's own check does not.

        Raises:
            CertificateError: the request is refused, or the intermediate has expired.
        """
        key = made.request_key(request_der)
        self._check_end(now_s)
        end_s = now_s + life_s
        one = made.make_device(key, tenant, device, self.intermediate, end_s + late_s)
        chain = made.pem(one, self.intermediate.certificate)
        end_s = min(end_s, made.end_of(one))
        return Issued(made.serial_of(one), made.fingerprint_of(one), chain, end_s)

    def sign_server(self, names: Sequence[str], now_s: float) -> bytes:
        """Make a key and a certificate for the server.

        Args:
            names: host names and addresses that clients may call it by.
            now_s: seconds since 1970.

        Returns:
            PEM: the key, the certificate, the intermediate, the cross-certificate (for devices that
            trust only the present root) and the present root (for devices that have only a code).

        Raises:
            CertificateError: the intermediate has expired.
            ConfigError: a name is neither a host name nor an address.
        """
        self._check_end(now_s)
        key = made.fresh_key()
        one = made.make_server(key, names, self.intermediate, now_s + SERVER_LIFE_S)
        crosses = self._crosses if self.by_successor else ()
        chain = made.pem(one, self.intermediate.certificate, *crosses, self.roots[0])
        return made.key_pem(key) + chain

    def renew_intermediate(self, root_key: Path, now_s: float) -> Authority:
        """Replace the intermediate; certificates that the old one signed stay valid.

        Args:
            root_key: the key of the present root, or of its successor.
            now_s: seconds since 1970.

        Raises:
            CertificateError: the key cannot be read, or belongs to no root of this authority.
            ConfigError, DiskFullError: the folder cannot be written.
        """
        root = self._root_of(root_key, self.roots)
        after = replace(self, intermediate=_fresh_intermediate(root, now_s))
        with writing(f"the authority in {self.folder}"):
            write_file(self.folder / INTERMEDIATE, _signer_pem(after.intermediate), 0o600)
        return after

    def new_root(self, root_key: Path, now_s: float) -> Authority:
        """Make the root's successor, signed by the present root; its key is written to the folder.

        Args:
            root_key: the key of the present root.
            now_s: seconds since 1970.

        Raises:
            ConflictError: there is a successor already.
            CertificateError: the key cannot be read or is not the present root's.
            ConfigError, DiskFullError: the folder cannot be written.
        """
        if self.cross is not None:
            raise ConflictError(
                "this root has a successor already: finish with 'cloud-server authority "
                "renew-intermediate' and 'retire-root'"
            )
        present = self._root_of(root_key, self.roots[:1])
        key = made.fresh_key()
        successor = made.make_root(key, now_s + ROOT_LIFE_S)
        cross = made.make_cross(successor, present)
        after = replace(self, roots=(self.roots[0], successor), cross=cross)
        with writing(f"the authority in {self.folder}"):
            write_file(self.folder / SUCCESSOR_KEY, made.key_pem(key), 0o600)
            write_file(self.folder / ROOTS, after.roots_pem, 0o644)
        return after

    def retire_root(self) -> Authority:
        """Trust only the successor from now on.

        Raises:
            ConflictError: there is no successor, or the present root still signs.
            ConfigError, DiskFullError: the folder cannot be written.
        """
        if self.cross is None:
            raise ConflictError("this root has no successor: 'cloud-server authority new-root'")
        if not self.by_successor:
            raise ConflictError(
                "the present root signed the intermediate: give it one of the successor first, "
                "with 'cloud-server authority renew-intermediate'"
            )
        after = replace(self, roots=self.roots[1:], cross=None)
        with writing(f"the authority in {self.folder}"):
            write_file(self.folder / ROOTS, after.roots_pem, 0o644)
        return after

    def _root_of(self, path: Path, roots: Sequence[x509.Certificate]) -> Signer:
        raw = made.read_file(path)
        public = made.read_key(raw, path).public_key()
        for root in roots:
            if made.same_key(public, root.public_key()):
                return made.read_signer(root, raw, path)
        raise CertificateError(f"{path}: is not the key of a root of {self.folder / ROOTS}")

    def _check_end(self, now_s: float) -> None:
        if made.end_of(self.intermediate.certificate) <= now_s:
            raise CertificateError(
                f"{self.folder / INTERMEDIATE} has expired: replace it with 'cloud-server "
                "authority renew-intermediate' and the root's key"
            )


def _fresh_intermediate(root: Signer, now_s: float) -> Signer:
    key = made.fresh_key()
    return Signer(made.make_intermediate(key, root, now_s + INTERMEDIATE_LIFE_S), key)


def _signer_pem(signer: Signer) -> bytes:
    return made.key_pem(signer.key) + made.pem(signer.certificate)


def _read_roots(path: Path) -> tuple[tuple[x509.Certificate, ...], x509.Certificate | None]:
    every = made.read_certificates(made.read_file(path), path)
    roots = tuple(one for one in every if made.self_signed(one))
    crosses = [one for one in every if not made.self_signed(one)]
    if not crosses and len(roots) == 1:
        return roots, None
    if len(roots) == 2 and len(crosses) == 1:
        cross = crosses[0]
        present, successor = roots
        same = made.same_key(cross.public_key(), successor.public_key())
        if made.signed_by(cross, present) and same and cross.subject == successor.subject:
            return roots, cross
    raise CertificateError(
        f"{path}: expected one root, or a root, its successor and the successor signed by the root"
    )
