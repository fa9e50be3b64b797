"""What the consumer gets: one `AnswerRecord` per question, written as one JSON line.

Knows the record's fields and how a line is written; knows nothing of how an answer came about.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from edge_agent.sources import Capture
from protos.errors import ConfigError, DiskFullError
from protos.process.files import expanded, without_mark


@dataclass(frozen=True)
class AnswerRecord:
    """How one question about one capture ended.

    Attributes:
        request_id: hexadecimal; the same in both sides' logs. Empty where nothing was sent.
        capture: the capture's name in its source.
        captured_at: seconds since the Unix epoch.
        content: digest of the picture's pixels or of the text; empty where the capture failed.
        question: as asked; empty where the capture itself failed.
        answer: the service's answer, or in feedback mode the small model's from the service's
            state; None where there is none.
        edge_answer: the small model's own answer, if it was asked for.
        frame_number: number of the frame in its session; None where nothing was sent.
        point: operating point that the frame was sent at.
        tokens: image tokens of the whole grid; 0 for a picture.
        kept_tokens: tokens whose latents were sent.
        payload_bytes: the frame's payload.
        message_bytes: the request's message with everything in it; in ask mode the question's
            alone (the frame travelled once, for all questions).
        attempts: times that the request was sent.
        edge_ms: prefill, select, encode, uplink (sent until its terminal event), edge_only.
        server_ms: the server's own timings (queue, decode, project, inject, prefill, generate,
            ttft, total).
        distortion: quantize, dropped_attention, latent_residual, unfamiliarity.
        feedback: in feedback mode `point`, `payload_bytes` and distortion figures of the state that
            the service sent back (`round_trip` where the small model saw the picture too); None
            where it sent none.
        answer_tokens: tokens that the service generated.
        from_memory: the service had answered this request before.
        fallback: empty, or why the answer is not the projected frame's (distortion, unfamiliar,
            degenerate, late, corrupt, incompatible, offline): then it is the service's answer to
            the picture, or, with an error, the small model's.
        risk: probability that the frame is answered otherwise than its picture would be; None where
            the guard did not look.
        warnings: names of what an answer should not be trusted for: `degenerate`, the picture shows
            nothing to answer from (one flat colour, one side over 64 times the other).
        error: None, or `code`, `name` and `message` of what ended the question.
    """

    request_id: str
    capture: str
    captured_at: float
    question: str
    answer: str | None = None
    edge_answer: str | None = None
    frame_number: int | None = None
    point: str = ""
    tokens: int = 0
    kept_tokens: int = 0
    payload_bytes: int = 0
    message_bytes: int = 0
    attempts: int = 0
    edge_ms: dict[str, float] = field(default_factory=dict)
    server_ms: dict[str, float] = field(default_factory=dict)
    distortion: dict[str, float] = field(default_factory=dict)
    feedback: dict[str, Any] | None = None
    answer_tokens: int = 0
    from_memory: bool = False
    fallback: str = ""
    risk: float | None = None
    warnings: tuple[str, ...] = ()
    error: dict[str, Any] | None = None
    content: str = ""

    def to_json(self) -> str:
        """One line of strict JSON, keys in the order of the fields."""
        line = json.dumps(_finite(dataclasses.asdict(self)), ensure_ascii=False, allow_nan=False)
        return line.encode(errors="backslashreplace").decode()  # half a surrogate pair is no text


class RecordWriter:
    """Appends records to a file, or to standard output for `-`; a line at a time.

    A line that an earlier run left half written is ended first.

    Raises:
        ConfigError: the file cannot be opened for writing.
    """

    def __init__(self, output: str) -> None:
        self._own = output != "-"
        self._file: TextIO
        if not self._own:
            self._file = sys.stdout
            return
        try:
            path = expanded(Path(output))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
            if _torn(path):
                self._file.write("\n")
        except OSError as error:
            raise ConfigError(
                f"output {output}: cannot be written: {error.strerror or error}"
            ) from error

    def write(self, record: AnswerRecord) -> None:
        """Write one line and flush it, so that a reader sees whole records only.

        Raises:
            DiskFullError: the file cannot take it; the run ends, as what follows would be lost.
        """
        try:
            self._file.write(record.to_json() + "\n")
            self._file.flush()
        except OSError as error:
            if not self._own:  # `console` reports a standard output that fails
                raise
            raise DiskFullError(
                f"output {self._file.name}: the record of {record.capture} cannot be written: "
                f"{error.strerror or error}"
            ) from error

    def close(self) -> None:
        """Close the file, if it is one."""
        if self._own:
            with contextlib.suppress(OSError):  # what could not be written was told by `write`
                self._file.close()


@dataclass(frozen=True)
class Answered:
    """What an earlier run answered.

    Attributes:
        contents: of each capture's name and question, the contents that were asked about.
        times: likewise when they were captured, where a record of old names no content.
    """

    contents: frozenset[tuple[str, str, str]] = frozenset()
    times: frozenset[tuple[str, str, float]] = frozenset()

    def holds(self, capture: Capture, question: str) -> bool:
        """Whether this very picture or text was asked that; another one of its name was not."""
        named = (capture.name, question)
        at = round(capture.captured_at, 6)
        return (*named, capture.content) in self.contents or (*named, at) in self.times


def answered(output: str) -> Answered:
    """What a file of records holds answers to, whoever gave them.

    Lines that are no records, such as half a line, are passed over.

    Raises:
        ConfigError: it is standard output, cannot be read, or is in another encoding than UTF-8.
    """
    if output == "-":
        raise ConfigError("resume needs a file: give --output FILE, the one of the run before")
    contents, times = set(), set()
    try:
        with expanded(Path(output)).open("rb") as lines:
            for number, line in enumerate(lines):
                text = line if number else without_mark(line, f"output {output}")
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(text)
                    if row["answer"] is None and not row["fallback"]:
                        continue
                    named = (str(row["capture"]), str(row["question"]))
                    if row.get("content"):
                        contents.add((*named, str(row["content"])))
                    else:
                        times.add((*named, float(row["captured_at"])))
    except FileNotFoundError:
        pass  # the first run
    except OSError as error:
        raise ConfigError(f"output {output}: cannot be read: {error.strerror or error}") from error
    return Answered(frozenset(contents), frozenset(times))


def _torn(path: Path) -> bool:
    """Whether a file's last line has no end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
