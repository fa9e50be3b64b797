"""Reads the subject of a chat completion (a scene or a picture) and the question."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TypeAlias

from cloud_server.api.chat_request import ImagePart, Message, ScenePart, TextPart
from cloud_server.api.failures import FieldError
from protos.errors import PictureError, QuestionError, QuestionTooLongError
from protos.identity import NAME
from protos.limits import Limits

LATEST = "latest"
_BRIDGE = re.compile(
    rf"bridge://(?:(?P<tenant>{NAME.pattern})/)?(?P<device>{NAME.pattern})/(?P<at>[A-Za-z0-9_-]{{1,64}})"
)
_PICTURE = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.I)
_URLS = (
    "give bridge://DEVICE/latest, bridge://DEVICE/SCENE_ID, or a PNG, JPEG or WebP picture as "
    "data:image/png;base64,…"
)


@dataclass(frozen=True)
class SceneName:
    """The name of a scene in a request.

    Attributes:
        tenant: the device's tenant; None for the caller's own.
        at: `latest` or a scene's id.
    """

    tenant: str | None
    device: str
    at: str


@dataclass(frozen=True)
class PictureFile:
    """A picture that a caller sent."""

    file: bytes


Subject: TypeAlias = "SceneName | PictureFile"


def read(messages: list[Message], limits: Limits) -> tuple[Subject, str]:
    """Read the subject and the question from a chat's messages.

    Instructions (messages of the roles `system` and `developer`) stand before the question: the
    model knows no such role.

    Raises:
        FieldError: there is not exactly one user message with exactly one scene or picture.
        PictureError: a picture is too large, or is not in base64.
        QuestionError, QuestionTooLongError: the question is blank, or too long.
    """
    _require_one_user_message(messages)
    instructions = [
        text
        for index, message in enumerate(messages[:-1])
        for text in _instructions(message, f"messages[{index}].content")
    ]
    where, content = f"messages[{len(messages) - 1}].content", messages[-1].content
    if not isinstance(content, list):
        raise FieldError(
            where,
            "the message names no scene: write its content as parts, one of them "
            '{"type": "scene", "device": NAME} or an image_url of bridge://NAME/latest',
        )
    texts: list[str] = []
    subjects: list[Subject] = []
    for index, part in enumerate(content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, ScenePart):
            subjects.append(SceneName(part.tenant, part.device, part.at))
        else:
            subjects.append(_of_url(part, f"{where}[{index}].image_url.url", limits))
    if len(subjects) != 1:
        raise FieldError(
            where,
            f"the message names {len(subjects) or 'no'} scene{'s' if subjects else ''}: a question "
            "is about one scene or picture",
        )
    return subjects[0], _question(instructions, texts, limits)


def _require_one_user_message(messages: list[Message]) -> None:
    if not messages:
        raise FieldError("messages", "there is no message: send one of the role 'user'")
    for index, message in enumerate(messages):
        last = index == len(messages) - 1
        if message.role not in (("user",) if last else ("system", "developer")):
            raise FieldError(
                f"messages[{index}]",
                "a history is not supported: the model answers one question about one scene. "
                "Send one message of the role 'user', after instructions ('system') if you like",
                "unsupported_value",
            )


def _instructions(message: Message, where: str) -> list[str]:
    content = message.content
    if not isinstance(content, list):
        return [content or ""]
    texts = [part.text for part in content if isinstance(part, TextPart)]
    if len(texts) < len(content):
        raise FieldError(
            where,
            f"a {message.role} message has text only: name the scene in the "
            "message of the role 'user'",
        )
    return texts


def _of_url(part: ImagePart, where: str, limits: Limits) -> Subject:
    url = part.image_url.url
    if found := _BRIDGE.fullmatch(url):
        return SceneName(found["tenant"], found["device"], found["at"])
    if found := _PICTURE.match(url):
        return PictureFile(_decoded(url[found.end() :], limits))
    if re.match("https?:", url, re.I):
        raise FieldError(where, f"the service fetches no URLs: {_URLS}", "unsupported_value")
    raise FieldError(where, f"the URL names no scene and holds no picture: {_URLS}")


def _decoded(text: str, limits: Limits) -> bytes:
    most = limits.max_picture_bytes
    if len(text) > 4 * -(-most // 3):
        raise PictureError(f"the picture is too large: at most {most} bytes are accepted")
    try:
        file = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise PictureError(f"the picture's data URL is not base64: {error}") from error
    if not 0 < len(file) <= most:
        raise PictureError(f"a picture of {len(file)} bytes: 1 to {most} are accepted")
    return file


def _question(instructions: list[str], texts: list[str], limits: Limits) -> str:
    if not "\n".join(texts).strip():
        raise QuestionError("the question is blank: add a part of the type 'text'")
    question = "\n".join([*filter(str.strip, instructions), *texts])
    try:
        size = len(question.encode())
    except UnicodeEncodeError as error:
        raise QuestionError(
            f"character {error.start} of the question is half of a surrogate pair: send text that "
            "UTF-8 can write"
        ) from error
    if size > limits.max_question_bytes:
        told = " with its instructions" if instructions else ""
        raise QuestionTooLongError(
            f"question of {size} bytes{told}, at most {limits.max_question_bytes} are accepted"
        )
    return question
