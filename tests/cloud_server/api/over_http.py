"""A front end with an HTTP port, an engine that has no model, and OpenAI's own client."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai

from tests.cloud_server import stage
from tests.cloud_server.front_end import Edge, Running, running


class Asking:
    """A running service, a device with one held scene, and clients."""

    def __init__(
        self, server: Running, edge: Edge, http: httpx.AsyncClient, ai: openai.AsyncOpenAI
    ) -> None:
        self.server, self.edge, self.http, self.ai = server, edge, http, ai
        self.device = self.scene = self.model = ""

    async def look(self) -> None:
        """Learn the names of what is there."""
        (newest, *_) = (await self.http.get("/v1/scenes")).json()["data"]
        self.device, self.scene = newest["device"], newest["id"]
        self.model = (await self.ai.models.list()).data[0].id

    def about(self, question: str, **scene: str) -> list[Any]:
        """Messages with one question about a scene; the device's newest by default."""
        part = {"type": "scene", "device": self.device} | scene
        return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]

    def looking_at(self, url: str, question: str) -> list[Any]:
        """Messages with one question about what a URL names."""
        part = {"type": "image_url", "image_url": {"url": url}}
        return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]

    def body(self, question: str, **fields: Any) -> dict[str, Any]:
        """The body of a request."""
        return {"model": self.model, "messages": self.about(question)} | fields

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        """Ask."""
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    async def post_text(self, body: str) -> httpx.Response:
        """Ask with a body that only this test's author would write."""
        return await self.http.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )

    async def text(self, question: str, **fields: Any) -> str:
        """The answer's text."""
        made = await self.ai.chat.completions.create(
            model=self.model, messages=self.about(question), **fields
        )
        return made.choices[0].message.content or ""


@asynccontextmanager
async def asking(paths: dict[str, Any], **settings: Any) -> AsyncIterator[Asking]:
    async with running(paths, api_port=0, **settings) as server:
        edge = await server.edge()
        assert (await edge.say("", seed=1)).HasField("accepted")
        url = f"http://127.0.0.1:{server.api_port}"
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as http,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as ai,
        ):
            made = Asking(server, edge, http, ai)
            await made.look()
            yield made


def data_url(kind: str = "PNG") -> str:
    """A picture in a URL."""
    raw = base64.b64encode(stage.picture_file(3, kind)).decode()
    return f"data:image/{kind.lower()};base64,{raw}"
