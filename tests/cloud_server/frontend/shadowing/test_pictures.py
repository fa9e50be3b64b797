"""Shadowed pictures for viewers: only of tenants that allow it, bounded, gone with their scene."""

from __future__ import annotations

from cloud_server.engine.jobs import Job
from cloud_server.frontend.shadowing.asked import AskedLately
from cloud_server.frontend.shadowing.pictures import ShadowPicture, ShadowPictures


def _picture(number: int, tenant: str = "acme", size: int = 1000) -> ShadowPicture:
    return ShadowPicture(tenant, "gate-1", "s", number, bytes(size), float(number))


def test_only_tenants_that_allow_it_have_pictures_kept() -> None:
    pictures = ShadowPictures(1 << 20, ("acme",))
    pictures.keep(_picture(1))
    pictures.keep(_picture(2, "globex"))
    assert pictures.of_scene("s", 1) == _picture(1) and pictures.of_scene("s", 2) is None
    assert pictures.newest("acme", "gate-1") == _picture(1)
    assert pictures.newest("globex", "gate-1") is None


def test_the_newest_stay_within_the_bound_and_go_with_their_scene() -> None:
    pictures = ShadowPictures(5000, ("acme",))
    for number in range(10):
        pictures.keep(_picture(number))
        assert pictures.bytes <= 5000
    assert pictures.of_scene("s", 6) is None and pictures.of_scene("s", 9) is not None
    for number in range(10):
        pictures.drop("s", number)
    assert pictures.bytes == 0 and pictures.newest("acme", "gate-1") is None


def _asked(session: str, number: int, question: str) -> Job:
    return Job(1, session, number, "", question, 1, 0)


def test_a_frame_is_asked_its_own_questions_first_then_the_sessions_newest() -> None:
    asked = AskedLately(1 << 20)
    for number, question in ((1, "a"), (2, "b"), (1, "c"), (3, "d"), (3, "")):
        asked.note(_asked("s", number, question))
    asked.note(_asked("other", 1, "not mine"))
    assert asked.about("s", 1, 9) == ["c", "a", "d", "b"] and asked.about("s", 1, 1) == ["c"]
    assert asked.about("nobody", 1, 9) == []


def test_questions_are_remembered_within_the_bound() -> None:
    asked = AskedLately(20_000)
    for number in range(1000):
        asked.note(_asked(f"s{number % 50}", number, "q" * (number % 300)))
        assert 0 <= asked.bytes <= 20_000
    for number in range(1000):
        asked.note(_asked("one", number, f"question {number}"))
    assert len(asked.about("one", 0, 1000)) <= 64 and 0 < asked.bytes <= 20_000
