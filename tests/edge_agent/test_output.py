"""The file of records: what is written, and what an earlier run has answered."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from edge_agent.output import Answered, RecordWriter, answered, recorded
from edge_agent.record import AnswerRecord
from protos.errors import (
    ConfigError,
    DiskFullError,
)
from tests.fakes.fake_run import Run, capture


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text('{"request_id": "a')
    writer = RecordWriter(str(output))
    writer.write(AnswerRecord("ab", "a", 1.0, "q", answer="yes"))
    writer.close()
    assert json.loads(output.read_text().splitlines()[1])["answer"] == "yes"
    assert answered(str(output)).times == {("a", "q", 1.0)}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_records_that_find_no_room_end_the_run_typed(tmp_path: Path) -> None:
    writer = RecordWriter("/dev/full")
    run = Run([capture(f"{i}") for i in range(40)], tmp_path, in_flight=2, questions=("x",))
    run.on_record = writer.write
    with pytest.raises(DiskFullError, match="/dev/full"):
        run()
    writer.close()
    assert run.source.taken < 40


def test_an_answer_by_either_model_is_one_and_an_error_is_none(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    error = {"code": 500, "name": "offline", "message": "gone"}
    writer = RecordWriter(str(output))
    writer.write(AnswerRecord("1", "a", 1.0, "q", answer="yes"))
    writer.write(AnswerRecord("2", "b", 1.0, "q", edge_answer="no", fallback="late", error=error))
    writer.write(AnswerRecord("3", "c", 1.0, "q", edge_answer="no", error=error))
    writer.write(AnswerRecord("4", "d", 1.0, "q", error=error))
    writer.close()
    assert answered(str(output)).times == {("a", "q", 1.0), ("b", "q", 1.0)}
    assert answered(str(tmp_path / "none")) == Answered()
    with pytest.raises(ConfigError, match="--output FILE"):
        answered("-")


def test_an_output_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        RecordWriter(str(tmp_path))


def test_a_new_picture_under_an_old_name_is_asked_about_again(tmp_path: Path) -> None:
    """And the same picture is not, whenever its file was written."""
    output = tmp_path / "out.jsonl"
    first, same, other = capture("a"), capture("a"), capture("a")
    same = replace(same, captured_at=first.captured_at + 60)
    other = replace(other, picture=Image.new("RGB", (9, 9), (200, 0, 0)))
    writer = RecordWriter(str(output))
    run = Run([first], tmp_path, questions=("x",))
    run.on_record = writer.write
    run()
    writer.close()
    done = answered(str(output))
    assert Run([same], tmp_path, questions=("x",), done=done)().questions == 0
    assert Run([other], tmp_path, questions=("x",), done=done)().questions == 1


def test_a_record_without_a_digest_counts_for_its_time_of_capture(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    old = {"capture": "a", "captured_at": 1.5, "question": "x", "answer": "yes", "fallback": ""}
    output.write_text("\ufeff" + json.dumps(old) + "\n", encoding="utf-8")
    done = answered(str(output))
    assert done.holds(replace(capture("a"), captured_at=1.5), "x")
    assert not done.holds(replace(capture("a"), captured_at=2.5), "x")
    assert not done.holds(replace(capture("a"), captured_at=1.5), "y")
    output.write_text(json.dumps(old) + "\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="UTF-16; save it as UTF-8"):
        answered(str(output))


def test_a_pipe_takes_records_and_one_that_nobody_reads_is_refused_not_waited_for(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "out"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="a pipe that nobody reads: start its reader"):
        RecordWriter(str(pipe))
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = RecordWriter(str(pipe))
    writer.write(AnswerRecord("ab", "a", 1.0, "q", answer="yes"))
    writer.sync()
    assert recorded(str(pipe), writer.place()) == set()
    with pytest.raises(ConfigError, match="not a regular file"):
        answered(str(pipe))
    assert json.loads(os.read(reader, 1 << 16))["answer"] == "yes", "nobody else read it"
    os.set_blocking(reader, True)
    writer.close()
    assert os.read(reader, 1) == b""
    os.close(reader)
