"""Reads protobuf messages so that a digest over their values covers every bit.

Any encoding that protobuf allows is read: fields in any order, default values written out or left
out, varints longer than needed. Parts that a plain reader would skip, overwrite or cut off are
refused and named: unknown fields, a field twice, bits above a field's 32. So two accepted encodings
that differ by one bit never hold the same values.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

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
    return _read(memoryview(raw), kind, kind.DESCRIPTOR.name)


def _read(raw: memoryview, kind: Any, path: str) -> Any:
    descriptor: Descriptor = kind.DESCRIPTOR
    values: dict[str, Any] = {}
    order: list[int] = []
    written_out = ""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at, f"a field's tag in {path}", _LONGEST_PREFIX)
        field = descriptor.fields_by_number.get(tag >> 3)
        if field is None:
            has = ", ".join(f"{entry.number} {entry.name}" for entry in descriptor.fields)
            raise FrameMalformedError(
                f"{path} has no field {tag >> 3}: it has {has}; send no others"
            )
        name = f"{path}.{field.name}"
        if field.name in values:
            raise FrameMalformedError(f"{name} is written twice: write it once")
        if tag & 7 != _WIRE_TYPES[field.type]:
            raise FrameMalformedError(
                f"{name} is written with wire type {tag & 7}: write it with "
                f"{_WIRE_TYPES[field.type]}, as {_type(field)}"
            )
        value, at = _value(raw, at, field, name)
        if not value and field.type != field.TYPE_MESSAGE:
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


def _value(raw: memoryview, at: int, field: FieldDescriptor, name: str) -> tuple[Any, int]:
    """A field's value and the offset behind it."""
    if _WIRE_TYPES[field.type] == _VARINT:
        return _varint(raw, at, name, _LONGEST_VALUE)
    size, at = _varint(raw, at, f"the length of {name}", _LONGEST_PREFIX)
    if size > len(raw) - at:
        raise FrameMalformedError(f"{name} has {size} bytes by its length, {len(raw) - at} follow")
    part = raw[at : at + size]
    if field.type == field.TYPE_MESSAGE:
        return _read(part, field.message_type._concrete_class, name), at + size
    if field.type == field.TYPE_BYTES:
        return bytes(part), at + size
    try:
        return str(part, "utf-8"), at + size
    except UnicodeDecodeError as error:
        raise FrameMalformedError(f"{name} is not valid UTF-8: {error}") from error


def _varint(raw: memoryview, at: int, what: str, longest: int) -> tuple[int, int]:
    value = 0
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
