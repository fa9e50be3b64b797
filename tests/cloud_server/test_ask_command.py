"""`cloud-server ask`, as someone types it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cloud_server.api.over_http import asking
from tests.cloud_server.secured import secured


async def typed(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """What a command line returns and prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cloud_server",
        "ask",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def test_the_answer_goes_to_standard_output_and_what_it_rests_on_to_standard_error(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            url = ("--url", f"http://127.0.0.1:{it.server.api_port}")
            code, out, err = await typed(it.device, "count 3", *url)
            assert (code, out) == (0, "0 1 2 \n"), err
            assert f"scene {it.scene}" in err and "risk unknown" in err and "bundle fake 1" in err
            code, out, err = await typed(it.device, "count 2", "--json", "--at", it.scene, *url)
            told = json.loads(out)
            assert (told["answer"], told["usage"]["completion_tokens"]) == ("0 1 ", 2)
            assert told["bridge"]["scene"] == it.scene and not err
            for arguments, exit_code, name in (
                (("nobody", "?"), 33, "unknown_scene"),
                ((it.device, " "), 40, "question"),
                ((it.device, "count 1", "--max-risk", "0.1"), 43, "risk"),
                ((it.device, "no"), 40, "question"),
                ((it.device, "die"), 51, "engine_unavailable"),
            ):
                code, out, err = await typed(*arguments, *url)
                assert (code, out) == (exit_code, ""), (arguments, err)
                assert err.startswith(f"cloud-server: {name}: "), err

    asyncio.run(work())


@pytest.mark.slow
def test_a_key_in_a_file_or_the_environment_and_the_services_own_roots_are_used(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def work() -> None:
        async with secured(paths, tmp_path / "service") as it:
            device = it.trusting(await it.enrol(it.premises.code()))
            edge = await it.edge(device)
            assert (await edge.say("", seed=1)).HasField("accepted")
            url = f"https://127.0.0.1:{it.ports['api_port']}"
            key, file = it.premises.key(), tmp_path / "key"
            file.write_text(key + "\n")
            await it.settled()
            roots = ("--directory", str(it.premises.directory))
            for arguments, environment in (
                (("--url", url, "--key-file", str(file), *roots), {}),
                (roots, {"NEURAL_BRIDGE_URL": url, "NEURAL_BRIDGE_KEY": key}),
            ):
                code, out, err = await typed("gate-3", "count 1", *arguments, **environment)
                assert (code, out) == (0, "0 \n"), err
                assert key not in err
            code, _, err = await typed("gate-3", "count 1", "--url", url, *roots)
            assert (code, "unauthenticated" in err) == (70, True), err
            code, _, err = await typed("gate-3", "count 1", "--url", url, "--key-file", str(file))
            assert (code, "offline" in err) == (52, True), "the system does not trust our root"

    asyncio.run(work())


@pytest.mark.quick(1)
@pytest.mark.parametrize("url", ["ftp://x", "https://", "localhost:8443", "http://x:99999"])
def test_a_malformed_url_is_refused(url: str) -> None:
    code, _, err = asyncio.run(typed("gate-3", "?", "--url", url))
    assert code == 10 and "config" in err
