"""Settings of the service's exposure: addresses, TLS, identities."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_serializer

from cloud_server.state.journal import LONGEST_LATE_RENEWAL_DAYS
from cloud_server.state.shown import without_password
from protos.errors import ConfigError
from protos.process.addresses import Address, loopback
from protos.process.settings import Host, TypedSettings

_HTTP_PORT = 8443


class Exposure(TypedSettings):
    """These settings; base class of the service's settings."""

    directory: Path | None = Field(
        None,
        description="directory that 'cloud-server init' made; with it every caller is known by a "
        "certificate or key, everything runs over TLS 1.3, and DIRECTORY/settings.toml is read "
        "unless --config names another file",
    )
    insecure: bool = Field(
        False,
        description="serve everyone in plain text, on any address, without TLS and identities; a "
        "warning is logged at every start and shown in /metrics",
    )
    host: Host = Field("127.0.0.1", min_length=1, description="address the gRPC ports are bound to")
    port: int = Field(
        50051,
        ge=0,
        le=65535,
        description="gRPC port; 0 takes a free one. With --directory it is for devices, which must "
        "show their certificate",
    )
    open_port: int = Field(
        50052,
        ge=0,
        le=65535,
        description="with --directory, gRPC port for clients without a certificate: devices that "
        "enrol, applications, operators; 0 takes a free one",
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file of a server certificate from another authority, with its chain; "
        "reloaded when it changes. By default the service's own authority issues one",
    )
    tls_key: Path | None = Field(
        None, description="PEM file of its private key, unless the certificate's file holds it"
    )
    device_certificate_days: float = Field(
        90.0, gt=0.0, le=3650.0, description="how long a device's certificate is valid, days"
    )
    late_renewal_days: float = Field(
        365.0,
        ge=0.0,
        le=LONGEST_LATE_RENEWAL_DAYS,
        description="how long after its end a certificate may still be renewed, and nothing else, "
        "days: a device that was offline for so long needs no new code. Certificates issued from "
        "then on obey a change; 0 for never",
    )
    enrolments_per_s: float = Field(
        1.0,
        gt=0.0,
        le=1e6,
        description="one-time codes that one address (IPv6: one /64) may try a second",
    )
    enrolment_burst: int = Field(
        20, ge=1, le=1_000_000, description="one-time codes that one address may try at once"
    )
    api_host: Host = Field(
        "127.0.0.1", min_length=1, description="address the HTTP port for applications is bound to"
    )
    api_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="HTTP port for applications: OpenAI's chat completions, scenes, devices, "
        "management; 0 takes a free one. Without it, HTTP is served only with --directory (8443)",
    )
    api_connections: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="HTTP connections at once; further ones are closed at once",
    )
    request_arrival_s: float = Field(
        30.0,
        gt=0.0,
        le=3600.0,
        description="an HTTP connection, or a gRPC call with one message, whose request does not "
        "arrive in this time is closed, seconds",
    )
    body_memory_bytes: int = Field(
        64 << 20,
        ge=1 << 10,
        description="large HTTP request bodies (pictures) held at once, in bytes",
    )
    idempotency_memory_bytes: int = Field(
        16 << 20,
        ge=1 << 10,
        description="memory of answers kept for repeated requests with an Idempotency-Key, in "
        "bytes",
    )
    metrics_host: Host = Field(
        "127.0.0.1", min_length=1, description="address the metrics port is bound to"
    )
    metrics_port: int = Field(
        9464,
        ge=0,
        le=65535,
        description="port of /metrics, /healthz and /readyz; 0 takes a free one",
    )
    ready_file: Path | None = Field(
        None, description="file to which the readiness line is written too"
    )
    database: str = Field(
        "",
        description="URL of the service's database, sqlite:////folder/state.db or "
        "postgresql://user@host/name; by default state.db in --directory (SQLite)",
    )

    @field_serializer("database")
    def _without_password(self, value: str) -> str:
        """The URL for messages and for the engine's process, which opens no database."""
        return without_password(value)

    @property
    def directory_path(self) -> Path:
        """The directory that `cloud-server init` made.

        Raises:
            ConfigError: none is set.
        """
        if self.directory is None:
            raise ConfigError(
                "no directory: give --directory or NEURAL_BRIDGE_CLOUD_DIRECTORY; 'cloud-server "
                "init DIR' makes one"
            )
        return self.directory

    @property
    def secure(self) -> bool:
        """Whether callers are known, and everything runs over TLS."""
        return self.directory is not None and not self.insecure

    @property
    def http_port(self) -> int | None:
        """HTTP port for applications; None if there is none."""
        if self.api_port is not None or self.directory is None:
            return self.api_port
        return _HTTP_PORT

    @property
    def metrics_on_loopback(self) -> bool:
        """Whether only this machine reaches the metrics port."""
        return _on_loopback(self.metrics_host)

    def check_exposure(self) -> None:
        """Check that no stranger is served in plain text by mistake.

        Raises:
            ConfigError: an address is not loopback, and there are neither identities nor
                `--insecure`; or a certificate is named that would not be used.
        """
        if self.tls_key is not None and self.tls_certificate is None:
            raise ConfigError("--tls-key needs --tls-certificate")
        if self.tls_certificate is not None and not self.secure:
            raise ConfigError(
                "--tls-certificate needs --directory, a directory that 'cloud-server init' made, "
                "and no --insecure"
            )
        if self.secure or self.insecure:
            return
        for flag, host in (
            ("--host", self.host),
            ("--api-host", self.api_host),
            ("--metrics-host", self.metrics_host),
        ):
            if not _on_loopback(host):
                raise ConfigError(
                    f"{flag} {host} is not loopback, so strangers would be served in plain text: "
                    "give --directory with a directory that 'cloud-server init' made, or give "
                    "--insecure"
                )


def _on_loopback(host: str) -> bool:
    return loopback(str(Address(host, 1)))
