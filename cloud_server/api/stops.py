"""Stop sequences: an answer ends before the first of them, also when it arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Looks for stop sequences in the text of one answer.

    Args:
        sequences: none of them is empty; the list may be.

    Attributes:
        found: whether one was found; later text does not belong to the answer.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences, self._kept = tuple(sequences), ""
        self.found = False

    def feed(self, piece: str) -> str:
        """Take the next piece; returns the text that may be sent.

        Text that could begin a stop sequence is kept back until the next piece.
        """
        if self.found:
            return ""
        if not self._sequences:
            return piece
        text = self._kept + piece
        places = [place for stop in self._sequences if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._kept = True, ""
            return text[: min(places)]
        back = max(_overlap(text, stop) for stop in self._sequences)
        told, self._kept = text[: len(text) - back], text[len(text) - back :]
        return told

    def rest(self) -> str:
        """The text that was kept back; called at the end of the answer."""
        kept, self._kept = self._kept, ""
        return kept


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that is the start of a stop sequence."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
