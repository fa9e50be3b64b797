"""Chat completions, as OpenAI's own client sees them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from cloud_server.api.chat_response import ChatChunk, ChatCompletion
from tests.cloud_server.api.over_http import asking, data_url


def test_a_question_about_the_newest_scene_is_answered_with_usage_and_fidelity(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            made = await it.ai.chat.completions.create(
                model=it.model, messages=it.about("count 3"), max_tokens=32
            )
            assert made.choices[0].message.content == "0 1 2"
            assert made.choices[0].finish_reason == "stop"
            assert made.usage is not None and made.usage.completion_tokens == 3
            bridge = made.to_dict()["bridge"]
            assert isinstance(bridge, dict)
            assert (bridge["scene"], bridge["device"]) == (it.scene, it.device)
            assert bridge["point"] == "fp8" and bridge["bundle"]["id"] == "fake"
            assert bridge["distortion"]["quantize"] > 0 and bridge["age_s"] >= 0
            assert bridge["timings_ms"]["total"] >= bridge["timings_ms"]["first_token"] > 0
            raw = (await it.post(it.body("count 3"))).json()
            ChatCompletion.model_validate(raw, strict=True)

    asyncio.run(work())


def test_a_scene_is_named_by_device_by_id_or_by_a_url_that_every_client_can_send(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            assert (await it.edge.say("", seed=2)).HasField("accepted")
            names = [
                it.about("count 1", at=it.scene),
                it.looking_at(f"bridge://{it.device}/{it.scene}", "count 1"),
            ]
            for messages in names:
                made = await it.ai.chat.completions.create(model=it.model, messages=messages)
                assert made.to_dict()["bridge"]["scene"] == it.scene  # type: ignore[index]
            for messages in (
                it.about("count 1"),
                it.looking_at(f"bridge://{it.device}/latest", "count 1"),
                it.looking_at(f"bridge://local/{it.device}/latest", "count 1"),
            ):
                made = await it.ai.chat.completions.create(model=it.model, messages=messages)
                assert made.to_dict()["bridge"]["scene"] != it.scene  # type: ignore[index]

    asyncio.run(work())


def test_a_stream_says_the_same_as_the_whole_answer_and_ends_with_done(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            async with it.ai.chat.completions.stream(
                model=it.model,
                messages=it.about("count 5"),
                stream_options={"include_usage": True},
            ) as stream:
                async for _ in stream:
                    pass
                last = await stream.get_final_completion()
            assert (last.choices[0].message.content or "").split() == list("01234")
            assert last.usage is not None and last.usage.completion_tokens == 5
            lines = (await it.post(it.body("count 2", stream=True))).text.split("\n\n")
            assert lines[-2:] == ["data: [DONE]", ""]
            chunks = [
                ChatChunk.model_validate_json(line.removeprefix("data: "), strict=True)
                for line in lines[:-2]
            ]
            assert chunks[0].choices[0].delta.role == "assistant"
            assert chunks[-1].choices[0].finish_reason == "stop"
            assert chunks[-1].bridge is not None and chunks[-1].bridge.scene == it.scene
            assert len({chunk.id for chunk in chunks}) == 1
            assert all(chunk.usage is None for chunk in chunks), "nobody asked for it"

    asyncio.run(work())


def test_a_stop_sequence_ends_the_answer_before_it_and_frees_the_engine(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            assert await it.text("count 9", stop="3 ") == "0 1 2 "
            assert await it.text("count 9", stop=["x", "1 2"]) == "0 "
            assert await it.text("count 3", stop=["3"]) == "0 1 2"
            stream = await it.ai.chat.completions.create(
                model=it.model, messages=it.about("count 9"), stop=["2 3"], stream=True
            )
            pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
            assert "".join(pieces) == "0 1 "

            async def idle() -> bool:
                return await it.server.metric("queue_depth") == 0

            await it.server.until(idle)

    asyncio.run(work())


def test_the_longest_answer_is_the_callers_but_never_above_the_services(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths, max_new_tokens=6) as it:
            made = await it.ai.chat.completions.create(
                model=it.model, messages=it.about("count 6"), max_tokens=4000
            )
            assert made.choices[0].finish_reason == "length"
            made = await it.ai.chat.completions.create(
                model=it.model, messages=it.about("count 2"), max_completion_tokens=2, max_tokens=4
            )
            assert made.choices[0].finish_reason == "length"

    asyncio.run(work())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"temperature": 0.7}, "temperature"),
    ({"top_p": 0.5}, "top_p"),
    ({"logprobs": True}, "logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [None]}, "stop[0]"),
    ({"store": True}, "store"),
    ({"service_tier": "scale"}, "service_tier"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"extra_body": {"max_risk": 2}}, "max_risk"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": "hello"}]}, "messages[0].content"),
]


def test_what_the_model_cannot_honour_is_refused_by_the_fields_name(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            part = it.about("?")[0]["content"][0]
            text = {"type": "text", "text": "?"}
            user = {"role": "user", "content": [part, text]}
            http = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
            more: list[tuple[list[Any], str]] = [
                ([user, {"role": "system", "content": "be brief"}], "messages[0]"),
                ([{"role": "system", "content": [part]}, user], "messages[0].content"),
                ([user, {"role": "assistant", "content": "yes"}, user], "messages[0]"),
                ([user, user], "messages[0]"),
                (
                    [{"role": "user", "content": [{"type": "input_audio"}]}],
                    "messages[0].content[0]",
                ),
                (
                    [{"role": "user", "content": [text, {"type": "image_url", "image_url": "x"}]}],
                    "messages[0].content[1].image_url",
                ),
                (
                    [{"role": "user", "content": [{"type": "scene"}]}],
                    "messages[0].content[0].device",
                ),
                ([{"role": "user", "content": [part, part, text]}], "messages[0].content"),
                ([{"role": "user", "content": [text]}], "messages[0].content"),
                (
                    [{"role": "user", "content": [http, text]}],
                    "messages[0].content[0].image_url.url",
                ),
                (
                    it.looking_at("bridge://UPPER/latest", "?"),
                    "messages[0].content[0].image_url.url",
                ),
            ]
            every = [*REFUSED, *(({"messages": messages}, where) for messages, where in more)]
            for fields, where in every:
                with pytest.raises(openai.BadRequestError) as failure:
                    await it.ai.chat.completions.create(
                        **{"model": it.model, "messages": it.about("count 1")} | fields
                    )
                assert failure.value.param == where, failure.value
            for fields in ({"temperature": 0}, {"temperature": 1, "top_p": 1}, {"n": 1, "seed": 7}):
                assert await it.text("count 1", **fields) == "0"
            assert await it.text("count 1", extra_body={"unheard_of": [1]}) == "0"

    asyncio.run(work())


def test_instructions_come_before_the_question(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            named = it.looking_at(f"bridge://{it.device}/latest", "3")
            for role, content in (
                ("system", "count"),
                ("developer", [{"type": "text", "text": "count"}]),
            ):
                messages: Any = [{"role": role, "content": content}, *named]
                made = await it.ai.chat.completions.create(model=it.model, messages=messages)
                assert made.choices[0].message.content == "0 1 2"
            blank: Any = [{"role": "system", "content": "count 3"}, *it.about(" ")]
            with pytest.raises(openai.BadRequestError, match="blank"):
                await it.ai.chat.completions.create(model=it.model, messages=blank)
            long: Any = [{"role": "system", "content": "x" * 600}, *it.about("?")]
            with pytest.raises(openai.BadRequestError, match="with its instructions"):
                await it.ai.chat.completions.create(model=it.model, messages=long)

    asyncio.run(work())


def test_an_answer_names_the_fields_that_had_no_effect(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            made = await it.ai.chat.completions.create(
                model=it.model,
                messages=it.about("count 1"),
                temperature=1,
                user="anna",
                metadata={"room": "3"},
                parallel_tool_calls=False,
                service_tier="priority",
                extra_body={"\u2028": 1, "x" * 100: 2},
            )
            bridge: Any = made.to_dict()["bridge"]
            assert bridge["ignored"] == sorted(
                ["temperature", "user", "metadata", "parallel_tool_calls", "\u2028", "x" * 64]
            )
            many = await it.post(it.body("count 1", **{str(i): i for i in range(500)}))
            assert len(many.json()["bridge"]["ignored"]) == 32
            half = await it.post_text(json.dumps(it.body("?", half=1)).replace("half", "\\ud800"))
            assert (half.status_code, half.json()["error"]["code"]) == (400, "invalid_value")
            made = await it.ai.chat.completions.create(
                model=it.model, messages=it.about("count 1"), temperature=0, seed=4
            )
            assert made.to_dict()["bridge"]["ignored"] == []  # type: ignore[index]

    asyncio.run(work())


def test_text_that_utf_8_cannot_write_is_refused_before_the_engine(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            body = json.dumps(it.body("say HALF"))
            for half in ("\\ud83d", "\\udd25\\ud83d"):
                reply = await it.post_text(body.replace("HALF", half))
                assert (reply.status_code, reply.json()["error"]["code"]) == (400, "question")
            whole = body.replace("say HALF", "\\ud83d\\udd25")
            assert (await it.post_text(whole)).status_code == 200
            for url in ("data:image/png;base64,é", "data:image/png;base64,\ud800"):
                part = {"type": "image_url", "image_url": {"url": url}}
                messages = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
                reply = await it.post_text(json.dumps({"model": it.model, "messages": messages}))
                assert (reply.status_code, reply.json()["error"]["code"]) == (400, "picture")

    asyncio.run(work())


def test_errors_map_to_the_clients_own_exceptions(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            with pytest.raises(openai.NotFoundError) as no_scene:
                await it.ai.chat.completions.create(
                    model=it.model, messages=it.about("?", device="nobody")
                )
            assert no_scene.value.code == "unknown_scene"
            with pytest.raises(openai.NotFoundError):
                await it.ai.chat.completions.create(model="gpt-9", messages=it.about("?"))
            with pytest.raises(openai.BadRequestError) as blank:
                await it.text(" ")
            assert blank.value.code == "question"
            with pytest.raises(openai.BadRequestError) as refused:
                await it.text("no")
            assert refused.value.code == "question", "the engine's own refusal"
            with pytest.raises(openai.UnprocessableEntityError) as risk:
                await it.text("count 1", extra_body={"max_risk": 0.2})
            assert risk.value.code == "risk"
            assert await it.text("count 1", extra_body={"max_risk": 1}) == "0"
            with pytest.raises(openai.InternalServerError) as gone:
                await it.text("die")
            assert gone.value.code == "engine_unavailable"
            assert int(gone.value.response.headers["retry-after"]) >= 1

    asyncio.run(work())


def test_a_picture_in_the_request_is_answered_by_the_large_model_and_not_held(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths, max_picture_bytes=10_000) as it:
            for kind in ("PNG", "JPEG", "WEBP"):
                made = await it.ai.chat.completions.create(
                    model=it.model, messages=it.looking_at(data_url(kind), "count 2")
                )
                assert made.choices[0].message.content == "0 1"
                bridge: Any = made.to_dict()["bridge"]
                assert (bridge["scene"], bridge["point"]) == (None, "picture")
                assert bridge["bundle"] is None and bridge["risk"] == 0
            assert len((await it.http.get("/v1/scenes")).json()["data"]) == 1
            for url in (
                "data:image/png;base64,%%%",
                "data:image/png;base64,",
                "data:image/png;base64," + "A" * 20_000,
                "data:text/html;base64,AAAA",
            ):
                with pytest.raises(openai.BadRequestError):
                    await it.ai.chat.completions.create(
                        model=it.model, messages=it.looking_at(url, "count 2")
                    )

    asyncio.run(work())


def test_a_client_that_leaves_ends_its_question(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            for count, stream in enumerate((False, True)):
                body = json.dumps(it.body("hold", stream=stream)).encode()
                reader, writer = await asyncio.open_connection("127.0.0.1", it.server.api_port)
                writer.write(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                    b"content-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%s" % (len(body), body)
                )

                async def waits() -> bool:
                    return await it.server.metric("running_requests") == 1

                await it.server.until(waits)
                writer.close()
                await writer.wait_closed()

                async def free(left: int = count + 1) -> bool:
                    return (
                        await it.server.metric('left_requests_total{how="cancelled"}') == left
                        and await it.server.metric("queue_depth") == 0
                        and await it.server.metric("running_requests") == 0
                    )

                await it.server.until(free)

    asyncio.run(work())


def test_a_repeated_key_gets_the_first_answer_also_while_that_is_being_made(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            key = {"idempotency-key": "one"}
            first = asyncio.create_task(it.post(it.body("hold"), **key))

            async def waits() -> bool:
                return await it.server.metric("running_requests") == 1

            await it.server.until(waits)
            second = asyncio.create_task(it.post(it.body("hold"), **key))

            async def joined() -> bool:
                return await it.server.metric("joined_requests_total") == 1

            await it.server.until(joined)
            await it.text("release")
            one, two = (await first).json(), (await second).json()
            assert one["choices"] == two["choices"] and one["id"] == two["id"]
            (await it.edge.say("", seed=2))  # `latest` is another scene now
            three = (await it.post(it.body("hold"), **key)).json()
            assert (three["id"], three["bridge"]["scene"]) == (one["id"], one["bridge"]["scene"])
            assert await it.server.metric("idempotency_memory_bytes") > 1024
            other = await it.post(it.body("count 1"), **key)
            assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
            streamed = await it.post(it.body("count 2", stream=True), **{"idempotency-key": "two"})
            again = await it.post(it.body("count 2", stream=True), **{"idempotency-key": "two"})
            assert len(streamed.text) > 200 and "data: [DONE]" in again.text
            assert streamed.text.split('"bridge"')[0] == again.text.split('"bridge"')[0], (
                "the scene's age differs, nothing else"
            )

    asyncio.run(work())


def test_a_key_of_a_request_that_failed_may_be_used_again(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with asking(paths) as it:
            for _ in range(2):
                failed = await it.post(it.body("no"), **{"idempotency-key": "one"})
                assert failed.status_code == 400
            assert await it.server.metric("joined_requests_total") == 0
            answered = await it.post(it.body("count 1"), **{"idempotency-key": "one"})
            assert answered.status_code == 200

    asyncio.run(work())
