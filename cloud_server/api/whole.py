"""Whole numbers as JSON has them: 5.0 is one."""

from __future__ import annotations

from pydantic import BeforeValidator


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""For whole numbers of strict models; stands behind their bounds."""
