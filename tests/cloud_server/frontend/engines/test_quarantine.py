"""Suspects and quarantined requests, by their bytes, in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog
from msgspec import structs

from cloud_server.engine.jobs import Job
from cloud_server.frontend.engines.quarantine import Quarantine, digest_of
from protos.errors import EngineUnavailableError, QuarantinedError


def job(number: int, owner: str = "acme/gate", body: bytes = b"frame") -> Job:
    return Job(
        id=number,
        session=f"s{number}",
        frame_number=number,
        request_id=f"{number:016x}",
        question="what ?",
        max_new_tokens=6,
        received_ns=number,
        bundle="b",
        point=1,
        kept=b"\1\0",
        body=body,
        owner=owner,
    )


def quarantine(folder: Path | None = None, most: int = 4) -> Quarantine:
    return Quarantine(folder, structlog.get_logger(), most)


def test_the_digest_ignores_id_session_and_frame_number() -> None:
    held = quarantine()
    held.suspect(job(1))
    assert held.check(job(2, owner="other/gate"))
    assert not held.check(job(1, body=b"another frame"))
    assert not held.check(structs.replace(job(1), question="how many ?"))
    held.clear(job(3))
    assert not held.check(job(1)) and held.suspects == 0


def test_questions_about_held_scenes_are_told_apart_by_their_scene() -> None:
    plain = {"point": -1, "kept": b"", "body": b"", "bundle": ""}
    one, other = (structs.replace(job(n), **plain) for n in (1, 2))
    assert digest_of(one) != digest_of(other)
    assert digest_of(one) == digest_of(structs.replace(one, id=9, request_id="f" * 16))


def test_a_quarantined_request_is_refused_with_its_digest() -> None:
    held = quarantine()
    held.suspect(job(1))
    refusal = held.convict(job(1), "it crashed")
    assert not refusal.retryable and digest_of(job(1)).hex()[:16] in refusal.message
    with pytest.raises(QuarantinedError):
        held.check(job(7))
    assert (len(held), held.suspects) == (1, 0)


def test_kills_from_outside_quarantine_a_request_only_after_several_in_a_row() -> None:
    held, error = quarantine(), EngineUnavailableError("killed")
    for _ in range(20):
        held.suspect(job(1))
        assert held.blame(job(1), error, from_outside=True) is error
        assert held.check(job(1)), "it still runs alone"
        held.clear(job(1))  # the next time it was answered
    held.suspect(job(1))
    told = [held.blame(job(1), error, from_outside=True).retryable for _ in range(4)]
    assert told == [True, True, True, False]
    held.suspect(job(2, body=b"guilty"))
    assert isinstance(held.blame(job(2, body=b"guilty"), error, False), QuarantinedError)


def test_a_tenant_that_fills_the_quarantine_pushes_out_its_own_entries() -> None:
    held = quarantine(most=4)
    held.convict(job(0, "small/gate", b"small"), "")
    for number in range(20):
        held.convict(job(number, f"big/d{number}", bytes([number])), "")
    assert len(held) == 4
    with pytest.raises(QuarantinedError):
        held.check(job(9, body=b"small"))
    assert not held.check(job(9, body=bytes([0])))


def test_bytes_are_written_only_if_the_operator_allows_it_and_only_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_server.frontend.engines.quarantine._MOST_FILES", 2)
    folder = tmp_path / "q"
    quarantine(None).convict(job(1), "")
    assert not folder.exists()
    held = quarantine(folder)
    for number in range(4):
        held.convict(job(number, body=bytes([number])), "it hung")
    files = sorted(folder.iterdir())
    assert len(files) == 2 and folder.stat().st_mode & 0o777 == 0o700
    assert {json.loads(file.read_text())["body"] for file in files} == {"00", "01"}
    unwritable = quarantine(tmp_path / "file" / "q")
    (tmp_path / "file").write_text("")
    assert not unwritable.convict(job(9), "it hung").retryable, "a full disk refuses no differently"


def test_what_was_written_stays_quarantined_over_a_restart_until_its_file_is_removed(
    tmp_path: Path,
) -> None:
    quarantine(tmp_path).convict(job(1), "it hung")
    (tmp_path / "notes.json").write_text("{}")
    after = quarantine(tmp_path)
    assert len(after) == 1
    with pytest.raises(QuarantinedError):
        after.check(job(7))
    assert not after.check(job(7, body=b"another"))
    (tmp_path / f"{digest_of(job(1)).hex()}.json").unlink()
    assert not quarantine(tmp_path).check(job(7))
