"""Access to one front end: identities, TLS, enrolment and open calls."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager

import grpc

from cloud_server.frontend.access.enrol import Enroller
from cloud_server.frontend.access.open_calls import OpenCalls
from cloud_server.frontend.access.strangers import Strangers
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.telemetry import Telemetry
from cloud_server.identity import certificates as made
from cloud_server.identity.caller import Caller
from cloud_server.identity.cookies import Cookies
from cloud_server.identity.identify import Credential, Identities, Nobody, bearer_of
from cloud_server.identity.tls import ServerTls, secrets_in_reach
from cloud_server.settings import Settings
from cloud_server.state.directory import LiveDirectory
from cloud_server.state.location import open_store
from cloud_server.state.quota import Quota
from cloud_server.state.store import Store
from cloud_server.throttle import Throttle
from protos.errors import BridgeError, ForbiddenError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.logs import Logger

CHANGEABLE = (
    "device_requests_per_s",
    "device_bytes_per_s",
    "device_concurrent",
    "device_scenes",
    "tenant_requests_per_s",
    "tenant_bytes_per_s",
    "tenant_concurrent",
    "tls_certificate",
    "tls_key",
)
"""Settings that may change while the service runs."""
_LOOK_S = 1.0
_SOON_S = 60 * 86400.0
_REMIND_S = 86400.0


class Access:
    """The part of the front end that identifies callers (see `Part`).

    Args:
        settings: the directory, and whether identities are off (`--insecure`).
        telemetry: counts refusals; with the service's metrics.
        log: a bound logger.

    Attributes:
        store: the database; None without a directory.
        live: the directory of callers; None without a directory.
        identities: identifies callers; `Nobody` on a service without identities.
        strangers: bounds calls that need no credential.
        tls: None for plain text.
        device_port: where devices send frames; 0 until it is bound.

    Raises:
        CertificateError: a certificate or key of the directory cannot be used.
        StateError: the database cannot be used.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry, log: Logger) -> None:
        self._metrics, self._log = telemetry.metrics, log
        metrics = telemetry.metrics
        self._few = Throttle(settings.log_burst, self._more, settings.log_interval_s)
        self._refusals = Refusals(telemetry, log, self._few)
        self.strangers = Strangers(self._refusals, settings.request_arrival_s)
        self._tasks: list[asyncio.Task[None]] = []
        self._reminded_s = 0.0
        self._without = Quota(scenes=settings.device_scenes)
        self.store: Store | None = None
        self.live: LiveDirectory | None = None
        self.tls: ServerTls | None = None
        self.device_port = 0
        self.identities: Identities | Nobody = Nobody()
        self._calls: OpenCalls | None = None
        self._enroller: Enroller | None = None
        metrics.insecure.set(settings.insecure)
        if settings.insecure:
            log.warning(
                "INSECURE: plain text, and every caller is served; anyone who reaches a port may "
                "use everything (--insecure)"
            )
        if settings.directory is None:
            return
        self.store = store = open_store(settings.database, settings.directory)
        self.live = live = LiveDirectory(store, settings.device_quota, settings.tenant_quota)
        metrics.directory_stale.set_function(live.stale_seconds)
        if not settings.secure:
            return
        self.tls = tls = ServerTls(
            settings.directory, settings.tls_certificate, settings.tls_key, time.time, log
        )
        for path, why in secrets_in_reach(settings.directory):
            log.warning("a private key is in reach", file=str(path), why=why)
        cookies = Cookies(lambda: tls.authority.intermediate)
        self.identities = identities = Identities(live, cookies=cookies)
        self._calls = calls = OpenCalls(
            identities,
            self._refusals,
            log,
            {"key": settings.caller_calls, "device": settings.calls_of_device},
            settings.request_arrival_s,
        )
        metrics.open_calls.set_function(lambda: self.open_calls)
        self._enroller = Enroller(
            settings,
            store,
            live,
            identities,
            lambda: tls.authority,
            lambda: self.device_port,
            metrics,
            self._refusals,
            self.strangers,
            log,
        )
        live.changed(calls.look)

    @property
    def open_calls(self) -> int:
        """Open calls of identified callers."""
        return 0 if self._calls is None else len(self._calls)

    def quota_of(self, tenant: str, device: str | None) -> Quota:
        """The current quota of a device, or of a tenant if the device is None."""
        if self.live is None or not self.identities.required:
            return self._without
        return self.live.now.quota(tenant, device)

    def guarded(
        self, methods: Mapping[str, grpc.RpcMethodHandler]
    ) -> dict[str, grpc.RpcMethodHandler]:
        """Wrap handlers so that they answer only identified callers; adds Enrol and Renew.

        Args:
            methods: the service's other handlers, by name.
        """
        if self._calls is None or self._enroller is None:
            return dict(methods)
        reply = pb.Certificates.SerializeToString
        enrol = grpc.stream_unary_rpc_method_handler(
            self._enroller.enrol, response_serializer=reply
        )
        renew = grpc.unary_unary_rpc_method_handler(self._enroller.renew, response_serializer=reply)
        calls = self._calls
        return {
            "Enrol": enrol,
            **{name: calls.guarded(handler, name) for name, handler in methods.items()},
            "Renew": calls.guarded(renew, "Renew", late_s=self._enroller.late_s),
        }

    def for_operators(self, handler: grpc.RpcMethodHandler, name: str) -> grpc.RpcMethodHandler:
        """Wrap a handler so that it answers only operators of the whole service.

        Args:
            handler: one of `grpc.aio`.
            name: the call's name, for the log.
        """
        return handler if self._calls is None else self._calls.guarded(handler, name, _operates)

    def held(self, credential: Credential, caller: Caller) -> AbstractContextManager[None]:
        """An HTTP request is open while the block runs (see `OpenCalls.held`)."""
        return (
            contextlib.nullcontext()
            if self._calls is None
            else self._calls.held(credential, caller)
        )

    def may_see_metrics(self, header: str) -> None:
        """Check the caller of /metrics. Any thread may call it.

        Args:
            header: the request's `Authorization` header.

        Raises:
            UnauthenticatedError: the key is missing or not valid.
            ForbiddenError: not an operator of the service.
        """
        _operates(self.identities.bearer(bearer_of(header)))

    async def start(self) -> None:
        """See `Part`: follow the database and the files of certificates."""
        work: list[Callable[[], Awaitable[None]]] = []
        if self.live is not None:
            work.append(self.live.run)
        if self._calls is not None:
            work.append(self._calls.run)
        if self.tls is not None:
            work.append(functools.partial(self._follow_files, self.tls))
        self._tasks = [asyncio.create_task(self._keep_on(one)) for one in work]

    def reload(self) -> None:
        """Check files and database now, instead of within a second."""
        if self.live is not None:
            self.live.wake()
        if self.tls is not None:
            self.tls.refresh()

    def change(self, settings: Settings) -> None:
        """Apply settings that were read again: default quotas, and paths of certificates."""
        self._without = Quota(scenes=settings.device_scenes)
        if self.live is not None:
            self.live.change_defaults(settings.device_quota, settings.tenant_quota)
        if self.tls is not None:
            self.tls.follow(settings.tls_certificate, settings.tls_key)

    async def drain(self) -> None:
        """See `Part`; callers are still identified."""

    async def close(self) -> None:
        """See `Part`."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._few.flush()
        if self.store is not None:
            self.store.close()

    async def _keep_on(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run work that must not end while the service runs; start it again if it fails."""
        while True:
            try:
                await work()
            except Exception:
                self._log.exception("callers are not followed for a moment")
            await asyncio.sleep(_LOOK_S)

    async def _follow_files(self, tls: ServerTls) -> None:
        while True:
            try:
                tls.refresh()
                if await asyncio.to_thread(tls.renew):
                    self._log.info("server certificate renewed")
            except BridgeError as error:
                if self._few.passes("server certificate"):
                    self._log.error("server certificate not renewed", cause=error.message)
            self._tell_ends(tls)
            await asyncio.sleep(_LOOK_S)

    def _tell_ends(self, tls: ServerTls) -> None:
        """Update the metric of certificates' expiry; warn once a day about early ones."""
        authority, now_s = tls.authority, time.time()
        ends = {
            "server": tls.shown.end_s,
            "intermediate": made.end_of(authority.intermediate.certificate),
            "root": made.end_of(authority.roots[-1]),
        }
        soon = {what: end_s for what, end_s in ends.items() if end_s - now_s < _SOON_S}
        if not tls.shown.foreign:
            soon.pop("server", None)  # the service renews it
        for what, end_s in ends.items():
            self._metrics.certificate_end.labels(what).set(end_s)
        if soon and now_s - self._reminded_s > _REMIND_S:
            self._reminded_s = now_s
            for what, end_s in soon.items():
                days = round((end_s - now_s) / 86400, 1)
                self._log.warning("certificate ends soon", certificate=what, days=days)

    def _more(self, name: str, count: int) -> None:
        self._log.warning("more of the same", what=name, count=count)


def _operates(caller: Caller) -> None:
    """Check that a caller is an operator of the whole service and may read.

    Raises:
        ForbiddenError: it is not.
    """
    if not caller.of_service:
        raise ForbiddenError("only operators of the whole service may see this")
    caller.require("read")
