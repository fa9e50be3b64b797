"""A text as a tokenizer reads it, and how two tokenizers' readings of it line up (NumPy).

`align` says which of the small model's tokens stands for each of the large model's; `fresh` is what
a frame carries of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.errors import ContextError, ModelError

CHARACTERS_PER_TOKEN = 32
"""No tokenizer packs more into one, on average over a whole text."""


@dataclass(frozen=True)
class Tokens:
    """One text as a model reads it.

    Attributes:
        ids: `[T]`, without what the tokenizer puts before every text.
        ends: where each token ends in the text, in characters, `[T]`.
    """

    ids: list[int]
    ends: npt.NDArray[np.int64]


def align(source: Tokens, target: Tokens) -> npt.NDArray[np.int64]:
    """The source token that stands for each target token: the last one that covers its end.

    Causal to a character: what a target token has read, its source token has read too, and of the
    character that it ends in all the bytes, where a tokenizer splits it.

    Args:
        source: of a text.
        target: of the same text.

    Returns:
        Indices into the source's tokens, `[target tokens]`, never falling.
    """
    first = np.searchsorted(source.ends, target.ends, side="left")
    covered = source.ends[np.minimum(first, len(source.ends) - 1)]
    return np.searchsorted(source.ends, covered, side="right") - 1


def fresh(aligned: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which target tokens stand for another source token than the one before, `[target tokens]`.

    A frame sends only those; the rest repeat what came last.

    Args:
        aligned: of `align`.
    """
    found: npt.NDArray[np.bool_] = np.diff(aligned, prepend=-1) != 0
    return found


@dataclass(frozen=True)
class Reader:
    """Texts to a model's tokens, refused where the model could not read them.

    Attributes:
        tokenizer: a fast one.
        most: the longest text, in tokens.
        reserved: the tokenizer's special tokens.
    """

    tokenizer: Any
    most: int
    reserved: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any, path: object, most: int) -> Reader:
        """For a loaded tokenizer; `path` is where it was saved.

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
        """The first reserved token that a text holds."""
        return next((token for token in self.reserved if token in text), None)

    def read(self, text: str) -> Tokens:
        """A text as the model reads it.

        Raises:
            ContextError: it is empty, holds one of the tokenizer's reserved tokens or a sign that
                it has no token for, or has more tokens than fit; a text that is far too long is
                not tokenized at all.
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
    """Whether a text can be written as UTF-8: one with half of a surrogate pair cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
