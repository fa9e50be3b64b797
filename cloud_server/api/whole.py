"""Whole numbers in JSON: 5.0 counts as one."""

from __future__ import annotations

from pydantic import BeforeValidator


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Annotation for whole numbers in strict models; it comes after their bounds."""
