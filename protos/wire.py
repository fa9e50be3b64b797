"""Reads protobuf messages so that a digest over their values covers every bit.

Any encoding that protobuf allows is read: fields in any order, default values written out or left
out, varints longer than needed. Parts that a plain reader would skip, overwrite or cut off are
refused and named: unknown fields, a field twice, bits above a field's 32. So two accepted encodings
that differ by one bit never hold the same values.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from protos.errors import FrameMalformedError, FrameTooLargeError

_VARINT, _BYTES = 0, 2
_MOST = 0xFFFFFFFF
_LONGEST_PREFIX, _LONGEST_VALUE = 5, 10
"""Most bytes of a tag or a length, and of a value, that protobuf's own readers take."""
_WIRE_TYPES = {
    FieldDescriptor.TYPE_UINT32: _VARINT,
    FieldDescriptor.TYPE_BYTES: _BYTES,
    FieldDescriptor.TYPE_STRING: _BYTES,
    FieldDescriptor.TYPE_MESSAGE: _BYTES,
}
"""Wire type of each field type that a request with a digest has."""


def parse_exactly(raw: bytes, most: int, kind: Any) -> Any:
    """Read a message; every byte is checked.

    Args:
        raw: As received.
        most: Longest message that is read, bytes.
        kind: The message's class; its fields are uint32, bytes, strings and such messages.

    Raises:
        FrameTooLargeError: More than `most` bytes.
        FrameMalformedError: Not a `kind`; the message names the field and says how to write it.
    """
    if len(raw) > most:
        raise FrameTooLargeError(f"request of {len(raw)} bytes, at most {most} are accepted")
    message = _canonical(raw, kind)
    return _read(raw, kind, kind.DESCRIPTOR.name) if message is None else message


def _canonical(raw: bytes, kind: Any) -> Any:
    """The message, if the bytes are just those that protobuf writes for its values; else None."""
    try:
        message = kind.FromString(raw)
    except DecodeError:
        return None
    message.DiscardUnknownFields()
    return message if message.SerializeToString() == raw else None


@dataclass(frozen=True)
class _Field:
    """A field, as far as reading needs it.

    Attributes:
        number: On the wire.
        name: In the message.
        wire: Wire type.
        text: Whether it is a string.
        message: Class of the message that it holds; None for other types.
        descriptor: The rest.
    """

    number: int
    name: str
    wire: int
    text: bool
    message: Any
    descriptor: FieldDescriptor


@functools.cache
def _fields(kind: Any) -> dict[int, _Field]:
    """A message's fields by number."""
    descriptor: Descriptor = kind.DESCRIPTOR
    return {
        entry.number: _Field(
            entry.number,
            entry.name,
            _WIRE_TYPES[entry.type],
            entry.type == entry.TYPE_STRING,
            entry.message_type._concrete_class if entry.type == entry.TYPE_MESSAGE else None,
            entry,
        )
        for entry in descriptor.fields
    }


def _read(raw: bytes, kind: Any, path: str) -> Any:
    fields = _fields(kind)
    values: dict[str, Any] = {}
    order: list[int] = []
    written_out = ""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at, _LONGEST_PREFIX, "a field's tag in", path)
        field = fields.get(tag >> 3)
        if field is None:
            has = ", ".join(f"{entry.number} {entry.name}" for entry in fields.values())
            raise FrameMalformedError(
                f"{path} has no field {tag >> 3}: it has {has}; send no others"
            )
        name = f"{path}.{field.name}"
        if field.name in values:
            raise FrameMalformedError(f"{name} is written twice: write it once")
        if tag & 7 != field.wire:
            raise FrameMalformedError(
                f"{name} is written with wire type {tag & 7}: write it with "
                f"{field.wire}, as {_type(field.descriptor)}"
            )
        value, at = _value(raw, at, field, name)
        if not value and field.message is None:
            written_out = name
        values[field.name] = value
        order.append(field.number)
    # An empty request_id is one bit from an empty question; only their places tell them apart.
    if written_out and order != sorted(order):
        raise FrameMalformedError(
            f"{written_out} is written out with its default value, and the fields are not in "
            "ascending order: leave it out, or write all fields in ascending order"
        )
    return kind(**values)


def _value(raw: bytes, at: int, field: _Field, name: str) -> tuple[Any, int]:
    """A field's value and the offset behind it."""
    if field.wire == _VARINT:
        return _varint(raw, at, _LONGEST_VALUE, "", name)
    size, at = _varint(raw, at, _LONGEST_PREFIX, "the length of", name)
    if size > len(raw) - at:
        raise FrameMalformedError(f"{name} has {size} bytes by its length, {len(raw) - at} follow")
    part = raw[at : at + size]
    if field.message is not None:
        return _read(part, field.message, name), at + size
    if not field.text:
        return part, at + size
    try:
        return str(part, "utf-8"), at + size
    except UnicodeDecodeError as error:
        raise FrameMalformedError(f"{name} is not valid UTF-8: {error}") from error


def _varint(raw: bytes, at: int, longest: int, role: str, name: str) -> tuple[int, int]:
    """A number and the offset behind it; what it is (`role`, `name`) is for errors."""
    if at < len(raw) and raw[at] < 0x80:
        return raw[at], at + 1
    value = 0
    what = f"{role} {name}".lstrip()
    for i in range(longest):
        if at + i >= len(raw):
            raise FrameMalformedError(f"the message ends within {what}")
        byte = raw[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if value > _MOST:
                raise FrameMalformedError(f"{what} is {value}: at most {_MOST} fits its 32 bits")
            return value, at + i + 1
    raise FrameMalformedError(f"{what} is a varint of more than {longest} bytes")


def _type(field: FieldDescriptor) -> str:
    """A field's type as the .proto writes it."""
    if field.type == field.TYPE_MESSAGE:
        return str(field.message_type.name)
    return {
        field.TYPE_UINT32: "uint32",
        field.TYPE_BYTES: "bytes",
        field.TYPE_STRING: "string",
    }[field.type]
