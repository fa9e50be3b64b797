"""Errors survive the way to the edge, and junk for numbers is understood."""

from __future__ import annotations

import pytest

from protos import errors
from protos.errors import ERRORS, BridgeError, from_code
from protos.refusals import error_in, refused


@pytest.mark.parametrize("cls", ERRORS.values(), ids=lambda cls: cls.name)
def test_an_error_survives_the_wire(cls: type[BridgeError]) -> None:
    message = refused(cls("what was wrong"))
    again = from_code(message.code, message.message)
    assert type(again) is cls
    assert str(again) == "what was wrong"
    assert (message.name, message.retryable) == (cls.name, cls.retryable)


@pytest.mark.parametrize("junk", ["9" * 5000, "9" * 400, "-1", "", "1e3", "\u00b2", "\u0663", b"7"])
def test_a_server_that_writes_junk_for_numbers_is_still_understood(junk: str | bytes) -> None:
    assert error_in([("nb-error-code", junk)], "m") is None
    error = error_in([("nb-error-code", "501"), ("nb-retry-after-ms", junk)], "m")
    assert isinstance(error, errors.OverloadedError) and error.retry_after_s == 0.0
