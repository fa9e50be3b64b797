"""OpenAI's client for Node.js against the HTTP port."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cloud_server import stage
from tests.cloud_server.api.over_http import Asking, asking
from tests.examples.conftest import FOLDER, REQUIRE


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "config.json").write_text("{}")
    stage.describe(tmp_path)
    return {"model": tmp_path, "bundles": [tmp_path]}


@pytest.fixture
def openai_node(node: str) -> str:
    """Node.js, if OpenAI's client is there."""
    if not (FOLDER / "node_modules" / "openai").is_dir():
        missing = "examples/node lacks OpenAI's client (make node)"
        (pytest.fail if os.environ.get(REQUIRE) else pytest.skip)(missing)
    return node


async def ask(node: str, it: Asking, *arguments: str) -> tuple[int, list[Any], str]:
    process = await asyncio.create_subprocess_exec(
        node,
        "ask.mjs",
        *arguments,
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ
        | {
            "OPENAI_BASE_URL": f"http://127.0.0.1:{it.server.api_port}/v1",
            "OPENAI_API_KEY": "any",
        },
    )
    out, err = await process.communicate()
    return process.returncode or 0, [json.loads(line) for line in out.splitlines()], err.decode()


def test_openais_node_client_works_unchanged(openai_node: str, paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            code, (whole, streamed), err = await ask(openai_node, it, it.device, "count 4")
            assert code == 0, err
            assert whole["answer"] == "0 1 2 3"
            assert whole["bridge"]["scene"] == it.scene
            assert streamed["streamed"].split() == list("0123") and streamed["pieces"] == 4
            assert streamed["usage"]["completion_tokens"] == 4

    asyncio.run(work())


@pytest.mark.slow
def test_errors_are_those_of_openais_node_client(openai_node: str, paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            for arguments, kind, told in (
                (("nobody", "?"), "NotFoundError", "unknown_scene"),
                ((it.device, "no"), "BadRequestError", "question"),
            ):
                code, _, err = await ask(openai_node, it, *arguments)
                failure = json.loads(err)
                assert (code, failure["kind"], failure["code"]) == (1, kind, told)
                assert len(failure["id"]) == 32, "the request's id"

    asyncio.run(work())
