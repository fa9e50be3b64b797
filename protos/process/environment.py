"""Environment variables that look like settings, but that Kubernetes or Docker injected."""

from __future__ import annotations

import re
from collections.abc import Mapping

_BY_NAME = re.compile(
    r".*_(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_BY_VALUE = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def service_links(environ: Mapping[str, str], prefix: str) -> list[str]:
    """Variables with a program's prefix that a container platform made of a service's name.

    A Kubernetes Service called `neural-bridge-cloud` becomes NEURAL_BRIDGE_CLOUD_SERVICE_HOST,
    NEURAL_BRIDGE_CLOUD_PORT=tcp://…, NEURAL_BRIDGE_CLOUD_PORT_50051_TCP_ADDR and more, in every pod
    of its namespace.

    Args:
        environ: the environment.
        prefix: what the program's variables begin with, in capitals.
    """
    return sorted(
        name
        for name, value in environ.items()
        if name.upper().startswith(prefix)
        and (
            _BY_NAME.fullmatch(name.upper())
            or (name.upper().endswith("_PORT") and _BY_VALUE.fullmatch(value))
        )
    )
