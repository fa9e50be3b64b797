"""The service's TLS certificate and key: read from files, checked, reloaded when a file changes.

Open connections keep the certificate they began with. TLS 1.3 only: HTTP sets it in OpenSSL; gRPC
has no such option, so `protos/process/start.py` leaves TLS 1.2 without a cipher and `Identities`
checks the version of every call.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509

from cloud_server.identity import certificates as made
from cloud_server.identity.authority import INTERMEDIATE, ROOTS, SERVER_LIFE_S, Authority
from protos.errors import BridgeError, CertificateError
from protos.process.files import stamp, write_file, writing
from protos.process.logs import Logger

AUTHORITY, SERVER = "authority", "server.pem"


@dataclass(frozen=True)
class Shown:
    """The server's certificate and key, and the authority that devices' certificates must lead to.

    Attributes:
        key_pem: the server's private key.
        chain: its certificate, then those that lead to a root.
        authority: our own; devices' certificates must lead to one of its roots.
        file: where the server's certificate was read.
        foreign: whether another authority issued it.
    """

    key_pem: bytes
    chain: tuple[x509.Certificate, ...]
    authority: Authority
    file: Path
    foreign: bool

    @property
    def end_s(self) -> float:
        """When the server's certificate expires, seconds since 1970."""
        return made.end_of(self.chain[0])

    @property
    def brief_chain_pem(self) -> bytes:
        """The chain without roots: a client that trusts a root already has it."""
        return made.pem(
            self.chain[0], *(one for one in self.chain[1:] if not made.self_signed(one))
        )


class ServerTls:
    """The server's TLS, from a directory that `cloud-server init` made.

    Args:
        directory: holds the authority, and the server's certificate unless `certificate` is given.
        certificate: PEM file of a certificate from another authority, with its chain.
        key: PEM file of its private key.
        clock: seconds since 1970.
        log: a bound logger.

    Raises:
        CertificateError: a file is missing or damaged, the key is not the certificate's, or the
        certificate has expired (our own is renewed instead).
    """

    def __init__(
        self,
        directory: Path,
        certificate: Path | None,
        key: Path | None,
        clock: Callable[[], float],
        log: Logger,
    ) -> None:
        self._directory, self._own = directory, directory / SERVER
        self._clock, self._log = clock, log
        self._given = certificate, key
        self._read = functools.partial(read_shown, directory, certificate, key)
        self._files = _files(directory, certificate, key)
        self._failed = ""
        self._contexts: list[ssl.SSLContext] = []
        self._stamp = self._look()
        self.shown = self._read()
        self.renew()  # the service may have been off for long
        self._check_end(self.shown)

    @property
    def authority(self) -> Authority:
        """Our own authority, as last read."""
        return self.shown.authority

    def refresh(self) -> bool:
        """Reload changed files if they are valid; else keep the old ones and log why.

        Returns:
            Whether anything was reloaded.
        """
        seen = self._look()
        if seen == self._stamp:
            return False
        try:
            shown = self._read()
            self._check_end(shown)
            for context in self._contexts:
                _load(context, shown)
        except (BridgeError, ssl.SSLError, OSError) as error:
            if str(error) != self._failed:
                self._failed = str(error)
                self._log.error("certificates not taken over", cause=str(error))
            return False
        self._stamp, self._failed, self.shown = seen, "", shown
        self._log.info("certificates taken over", serial=made.serial_of(shown.chain[0]))
        return True

    def follow(self, certificate: Path | None, key: Path | None) -> None:
        """Take the server's certificate from other files; until they are valid, the old one stays.

        Args:
            certificate: see `ServerTls`.
            key: see `ServerTls`.
        """
        if (certificate, key) == self._given:
            return
        self._given, self._stamp = (certificate, key), ()
        self._read = functools.partial(read_shown, self._directory, certificate, key)
        self._files = _files(self._directory, certificate, key)
        self.refresh()

    def renew(self) -> bool:
        """Renew the server's own certificate in its last third; returns whether it did."""
        now_s, shown = self._clock(), self.shown
        intermediate_end_s = made.end_of(shown.authority.intermediate.certificate)
        later_s = min(now_s + SERVER_LIFE_S, intermediate_end_s) - shown.end_s
        if shown.foreign or shown.end_s - now_s > SERVER_LIFE_S / 3 or later_s < SERVER_LIFE_S / 3:
            return False
        write_server(self._own, shown.authority, server_names(self._own), now_s)
        return self.refresh()

    def credentials(self, mutual: bool) -> grpc.ServerCredentials:
        """TLS credentials for one gRPC port.

        Args:
            mutual: whether a client must show a certificate of our own authority.
        """
        given = self.shown

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if given is self.shown:
                return None
            given = self.shown
            return _configuration(given, mutual)

        return grpc.dynamic_ssl_server_credentials(_configuration(given, mutual), fetch, mutual)

    def context(self) -> ssl.SSLContext:
        """TLS context for one HTTP port; new connections use what `refresh` loaded."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        _load(context, self.shown)
        self._contexts.append(context)
        return context

    def _check_end(self, shown: Shown) -> None:
        if shown.end_s <= self._clock():
            end = shown.chain[0].not_valid_after_utc
            raise CertificateError(f"{shown.file}: has expired ({end:%Y-%m-%d %H:%M} UTC)")

    def _look(self) -> tuple[object, ...]:
        """A stamp that changes when one of the files does."""
        return tuple(stamp(path) for path in self._files)


def read_shown(directory: Path, certificate: Path | None, key: Path | None) -> Shown:
    """Read the server's certificate, key and authority, and check that they fit together.

    Args:
        directory: see `ServerTls`.
        certificate: see `ServerTls`.
        key: see `ServerTls`.

    Raises:
        CertificateError: a file is missing or damaged, or the key is not the certificate's.
    """
    *_, file, key_file = _files(directory, certificate, key)
    authority = Authority.open(directory / AUTHORITY)
    raw = made.read_file(file)
    chain = made.read_certificates(raw, file)
    private = made.read_key(raw if key_file == file else made.read_file(key_file), key_file)
    if not made.same_key(private.public_key(), chain[0].public_key()):
        raise CertificateError(f"{key_file}: is not the private key of {file}")
    return Shown(made.key_pem(private), chain, authority, file, certificate is not None)


def write_server(path: Path, authority: Authority, names: list[str], now_s: float) -> None:
    """Issue a new server certificate from our own authority; key and chain go into one file.

    Raises:
        CertificateError: the intermediate has expired.
        ConfigError, DiskFullError: a name is not a host's, or the file cannot be written.
    """
    content = authority.sign_server(names, now_s)
    with writing(path):
        write_file(path, content, 0o600)


def secrets_in_reach(directory: Path) -> list[tuple[Path, str]]:
    """Private keys in a service's directory that are not safe there, each with what to do."""
    folder = directory / AUTHORITY
    found = [(path, "move the root's key offline") for path in sorted(folder.glob("*-key.pem"))]
    for path in (folder / INTERMEDIATE, directory / SERVER):
        with contextlib.suppress(OSError):
            if path.stat().st_mode & 0o077:
                found.append((path, "others may read it: chmod 600"))
    return found


def server_names(path: Path) -> list[str]:
    """Host names and addresses in the server's own certificate.

    Raises:
        CertificateError: the file is missing or damaged.
    """
    certificate = made.read_certificates(made.read_file(path), path)[0]
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names = found.get_values_for_type(x509.DNSName)
    return [*names, *map(str, found.get_values_for_type(x509.IPAddress))]


def _files(directory: Path, certificate: Path | None, key: Path | None) -> tuple[Path, ...]:
    """Roots, intermediate, the server's certificate, its key."""
    folder, own = directory / AUTHORITY, directory / SERVER
    return folder / ROOTS, folder / INTERMEDIATE, certificate or own, key or certificate or own


def _configuration(shown: Shown, mutual: bool) -> grpc.ServerCertificateConfiguration:
    chain_pem = shown.brief_chain_pem if mutual else made.pem(*shown.chain)
    clients = shown.authority.trusted_pem if mutual else None
    return grpc.ssl_server_certificate_configuration([(shown.key_pem, chain_pem)], clients)


def _load(context: ssl.SSLContext, shown: Shown) -> None:
    """Load key and chain into OpenSSL, from one file in memory."""
    with os.fdopen(os.memfd_create("server"), "wb") as file:
        file.write(shown.key_pem + shown.brief_chain_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
