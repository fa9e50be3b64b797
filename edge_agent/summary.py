"""Counts of one run."""

from __future__ import annotations

from dataclasses import dataclass

from protos.errors import BridgeError


@dataclass
class Summary:
    """Counts of one run.

    Attributes:
        captures: captures taken from the source.
        questions: questions that ended, one record each (a failed capture counts as one).
        answered: questions that the service answered, or frames that it holds.
        fallbacks: questions that the small model answered because the service could not.
        confident: questions that the small model answered because it was confident.
        failed: questions without an answer.
        payload_bytes: payload of the frames whose questions were answered.
        first_error: the first error that left a question without an answer, or None.
    """

    captures: int = 0
    questions: int = 0
    answered: int = 0
    fallbacks: int = 0
    confident: int = 0
    failed: int = 0
    payload_bytes: int = 0
    first_error: BridgeError | None = None
