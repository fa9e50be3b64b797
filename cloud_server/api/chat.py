"""`POST /v1/chat/completions`: a question about a held scene or a picture in the request."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from cloud_server.api import subject
from cloud_server.api.chat_request import ChatRequest
from cloud_server.api.chat_response import ChatCompletion
from cloud_server.api.completion import (
    Completion,
    Question,
    StreamedCompletion,
    picture_session,
)
from cloud_server.api.held import Held, asked_about, require_risk
from cloud_server.api.idempotency import LONGEST_KEY, Idempotency
from cloud_server.api.models import Models
from cloud_server.api.visit import Visit, visit_of
from cloud_server.frontend.access.gate import owner_of
from cloud_server.frontend.answers import Computation
from cloud_server.frontend.ask import Application, Asker
from cloud_server.frontend.scenes import HeldScene
from cloud_server.frontend.under_way import UnderWay
from cloud_server.identity.caller import Caller
from protos.limits import Limits

_EVENT_BYTES = 1024
"""About the bytes of one event of an answer that is kept for an idempotency key."""


class Chat:
    """Answers questions.

    Args:
        limits: bounds on requests.
        models: the model that answers.
        held: the scenes.
        asker: sends questions to the engine.
        under_way: the questions in the engine.
        idempotency: the idempotency keys.
    """

    def __init__(
        self,
        limits: Limits,
        models: Models,
        held: Held,
        asker: Asker,
        under_way: UnderWay,
        idempotency: Idempotency[Question],
    ) -> None:
        self._limits, self._models, self._held = limits, models, held
        self._asker, self._under_way = asker, under_way
        self._idempotency = idempotency
        self._pictures = itertools.count()

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter(tags=["questions"])

        @router.post(
            "/v1/chat/completions",
            response_class=Response,
            responses={
                200: {
                    "model": ChatCompletion,
                    "content": {"text/event-stream": {}},
                    "description": "the answer; with `stream`, server-sent events",
                }
            },
        )
        async def chat_completions(
            request: Request,
            body: ChatRequest,
            idempotency_key: Annotated[
                str | None,
                Header(
                    min_length=1,
                    max_length=LONGEST_KEY,
                    description="a repeated request with the same key gets the first answer",
                ),
            ] = None,
        ) -> Response:
            """Ask one question about a scene that the service holds, or about a picture."""
            visit = visit_of(request)
            raw = b"" if idempotency_key is None else await request.body()
            return self._answer(visit, body, idempotency_key, raw)

        return router

    def _answer(self, visit: Visit, body: ChatRequest, key: str | None, raw: bytes) -> Response:
        received_ns, caller = time.monotonic_ns(), visit.caller
        caller.require("ask")
        question = None if key is None else self._idempotency.find(caller, key, raw)
        if question is not None:
            self._under_way.join(question.made)
        else:
            question = self._begin(visit, body, received_ns)
            if key is not None:
                cost = len(question.made.question) + question.limit * _EVENT_BYTES
                self._idempotency.begin(caller, key, raw, question, cost)
        undone = partial(self._undone, caller, key)
        if body.stream:
            return StreamedCompletion(
                question, self._asker, self._under_way, undone, body.wants_usage
            )
        return Completion(question, self._asker, self._under_way, undone)

    def _begin(self, visit: Visit, body: ChatRequest, received_ns: int) -> Question:
        """Send a question to the engine.

        Raises:
            FieldError, MissingError, PictureError, QuestionError, QuestionTooLongError: the request
                is wrong.
            UnknownSceneError: the scene is not held.
            RiskError: the answer is riskier than the caller accepts.
            EngineUnavailableError, OverloadedError: it cannot be answered now.
        """
        self._models.require(body.model)
        body.check()
        about, text = subject.read(body.messages, self._limits)
        limit = body.tokens(self._limits.max_new_tokens)
        self._asker.asked("http", visit.request_id)
        made = Computation(visit.request_id, 0, text, received_ns)
        made.owner, made.rank = owner_of(visit.caller), body.rank
        made.trace = self._asker.trace(visit.context, visit.request_id, visit.request_id)
        scene: HeldScene | None = None
        risk: float | None = 0.0
        if isinstance(about, subject.PictureFile):
            made.frame_number = next(self._pictures) % (1 << 32)
            asked = Application(picture_session(visit.caller.tenant, visit.caller.name))
            self._asker.begin(asked, made, limit, about.file)
        else:
            scene = self._held.find(visit.caller, about)
            risk = scene.risk_of(text)
            require_risk(scene, risk, body.max_risk)
            made.frame_number, made.distortion = scene.frame_number, scene.distortion
            made.fallback, made.warnings = scene.fallback, list(scene.warnings)
            made.moments_score = scene.moments_score
            self._asker.begin(asked_about(scene), made, limit)
        return Question(made, scene, risk, body.model, limit, tuple(body.stops), body.ignored)

    def _undone(self, caller: Caller, key: str | None) -> None:
        """Called if there will be no answer: the next request with the key starts again."""
        if key is not None:
            self._idempotency.forget(caller, key)
