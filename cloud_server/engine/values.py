"""What a memory says, added to the large model's last hidden states: pseudo-parameters dW x.

At each place of an answer the state h that the head reads becomes h + gain * |h| * y. y is the
weighted sum of the directions of the values' tokens at that place, of length 1. A token's
direction is its row of the head minus the mean of all rows, of length 1. A value that has ended
points to the token that ends an answer. Without values nothing is computed, so the model is
exactly the frozen one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from projector.models.frozen import FrozenModel
from protos.errors import FactError

MOST_VALUES = 16
"""Most values that one question reads."""


class Values:
    """Makes what is added for one question.

    Args:
        model: its weights are not changed.
    """

    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        self._mean: Tensor | None = None

    def added(self, values: Sequence[tuple[float, str]], gain: float) -> Tensor | None:
        """What is added to the state at each place of the answer, for a state of length 1.

        Args:
            values: weights, 0 to 1, and texts.
            gain: length of what is added.

        Returns:
            float32 `[places, E]`; None without values.

        Raises:
            FactError: a value holds a token that is reserved by the model, or none for a part.
        """
        if not values:
            return None
        rows = [(weight, self._tokens(text)) for weight, text in values]
        head = self._model.model.get_output_embeddings().weight
        with torch.inference_mode():
            if self._mean is None:
                self._mean = head.float().mean(dim=0)
            made = self._mean.new_zeros(max(len(ids) for _, ids in rows), head.shape[1])
            for weight, ids in rows:
                # after its end a value goes on asking for the end
                places = ids + ids[-1:] * (len(made) - len(ids))
                directions = head[torch.tensor(places, device=head.device)].float() - self._mean
                made += weight * directions / directions.norm(dim=1, keepdim=True)
            unit: Tensor = made / made.norm(dim=1, keepdim=True)
            return gain * unit

    def _tokens(self, text: str) -> list[int]:
        """A value's tokens in an answer, and the token that ends it."""
        model = self._model
        end = min(model.eos_ids)
        ids = model.answer_ids(text)
        if ids and ids[-1] in model.eos_ids:
            ids = ids[:-1]
        reserved = {*model.tokenizer.all_special_ids, *model.tokenizer.added_tokens_decoder}
        if held := [i for i in ids if i in reserved]:
            if held[0] == model.tokenizer.unk_token_id:
                raise FactError(f"the large model has no token for a part of the value '{text}'")
            said = model.tokenizer.convert_ids_to_tokens(held[0])
            raise FactError(f"a fact's value holds '{said}', a token reserved by the model")
        return [*ids, end]


def remembering(hidden: Tensor, added: Sequence[Tensor | None], places: Sequence[int]) -> Tensor:
    """The last hidden states with what each row's memory says at its place of the answer.

    Args:
        hidden: `[rows, E]`; not written to.
        added: of each row, from `Values.added`.
        places: how many tokens each row's answer has.

    Returns:
        `hidden` itself if nothing is added.
    """
    made = hidden
    for row, (each, place) in enumerate(zip(added, places, strict=True)):
        if each is not None and place < len(each):
            made = hidden.clone() if made is hidden else made
            length = hidden[row].float().norm()
            made[row] = (hidden[row].float() + length * each[place]).to(hidden.dtype)
    return made
