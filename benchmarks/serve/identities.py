"""The directory of a service with identities, and the certificates of its simulated devices.

All devices of a run are registered in the database before the service starts. Each gets a key and a
certificate signed by the service's own authority, as after enrolment.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from cloud_server.identity.authority import DAY_S, Authority
from cloud_server.identity.caller import SERVICE_TENANT
from cloud_server.identity.certificates import key_pem
from cloud_server.identity.tls import AUTHORITY, SERVER
from cloud_server.state import certificates, devices, keys, tenants
from cloud_server.state.location import open_store
from cloud_server.state.store import Transaction
from edge_agent.identity.enrol import fresh_key, request_of
from edge_agent.uplink.dial import CHANNEL_OPTIONS

TENANTS = ("north", "south", "east", "west")


@dataclass(frozen=True)
class Credential:
    """A device's names, key and certificate chain (PEM)."""

    tenant: str
    device: str
    serial: str
    key: bytes
    chain: bytes


@dataclass(frozen=True)
class Identities:
    """A service's directory and its devices.

    Attributes:
        directory: the directory that `cloud-server init` made.
        devices: the devices' credentials, in order.
        operator: key of an operator of the whole service.
        application: key of an application of the first tenant, with the scopes ask and read.
    """

    directory: Path
    devices: list[Credential]
    operator: str
    application: str

    @classmethod
    def make(cls, directory: Path, count: int) -> Identities:
        """Make the directory and register `count` devices, spread over the tenants."""
        init = [sys.executable, "-m", "cloud_server", "init", str(directory)]
        subprocess.run(init, check=True, capture_output=True)
        made = []
        store = open_store("", directory)
        try:
            with store.write("bench") as tx:
                for name in TENANTS:
                    tenants.add(tx, name)
                _, operator = keys.add(
                    tx, SERVICE_TENANT, "bench", kind="operator", scopes=("read", "manage")
                )
                _, application = keys.add(tx, TENANTS[0], "bench")
            authority = Authority.open(directory / AUTHORITY)
            for number in range(count):
                with store.write("bench", quiet=True) as tx:
                    tenant, device = TENANTS[number % len(TENANTS)], f"device-{number}"
                    devices.add(tx, tenant, device)
                    made.append(certified(tx, authority, tenant, device))
            with store.write("bench"):
                pass  # one change that a running service must notice
        finally:
            store.close()
        return cls(directory, made, operator, application)

    @property
    def authority(self) -> Authority:
        """The service's authority."""
        return Authority.open(self.directory / AUTHORITY)

    def channel(self, address: str, credential: Credential | None) -> grpc.aio.Channel:
        """A channel with a client certificate; None for none."""
        key, chain = (credential.key, credential.chain) if credential else (None, None)
        roots = self.authority.trusted_pem
        secure = grpc.ssl_channel_credentials(roots, key, chain)
        return grpc.aio.secure_channel(address, secure, options=CHANNEL_OPTIONS)

    def server_credentials(self) -> grpc.ServerCredentials:
        """The service's own server credentials, for a rival under the same TLS."""
        own = (self.directory / SERVER).read_bytes()
        return grpc.ssl_server_credentials([(own, own)], self.authority.trusted_pem, True)


def certified(
    tx: Transaction,
    authority: Authority,
    tenant: str,
    device: str,
    life_s: float = 30 * DAY_S,
    late_s: float = 0.0,
) -> Credential:
    """Give a registered device a key and a recorded certificate.

    Args:
        tx: a transaction on the service's database.
        authority: signs the certificate.
        tenant: the device's tenant, by name.
        device: the device, by name.
        life_s: how long the certificate is valid.
        late_s: how long after that it may still be renewed.
    """
    key = fresh_key()
    now_s = time.time()
    issued = authority.sign_device(request_of(key), tenant, device, now_s, life_s, late_s)
    certificates.record(tx, tenant, device, issued.serial, issued.fingerprint, issued.not_after_s)
    return Credential(tenant, device, issued.serial, key_pem(key), issued.chain_pem)
