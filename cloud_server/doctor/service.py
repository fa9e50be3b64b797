"""Checks of what the settings name: ports, certificates, database, model and bundles."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from cloud_server.doctor.holder import service_on
from cloud_server.engine.precision import backend_of
from cloud_server.settings import Settings
from protos.errors import BridgeError
from protos.process.findings import GREEN, RED, YELLOW, Finding, ending


def ports(settings: Settings) -> Iterator[Finding]:
    """Whether each port is free; 0 takes any free port."""
    wanted = [
        ("gRPC", "--port", settings.host, settings.port),
        ("metrics", "--metrics-port", settings.metrics_host, settings.metrics_port),
    ]
    if settings.secure:
        wanted.append(("gRPC, open", "--open-port", settings.host, settings.open_port))
    if settings.http_port is not None:
        wanted.append(("HTTP", "--api-port", settings.api_host, settings.http_port))
    for name, flag, host, port in wanted:
        subject = f"port, {name}"
        if not port:
            yield Finding(subject, GREEN, f"a free one at {host}")
            continue
        problem = _cannot_bind(host, port)
        own = problem and settings.directory and service_on(port, settings.directory)
        if own:
            found = f"{host}:{port}: held by the running service, pid {own}"
            yield Finding(subject, GREEN, found)
        elif problem:
            yield Finding(
                subject,
                RED,
                f"{host}:{port}: {problem}",
                f"end what listens there (ss -ltnp), or choose another {flag}",
            )
        else:
            yield Finding(subject, GREEN, f"{host}:{port} is free")


def certificates(settings: Settings) -> Iterator[Finding]:
    """The server's certificate, its chain, its expiry, and who may read the keys."""
    if settings.directory is None or not settings.secure:
        level = YELLOW if settings.insecure else GREEN
        yield Finding(
            "certificates",
            level,
            "none: plain text" + (" for strangers too (--insecure)" if settings.insecure else ""),
            "make a directory with 'cloud-server init', and serve with --directory"
            if settings.insecure
            else "",
        )
        return
    from cloud_server.identity import certificates as made
    from cloud_server.identity.tls import AUTHORITY, read_shown

    shown = read_shown(settings.directory, settings.tls_certificate, settings.tls_key)
    chain = shown.chain
    names = "another authority's" if shown.foreign else "our authority's"
    yield ending("server certificate", f"{shown.file}, {names}", shown.end_s, shown.foreign)
    broken = [
        f"{a.subject.rfc4514_string()} is not signed by {b.subject.rfc4514_string()}"
        for a, b in zip(chain, chain[1:], strict=False)
        if not made.signed_by(a, b)
    ]
    if broken:
        yield Finding("certificate chain", RED, "; ".join(broken), "put the chain in order, "
                      "the server's certificate first")  # fmt: skip
    else:
        yield Finding(
            "certificate chain", GREEN, f"{len(chain)} certificates, each signs the one before"
        )
    intermediate = shown.authority.intermediate.certificate
    yield ending("intermediate", "signs devices", made.end_of(intermediate), True)
    yield from _key_files(settings.directory / AUTHORITY, shown.file, settings.tls_key)


def _key_files(authority: Path, server: Path, key: Path | None) -> Iterator[Finding]:
    files = [path for path in authority.glob("*.pem") if b"PRIVATE KEY" in path.read_bytes()]
    files += [path for path in (server, key) if path is not None]
    open_ones = [path for path in files if b"PRIVATE KEY" in path.read_bytes()
                 and path.stat().st_mode & 0o077]  # fmt: skip
    if open_ones:
        yield Finding(
            "private keys",
            RED,
            f"others may read {', '.join(map(str, open_ones))}",
            f"chmod 600 {' '.join(map(str, open_ones))}; if anyone did, replace the keys",
        )
    else:
        yield Finding("private keys", GREEN, f"{len(files)} files, for their owner only")
    if any("root-key" in path.name for path in files):
        yield Finding(
            "root key",
            YELLOW,
            f"is in {authority}",
            "keep it on media apart from this machine, and delete it here",
        )


def database(settings: Settings) -> Iterator[Finding]:
    """Whether the database can be reached, read and written, and its version."""
    if settings.directory is None and not settings.database:
        yield Finding("database", GREEN, "none: no --directory")
        return
    from cloud_server.state.location import open_store

    store = open_store(settings.database, settings.directory)
    try:
        started = time.perf_counter()
        store.token()
        read_ms = (time.perf_counter() - started) * 1e3
        try:
            with store.write("doctor", quiet=True) as tx:
                tx.audit("doctor.look", "", "database")
                tx.session.flush()
                raise _Undo
        except _Undo:
            pass
    finally:
        store.close()
    yield Finding(
        "database", GREEN, f"{store.named}: up to date, read in {read_ms:.1f} ms, writable"
    )


class _Undo(Exception):
    """Raised to undo a transaction."""


def model(settings: Settings) -> Iterator[Finding]:
    """The large model's checkpoint."""
    path = settings.model_path
    config = path / "config.json"
    if not config.is_file():
        yield Finding("model", RED, f"{path} holds no config.json", "name a checkpoint's folder")
        return
    kind = json.loads(config.read_text()).get("architectures") or ["unknown"]
    files = [*path.glob("*.safetensors"), *path.glob("*.bin")]
    if not files:
        yield Finding("model", RED, f"{path}: {kind[0]} without weights", "download it again")
        return
    size = sum(file.stat().st_size for file in files) / (1 << 30)
    yield Finding("model", GREEN, f"{path}: {kind[0]}, {size:.1f} GiB of weights")


def bundles(settings: Settings, quick: bool) -> Iterator[Finding]:
    """Whether each bundle is whole, trusted, has a canary set, and fits this model."""
    from projector.bundle.certificate import verdict_of
    from projector.bundle.keys import TrustedKeys
    from projector.bundle.load import Bundle

    paths = _bundle_paths(settings)
    if not paths:
        yield Finding(
            "bundles", RED, "none", "give --bundles, or cloud-server bundles add and activate"
        )
        return
    keys = TrustedKeys.load(settings.trusted_keys) if settings.trusted_keys else None
    target = None
    backend = backend_of(settings)
    loaded = not quick and settings.model is not None  # without one, `model` has said so
    if loaded:
        from cloud_server.engine.load import load_model

        target = load_model(settings.model_copy(update={"bundles": tuple(paths)})).layout
    for path in paths:
        subject = f"bundle, {path.name[:40]}"
        try:
            info = Bundle.peek(path)
            bundle = Bundle.load(path, info.source, target or info.target, trusted=keys)
            bundle.backend(backend, device=settings.backend_device)
        except BridgeError as error:
            yield Finding(subject, RED, error.message, "make or copy it again, for this model")
            continue
        names = {point.index: point.name for point in info.points}
        verdict = verdict_of(bundle.certificate, names[info.default_point])
        found = f"{info.id}@{info.version} ({info.digest[:12]}…)" + (
            f", fits the model, runs with {backend}" if loaded else ""
        )
        doubts = []
        if not verdict.good:
            doubts.append(f"its certificate does not vouch for it ({verdict.state})")
        if bundle.canary is None:
            doubts.append(info.without_canary)
        if doubts:
            yield Finding(subject, YELLOW, f"{found}; {'; '.join(doubts)}", "see projector inspect")
        else:
            yield Finding(subject, GREEN, found)


def _bundle_paths(settings: Settings) -> list[Path]:
    """The settings' bundles, or those that the database wants."""
    if settings.directory is None:
        return list(settings.bundles)
    from cloud_server.state import bundles as versions
    from cloud_server.state.location import open_store

    store = open_store(settings.database, settings.directory)
    try:
        with store.read() as session:
            rows = versions.every(session)
    finally:
        store.close()
    wanted = [Path(row.path) for row in rows if row.wanted in versions.SERVED]
    return wanted or list(settings.bundles)


def _cannot_bind(host: str, port: int) -> str:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""
