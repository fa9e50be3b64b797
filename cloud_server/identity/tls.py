"""What the service shows in TLS handshakes: read from files, checked, and read again on a change.

Connections that are open keep what they began with. TLS 1.3 only: HTTP says so to OpenSSL; gRPC has
no such option, so `protos/process/start.py` leaves its TLS 1.2 no cipher, and `Identities` checks
the version of every call.
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
    """What a handshake shows and demands.

    Attributes:
        key_pem: the server's private key.
        chain: its certificate, then those that lead to a root.
        authority: our own; devices' certificates must lead to one of its roots.
        file: where the server's certificate was read.
        foreign: whether another authority made it.
    """

    key_pem: bytes
    chain: tuple[x509.Certificate, ...]
    authority: Authority
    file: Path
    foreign: bool

    @property
    def end_s(self) -> float:
        """When the server's certificate ends, seconds since 1970."""
        return made.end_of(self.chain[0])

    @property
    def brief_chain_pem(self) -> bytes:
        """The chain without roots: who knows a root needs no copy of it."""
        return made.pem(
            self.chain[0], *(one for one in self.chain[1:] if not made.self_signed(one))
        )


class ServerTls:
    """The server's TLS, from a directory that `cloud-server init` made.

    Args:
        directory: with the authority, and the server's certificate unless the next two name one.
        certificate: PEM file of a certificate of another authority, with its chain.
        key: PEM file of its private key.
        clock: seconds since 1970.
        log: a bound logger.

    Raises:
        CertificateError: a file is missing or damaged, the key is not the certificate's, or the
            certificate has ended (our own is renewed instead).
    """

    def __init__(
        self,
        directory: Path,
        certificate: Path | None,
        key: Path | None,
        clock: Callable[[], float],
        log: Logger,
    ) -> None:
        self._own = directory / SERVER
        self._clock, self._log = clock, log
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
        """Our own authority, as it is now."""
        return self.shown.authority

    def refresh(self) -> bool:
        """Take over files that changed, if they are good; else keep what there is, and log why.

        Returns:
            Whether something was taken over.
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

    def renew(self) -> bool:
        """Replace the server's own certificate in its last third; returns whether it was."""
        now_s, shown = self._clock(), self.shown
        intermediate_end_s = made.end_of(shown.authority.intermediate.certificate)
        later_s = min(now_s + SERVER_LIFE_S, intermediate_end_s) - shown.end_s
        if shown.foreign or shown.end_s - now_s > SERVER_LIFE_S / 3 or later_s < SERVER_LIFE_S / 3:
            return False
        write_server(self._own, shown.authority, server_names(self._own), now_s)
        return self.refresh()

    def credentials(self, mutual: bool) -> grpc.ServerCredentials:
        """For one port of gRPC.

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
        """For one HTTP port; new connections see what `refresh` takes over."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        _load(context, self.shown)
        self._contexts.append(context)
        return context

    def _check_end(self, shown: Shown) -> None:
        if shown.end_s <= self._clock():
            end = shown.chain[0].not_valid_after_utc
            raise CertificateError(f"{shown.file}: has ended ({end:%Y-%m-%d %H:%M} UTC)")

    def _look(self) -> tuple[object, ...]:
        """What changes when one of the files does."""
        return tuple(stamp(path) for path in self._files)


def read_shown(directory: Path, certificate: Path | None, key: Path | None) -> Shown:
    """Read what a handshake shows, and check that it fits together.

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
    """Give the server a new certificate of our own authority; key and chain lie in one file.

    Raises:
        CertificateError: the intermediate has ended.
        ConfigError, DiskFullError: a name is no host's, or the file cannot be written.
    """
    content = authority.sign_server(names, now_s)
    with writing(path):
        write_file(path, content, 0o600)


def secrets_in_reach(directory: Path) -> list[tuple[Path, str]]:
    """Private keys of a service's directory that others can reach, each with what to do."""
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
    """Give OpenSSL key and chain in one file that is only in memory."""
    with os.fdopen(os.memfd_create("server"), "wb") as file:
        file.write(shown.key_pem + shown.brief_chain_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
