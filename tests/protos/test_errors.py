"""Errors keep their numbers, names and meaning across versions."""

from __future__ import annotations

import re

import grpc
import pytest

from protos import errors
from protos.errors import ERRORS, BridgeError, from_code

# Published numbers: never change or reuse one. Add new ones at the end of their hundred.
PUBLISHED = {
    101: ("config", 10),
    102: ("source", 11),
    103: ("picture", 12),
    104: ("model", 13),
    105: ("unsupported_model", 14),
    106: ("self_check", 15),
    107: ("degenerate", 16),
    108: ("useless_map", 17),
    109: ("mask", 18),
    110: ("spool", 19),
    201: ("frame_truncated", 20),
    202: ("frame_corrupt", 21),
    203: ("frame_malformed", 22),
    204: ("frame_too_large", 23),
    205: ("unknown_quantizer", 24),
    206: ("non_finite", 25),
    207: ("empty_frame", 26),
    208: ("distortion", 27),
    209: ("unfamiliar", 28),
    301: ("incompatible_layout", 30),
    302: ("bundle_version", 31),
    303: ("unknown_session", 32),
    304: ("unknown_scene", 33),
    305: ("protocol_version", 34),
    306: ("missing_key_frame", 35),
    307: ("no_feedback", 36),
    308: ("frame_number", 37),
    309: ("bundle_gone", 38),
    401: ("question", 40),
    402: ("question_too_long", 41),
    403: ("context", 42),
    404: ("risk", 43),
    405: ("fact", 44),
    406: ("memory_foreign", 45),
    407: ("memory_corrupt", 46),
    408: ("memory_missing", 47),
    501: ("overloaded", 50),
    502: ("engine_unavailable", 51),
    503: ("offline", 52),
    504: ("late", 53),
    505: ("quarantined", 54),
    506: ("dropped", 55),
    507: ("captive_portal", 56),
    601: ("bundle_missing", 60),
    602: ("bundle_corrupt", 61),
    603: ("bundle_layout", 62),
    604: ("bundle_format", 63),
    605: ("signature", 64),
    606: ("package_corrupt", 65),
    607: ("package_format", 66),
    608: ("corpus", 67),
    609: ("fit", 68),
    610: ("disk_full", 69),
    701: ("unauthenticated", 70),
    702: ("forbidden", 71),
    703: ("enrolment", 72),
    704: ("certificate", 73),
    705: ("missing", 74),
    706: ("conflict", 75),
    707: ("state", 76),
    708: ("backup", 77),
    709: ("clock", 78),
    801: ("no_memory", 80),
    802: ("start_timeout", 81),
    803: ("not_allowed_here", 82),
    809: ("update", 89),
}


def test_published_numbers_names_and_exit_codes_never_change() -> None:
    assert {code: (cls.name, cls.exit_code) for code, cls in ERRORS.items()} == PUBLISHED


def test_every_error_class_is_in_the_table_with_its_own_number_name_and_exit_code() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BridgeError) and value is not BridgeError
    }
    assert classes == set(ERRORS.values())
    for attribute in ("code", "name", "exit_code"):
        assert len({getattr(cls, attribute) for cls in classes}) == len(classes)


@pytest.mark.parametrize("cls", ERRORS.values(), ids=lambda cls: cls.name)
def test_every_error_has_a_real_status_a_metric_safe_name_and_a_usable_exit_code(
    cls: type[BridgeError],
) -> None:
    assert cls.grpc_status in grpc.StatusCode.__members__
    assert cls.grpc_status != "OK"
    assert 400 <= cls("").http_status < 600
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.name)
    assert 1 < cls.exit_code < 126
    assert cls.code // 100 == cls.exit_code // 10


def test_a_code_from_a_newer_peer_is_kept_and_not_retried() -> None:
    error = from_code(999, "something new")
    assert type(error) is BridgeError
    assert "999" in str(error) and "something new" in str(error)
    assert not error.retryable


def test_only_errors_that_can_pass_are_retryable() -> None:
    retryable = {cls.name for cls in ERRORS.values() if cls.retryable}
    assert retryable == {
        "unknown_session",
        "missing_key_frame",
        "overloaded",
        "engine_unavailable",
        "offline",
        "captive_portal",
        "state",
        "clock",
    }
