"""The door: identifies a request's caller and bounds its size before its body is read.

request id → identity → quota → size of the body → the routes; then headers, log line, metrics.
Every error, also an unexpected one, is sent as JSON.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_server.api import chat_response as say
from cloud_server.api import health
from cloud_server.api.application import DESCRIPTION_PATH
from cloud_server.api.bodies import Bodies, length_of
from cloud_server.api.failures import body_of, failed, unexpected
from cloud_server.api.visit import KEY, Visit
from cloud_server.frontend.access.access import Access
from cloud_server.frontend.access.gate import owner_of
from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.identity.caller import ANYONE
from cloud_server.identity.cookies import LONGEST, NAME, Cookie
from cloud_server.identity.identify import Credential, bearer_of
from cloud_server.metrics import Metrics
from cloud_server.page import files
from cloud_server.page.signing_in import SIGN_IN, SIGN_OUT
from cloud_server.throttle import Throttle
from protos.errors import BridgeError, ForbiddenError
from protos.process.logs import Logger
from protos.process.trace import TRACEPARENT, context_of

OPEN_PATHS = (health.PATH, DESCRIPTION_PATH, "/", files.PATH, SIGN_IN, SIGN_OUT)
"""Paths that need no key; so do those of the page's files."""
PAGE_HEADER = "x-neural-bridge-page"
"""The live page's own scripts send it; a form or script of another site cannot."""
_SAFE = ("GET", "HEAD")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_ID_BYTES = 16


class Door:
    """An ASGI application around the routes.

    Args:
        app: the routes.
        access: identifies callers.
        quotas: counts requests against quotas.
        bodies: bounds bodies.
        metrics: the service's metrics.
        log: a bound logger.
        few: limits repeated log lines.
        draining: whether connections are to be closed, because the service stops.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        quotas: Quotas,
        bodies: Bodies,
        metrics: Metrics,
        log: Logger,
        few: Throttle,
        draining: Callable[[], bool],
    ) -> None:
        self._app, self._access, self._bodies = app, access, bodies
        self._quotas = quotas
        self._metrics, self._log, self._few, self._draining = metrics, log, few, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        visit = Visit(secrets.token_bytes(_ID_BYTES), ANYONE)
        scope[KEY] = visit
        status, streams = 0, False

        async def told(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                streams = headers.get("content-type", "").startswith("text/event-stream")
                headers["x-request-id"] = visit.request_id.hex()
                headers.update(visit.headers)
                if self._draining():
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._serve(visit, scope, receive, told)
        except BridgeError as error:
            if not status:
                await failed(error)(scope, receive, told)
            elif streams:
                last = say.event(body_of(error).model_dump())
                await told({"type": "http.response.body", "body": last, "more_body": False})
        except Exception:
            self._log.exception("api", request_id=visit.request_id.hex(), path=scope["path"])
            if not status:
                await unexpected()(scope, receive, told)
        finally:
            self._note(visit, scope, status, time.perf_counter() - began)

    async def _serve(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        visit.context = context_of(headers.get(TRACEPARENT))
        with ExitStack() as stack:
            path = scope["path"]
            if path in (SIGN_IN, SIGN_OUT) and scope["method"] == "POST":
                _require_own_page(headers)
            if path not in OPEN_PATHS and not path.startswith(files.FILES):
                credential = credential_of(headers)
                if isinstance(credential, Cookie) and scope["method"] not in _SAFE:
                    _require_own_page(headers)
                visit.caller = self._access.identities.of(credential)
                stack.enter_context(self._access.held(credential, visit.caller))
                self._charge(visit, headers)
            bounded = stack.enter_context(self._bodies.bounded(headers, receive))
            await self._app(scope, bounded, send)

    def _charge(self, visit: Visit, headers: Headers) -> None:
        """Count a request against its caller's quota; headers say what is left.

        Raises:
            OverloadedError: the quota is used up.
        """
        owner = owner_of(visit.caller)
        try:
            self._quotas.charge(*owner, length_of(headers))
        finally:
            if allowance := self._quotas.allowance(*owner):
                visit.headers |= {
                    "x-ratelimit-limit-requests": str(int(allowance.most)),
                    "x-ratelimit-remaining-requests": str(max(0, int(allowance.left))),
                    "x-ratelimit-reset-requests": f"{allowance.full_s:.3f}s",
                }

    def _note(self, visit: Visit, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.http_requests.labels(method, status).inc()
        if status < 400 or self._few.passes(f"http {status}"):
            say = self._log.debug if status < 400 else self._log.warning
            say(
                "http",
                request_id=visit.request_id.hex(),
                method=scope["method"],
                path=scope["path"],
                status=status,
                tenant=visit.caller.tenant,
                caller=visit.caller.name,
                ms=round(seconds * 1e3, 3),
            )


def credential_of(headers: Headers) -> Credential:
    """The key of a request; without one the cookie of the live page; else an empty string."""
    if "authorization" in headers:
        return bearer_of(headers["authorization"])
    for part in headers.get("cookie", "").split(";"):
        name, _, text = part.strip().partition("=")
        if name == NAME and text:
            return Cookie(text[: LONGEST + 1])
    return ""


def _require_own_page(headers: Headers) -> None:
    """Refuse what another site makes a browser send.

    Raises:
        ForbiddenError: the request does not come from the live page's own scripts.
    """
    if PAGE_HEADER not in headers or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise ForbiddenError(
            f"a request with a cookie comes from the live page alone, with the header "
            f"'{PAGE_HEADER}: 1'; programs send 'authorization: Bearer KEY'"
        )
