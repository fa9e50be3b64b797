"""The HTTP application: its routes and its error handlers."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from cloud_server.api.failures import FailureBody, FieldError, failed, http_failed, unexpected
from protos.errors import BridgeError

DESCRIPTION_PATH = "/openapi.json"
_ERRORS = {
    400: "a field is wrong, or not supported",
    401: "the key is missing or not valid",
    403: "the key does not allow this",
    404: "there is no such scene, device or model, or it is not the caller's",
    409: "the idempotency key or the name is taken",
    413: "the body is too large",
    422: "the request is valid but cannot be served now, such as a risk above `max_risk`",
    429: "a quota is used up or the service is full: try again after `retry-after`",
    500: "an error of the service",
    503: "no engine at the moment: try again after `retry-after`",
}


def application(routers: Sequence[APIRouter]) -> FastAPI:
    """Build the application from its routes.

    It has no documentation pages, because they need files from the internet. The OpenAPI
    description is at `/openapi.json`.
    """
    app = FastAPI(
        title="Neural Bridge",
        version="1",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={
            status: {"model": FailureBody, "description": text} for status, text in _ERRORS.items()
        },
    )
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(BridgeError, _typed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _unexpected)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    described = functools.cache(lambda: json.dumps(app.openapi()).encode())

    @app.get(DESCRIPTION_PATH, include_in_schema=False)
    def openapi() -> Response:  # on a thread: anyone may ask, and the first time takes a while
        return Response(described(), media_type="application/json")

    return app


def _description(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            routes=app.routes,
            description="Ask a large model about the scenes that devices sent.",
        )
        bearer = {"type": "http", "scheme": "bearer", "description": "cloud-server keys add"}
        made["components"]["securitySchemes"] = {"key": bearer}
        made["security"] = [{"key": []}]
        app.openapi_schema = made
    return app.openapi_schema


async def _typed(_: Request, error: Exception) -> Response:
    assert isinstance(error, BridgeError)
    return failed(error)


async def _invalid(_: Request, error: Exception) -> Response:
    """Report the field that does not fit its description; of several, one that is deepest."""
    assert isinstance(error, RequestValidationError)
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    if first["type"] == "json_invalid":
        return failed(FieldError("body", f"the body is no JSON: {first['ctx']['error']}"))
    if first["loc"] == ("body",) and first["type"] != "string_unicode":
        told = "the body is no JSON object with Content-Type: application/json"
        return failed(FieldError("body", told))
    name = _named(first["loc"], first["type"], error.body)
    return failed(FieldError(name, f"{name}: {first['msg']}"))


def _named(place: Sequence[str | int], kind: str, body: Any) -> str:
    """A field's place as a reader of the request sees it.

    Args:
        place: `body` or `query`, then keys, indices and the names of the types that were tried.
        kind: of the error.
        body: of the request.
    """
    where, at = "", body
    for part in place[1:]:
        if place[0] == "body":
            if isinstance(at, dict) and part in at:
                at = at[part]
            elif isinstance(at, list) and isinstance(part, int) and part < len(at):
                at = at[part]
            elif kind != "missing" or part != place[-1]:
                continue  # the name of a type
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    return where or "body"


async def _unexpected(_: Request, __: Exception) -> Response:
    """Sent before the door logs the error."""
    return unexpected()


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, BridgeError):  # from reading the body
        return await _typed(request, error.__cause__)
    if error.status_code == 405:
        allow = _methods(request)
        return http_failed(405, f"{request.method} is none of {allow}", {"allow": allow})
    return http_failed(error.status_code, str(error.detail), error.headers)


def _methods(request: Request) -> str:
    """The methods of a path; several routes may serve it."""
    found: set[str] = set()
    for template, methods in request.app.openapi()["paths"].items():
        if compile_path(template)[0].match(request.url.path):
            found |= {method.upper() for method in methods}
    return ", ".join(sorted(found))
