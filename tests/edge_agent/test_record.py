"""A record: what it holds of an answer, and its line."""

from __future__ import annotations

import json
from pathlib import Path

from edge_agent.output import RecordWriter
from edge_agent.record import AnswerRecord
from tests.fakes.fake_run import Run, capture, nothing


def test_a_record_is_one_line_of_strict_json(tmp_path: Path) -> None:
    record = AnswerRecord("ab", "ä\n", 1.0, "q", distortion={"quantize": float("nan")})
    writer = RecordWriter(str(tmp_path / "deeper" / "out.jsonl"))
    writer.write(record)
    writer.write(record)
    writer.close()
    lines = (tmp_path / "deeper" / "out.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["capture"] == "ä\n"
    assert json.loads(lines[0])["distortion"]["quantize"] is None


def test_the_servers_part_of_a_record_comes_from_the_answer(tmp_path: Path) -> None:
    run = Run([capture("a")], tmp_path, questions=("x",))
    run()
    assert run.records[0].server_ms["ttft"] == 1.5
    assert run.records[0].answer_tokens == 2


def test_what_the_service_warns_of_is_in_the_record(tmp_path: Path) -> None:
    run = Run([capture("a"), nothing("flat")], tmp_path, questions=("x",), warnings=("degenerate",))
    run()
    assert [record.warnings for record in run.records] == [("degenerate",)] * 2, "each once"
