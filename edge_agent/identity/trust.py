"""Roots of other authorities, from a file or from the system."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from edge_agent.identity.roots import certificates
from protos.errors import CertificateError, ConfigError
from protos.process.files import expanded

SYSTEM = "system"
_SYSTEM_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


def foreign_roots(ca: str, environ: Mapping[str, str] = os.environ) -> bytes:
    """Read the roots (PEM) that the setting `ca` names.

    Args:
        ca: a file, or `system` for the roots of this system.
        environ: `SSL_CERT_FILE` names another file of the system's roots.

    Raises:
        CertificateError: the file cannot be read, or holds no certificate.
    """
    path = expanded(Path(ca)) if ca != SYSTEM else _system_file(environ)
    try:
        pem = path.read_bytes()
        if ca != SYSTEM:  # the system's file may hold old roots
            certificates(pem)
    except OSError as error:
        raise CertificateError(f"ca {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CertificateError(f"ca {path} holds no certificates in PEM: {error}") from error
    return pem


def _system_file(environ: Mapping[str, str]) -> Path:
    named = environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    for candidate in (named, *_SYSTEM_FILES):
        if candidate and os.path.isfile(candidate):
            return Path(candidate)
    raise ConfigError(
        "this system has no file of root certificates: install its package ca-certificates, or "
        "give --ca FILE"
    )
