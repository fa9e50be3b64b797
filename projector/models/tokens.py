"""Reads texts with a tokenizer, and aligns the tokens of two tokenizers (NumPy).

`align` finds the small model's token for each token of the large model. `fresh` finds the tokens
that a frame must carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.errors import ContextError, ModelError

CHARACTERS_PER_TOKEN = 32
"""No tokenizer packs more characters into a token, on average over a whole text."""


@dataclass(frozen=True)
class Tokens:
    """One text as a model reads it.

    Attributes:
        ids: `[T]`, without tokens that the tokenizer puts before every text.
        ends: end of each token in the text, in characters, `[T]`.
    """

    ids: list[int]
    ends: npt.NDArray[np.int64]


def align(source: Tokens, target: Tokens) -> npt.NDArray[np.int64]:
    """Index of the source token for each target token: the last one that covers its end.

    Causal to the character: the source token has read all that the target token has read,
    including every byte of a last character that a tokenizer splits.

    Args:
        source: the source's tokens of a text.
        target: the target's tokens of the same text.

    Returns:
        Indices of source tokens, `[target tokens]`, never decreasing.
    """
    first = np.searchsorted(source.ends, target.ends, side="left")
    covered = source.ends[np.minimum(first, len(source.ends) - 1)]
    return np.searchsorted(source.ends, covered, side="right") - 1


def fresh(aligned: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which target tokens have another source token than the one before, `[target tokens]` bool.

    A frame sends only those; the others repeat the last one sent.

    Args:
        aligned: from `align`.
    """
    found: npt.NDArray[np.bool_] = np.diff(aligned, prepend=-1) != 0
    return found


@dataclass(frozen=True)
class Reader:
    """Turns texts into a model's tokens; refuses texts that the model cannot read.

    Attributes:
        tokenizer: a fast tokenizer.
        most: tokens of the longest text.
        reserved: the tokenizer's special tokens.
    """

    tokenizer: Any
    most: int
    reserved: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any, path: object, most: int) -> Reader:
        """A reader for a loaded tokenizer; `path` is its folder.

        Raises:
            ModelError: it has no character offsets.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer of {path} has no character offsets (no tokenizer.json): texts "
                "cannot be aligned"
            )
        return cls(tokenizer, most, tuple(sorted(str(t) for t in tokenizer.all_special_tokens)))

    def held(self, text: str) -> str | None:
        """The first reserved token in a text; None if there is none."""
        return next((token for token in self.reserved if token in text), None)

    def read(self, text: str) -> Tokens:
        """A text as the model reads it.

        Raises:
            ContextError: it is empty, holds a reserved token or a character that the tokenizer
                has no token for, or has too many tokens. A text that is far too long is not even
                tokenized.
        """
        if not text.strip():
            raise ContextError("the text is empty")
        if not sound(text):
            raise ContextError("the text is not valid Unicode: it holds half of a surrogate pair")
        if len(text) > CHARACTERS_PER_TOKEN * self.most:
            raise ContextError(
                f"the text has {len(text)} characters; at most {self.most} tokens fit"
            )
        reserved = self.held(text)
        if reserved is not None:
            raise ContextError(f"the text holds '{reserved}', a token reserved by the model")
        read_as = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(read_as["input_ids"])
        if not ids or len(ids) > self.most:
            raise ContextError(f"the text takes {len(ids)} tokens; 1 to {self.most} fit")
        places = read_as["offset_mapping"]
        if self.tokenizer.unk_token_id in ids:
            start, end = places[ids.index(self.tokenizer.unk_token_id)]
            raise ContextError(f"the model has no token for '{text[start:end][:32]}' in the text")
        return Tokens(ids, np.array([end for _, end in places], dtype=np.int64))


def sound(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: half of a surrogate pair cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
