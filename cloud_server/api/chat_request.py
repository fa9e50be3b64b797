"""The fields of a chat completion request, in OpenAI's form, and the values that are supported.

The large model answers one question about one scene or picture, by greedy decoding. So a request
has one user message, and instructions before it; a history, tools and sampling are refused. Fields
that are not named here have no effect, and the answer says so (`ignored`).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from cloud_server.api.failures import FieldError
from cloud_server.api.paging import NAME
from cloud_server.api.whole import WHOLE
from cloud_server.frontend.admission.turns import ALARM, BACKGROUND, NORMAL

_UNSUPPORTED = "unsupported_value"
_MOST_STOPS, _LONGEST_STOP = 4, 256
_MOST_NAMES, _LONGEST_NAME = 32, 64
_RANKS = {"auto": NORMAL, "default": NORMAL, "priority": ALARM, "flex": BACKGROUND}
"""Class of priority by OpenAI's name of it."""


def _only(*values: object, null: bool = True) -> WithJsonSchema:
    """JSON schema of a field with few supported values; `ChatRequest.check` refuses the others."""
    return WithJsonSchema({"enum": [*values, *([None] if null else [])]})


_ONE_STOP = {"type": "string", "minLength": 1, "maxLength": _LONGEST_STOP}
_STOP_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            _ONE_STOP,
            {"type": "array", "items": _ONE_STOP, "maxItems": _MOST_STOPS},
            {"type": "null"},
        ]
    }
)


class TextPart(BaseModel):
    """A part of the question."""

    type: Literal["text"]
    text: str


class ScenePart(BaseModel):
    """Names a scene that the service holds."""

    type: Literal["scene"]
    device: str = Field(description="name of the device that sent it", pattern=NAME)
    at: str = Field("latest", description="`latest`, or the id of a scene", max_length=64)
    tenant: str | None = Field(
        None, description="the device's tenant, for operators of the service", pattern=NAME
    )


class ImageUrl(BaseModel):
    """The address of a scene, or a picture itself."""

    url: str = Field(
        description="`bridge://DEVICE/latest`, `bridge://DEVICE/SCENE_ID` (operators of the "
        "service: `bridge://TENANT/DEVICE/…`), or a picture as `data:image/png;base64,…`"
    )


class ImagePart(BaseModel):
    """A held scene or a picture, in the form of OpenAI's clients."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part: TypeAlias = Annotated[TextPart | ScenePart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    """One message. The last is the user's, and the only one of that role."""

    role: Literal["user", "system", "developer", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = Field(False, description="send `usage` before the end")


class ResponseFormat(BaseModel):
    """The form of the answer."""

    type: Annotated[str, _only("text", null=False)] = "text"


class ChatRequest(BaseModel):
    """A question about one scene or picture."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="an id that `GET /v1/models` lists", max_length=256)
    messages: list[Message] = Field(
        description="one user message: text parts, which are the question, and one scene or "
        "picture. System messages before it are put before the question. A history is refused"
    )
    stream: bool | None = Field(None, description="send the answer token by token")
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        None, description="longest answer in tokens; the service's own bound applies too"
    )
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        None, description="newer name of `max_tokens`; it wins if both are given"
    )
    stop: Annotated[str | list[str] | None, _STOP_SCHEMA] = Field(
        None, description="up to four texts; the answer ends before the first of them"
    )
    n: Annotated[int | None, WHOLE, _only(1)] = Field(None, description="1")
    temperature: Annotated[float | None, _only(0, 1)] = Field(
        None,
        description="0 or 1 (the usual value). Answers are greedy either way, so the same question "
        "about the same scene has the same answer",
    )
    top_p: Annotated[float | None, _only(1)] = Field(None, description="1")
    seed: Annotated[int | None, WHOLE] = Field(None, description="any; answers are greedy")
    presence_penalty: Annotated[float | None, _only(0)] = Field(None, description="0")
    frequency_penalty: Annotated[float | None, _only(0)] = Field(None, description="0")
    logit_bias: Annotated[dict[str, float] | None, _only({})] = Field(None, description="empty")
    logprobs: Annotated[bool | None, _only(False)] = Field(None, description="false")
    top_logprobs: Annotated[int | None, WHOLE, _only(0)] = Field(None, description="0")
    response_format: ResponseFormat | None = Field(None, description="of type `text`")
    tools: Annotated[list[object] | None, _only([])] = Field(None, description="empty")
    functions: Annotated[list[object] | None, _only([])] = Field(None, description="empty")
    modalities: Annotated[list[str] | None, _only(["text"])] = Field(None, description="text")
    store: Annotated[bool | None, _only(False)] = Field(None, description="false")
    service_tier: Annotated[str | None, _only(*_RANKS)] = Field(
        None,
        description="`priority` for an alarm, `flex` for what may wait; the others are usual",
    )
    max_risk: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="refuse (422, `risk`) if the answer's risk is higher, or is not known",
    )

    @property
    def stops(self) -> list[str]:
        """The stop sequences."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def wants_usage(self) -> bool:
        """Whether a stream sends `usage`."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def rank(self) -> int:
        """Its class of priority."""
        return _RANKS[self.service_tier or "auto"]

    @property
    def ignored(self) -> list[str]:
        """Names of the fields that have no effect, some of them if there are many."""
        names = [*(self.model_extra or ()), *(["temperature"] if self.temperature else [])]
        plain = {name.encode(errors="replace").decode()[:_LONGEST_NAME] for name in names}
        return sorted(plain)[:_MOST_NAMES]

    def tokens(self, most: int) -> int:
        """Longest answer in tokens, at most `most`."""
        wished = self.max_completion_tokens or self.max_tokens or most
        return min(wished, most)

    def check(self) -> None:
        """Refuse fields that are not supported.

        Raises:
            FieldError: names the field.
        """
        if self.service_tier is not None and self.service_tier not in _RANKS:
            raise FieldError(
                "service_tier",
                f"service_tier is one of {', '.join(_RANKS)}",
                _UNSUPPORTED,
            )
        if self.n not in (None, 1):
            raise FieldError(
                "n", f"n is {self.n}: one answer is made for each request", _UNSUPPORTED
            )
        if self.temperature not in (None, 0, 1):
            raise FieldError(
                "temperature",
                f"temperature is {self.temperature:g}: answers are greedy; leave it out, or give 0",
                _UNSUPPORTED,
            )
        if self.top_p not in (None, 1):
            raise FieldError(
                "top_p", f"top_p is {self.top_p:g}: answers are greedy; leave it out", _UNSUPPORTED
            )
        for name in ("presence_penalty", "frequency_penalty", "logit_bias", "logprobs"):
            if getattr(self, name):
                raise FieldError(name, f"{name} is not supported: leave it out", _UNSUPPORTED)
        for name in ("top_logprobs", "tools", "functions", "store"):
            if getattr(self, name):
                raise FieldError(name, f"{name} is not supported: leave it out", _UNSUPPORTED)
        if self.response_format is not None and self.response_format.type != "text":
            raise FieldError(
                "response_format", "only the response format 'text' is supported", _UNSUPPORTED
            )
        if self.modalities not in (None, ["text"]):
            raise FieldError("modalities", "only the modality 'text' is supported", _UNSUPPORTED)
        self._check_stops()

    def _check_stops(self) -> None:
        stops = self.stops
        if len(stops) > _MOST_STOPS:
            raise FieldError("stop", f"{len(stops)} stop sequences, at most {_MOST_STOPS} may be")
        if not all(0 < len(stop) <= _LONGEST_STOP for stop in stops):
            raise FieldError(
                "stop", f"a stop sequence has 1 to {_LONGEST_STOP} characters; leave out empty ones"
            )
