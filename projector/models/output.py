"""Computes logits from last hidden states as the model does: head, scales, caps and masks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from projector.models.foreign import in_words
from protos.errors import UnsupportedModelError

_PROBES = 4


class Output:
    """Runs the part of a model after its decoder, through the model's own forward.

    It runs a shallow twin: the same class, configuration and head, with a body that returns the
    embeddings it is given. So each family's factor or cap (Granite, Cohere, Gemma 2, …) applies as
    its own code says, and nothing here names a family.

    Args:
        model: as loaded by transformers; the model and its weights stay unchanged.

    Raises:
        UnsupportedModelError: the model has no body separate from its head.
    """

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        holds = (n for n, c in model.named_children() if any(m is decoder for m in c.modules()))
        name = next(holds, None)
        if name is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} computes its logits inside its decoder: they cannot be "
                "had from hidden states alone"
            )
        twin = copy.copy(model)
        twin._modules = {**model._modules, name: _Body(model._modules[name])}
        self._twin, self._head = twin, model.get_output_embeddings()
        try:
            self._plain = self._head is not None and self._adds_nothing()
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not compute its logits from last hidden states "
                f"alone: {in_words(error)}"
            ) from error

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` from last hidden states `[..., E]`; differentiable."""
        logits: Tensor = self._head(hidden) if self._plain else self._own(hidden)
        return logits

    def _own(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        logits: Tensor = self._twin(inputs_embeds=flat, use_cache=False).logits
        return logits.view(*hidden.shape[:-1], -1)

    def _adds_nothing(self) -> bool:
        """Whether the forward equals the head alone, for small hidden states and for large ones.

        That holds for most families; the head alone saves 20 microseconds a token.
        """
        weight = self._head.weight
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(_PROBES, weight.shape[1], generator=draw).to(weight.device)
        with torch.inference_mode():  # large states reveal a cap; any states, a factor or a mask
            return all(
                torch.equal(self._head(hidden), self._own(hidden))
                for hidden in ((noise * scale).to(weight.dtype) for scale in (1.0, 1e3))
            )

    def of(self, tokens: Tensor) -> Output:
        """The same for some tokens only, in their order: faster with a large vocabulary.

        Args:
            tokens: ids `[n]`.
        """
        some, head = copy.copy(self), self._head
        rows = nn.Linear(head.in_features, len(tokens), bias=head.bias is not None, device="meta")
        rows.weight = nn.Parameter(head.weight[tokens], requires_grad=False)
        if head.bias is not None:
            rows.bias = nn.Parameter(head.bias[tokens], requires_grad=False)
        twin = copy.copy(self._twin)
        twin._modules = dict(twin._modules)
        twin.set_output_embeddings(rows)
        some._twin, some._head = twin, rows
        return some


class _Body(nn.Module):
    """Stands in for the model's body and copies its attributes."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_body", body)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Given:
        return _Given(inputs_embeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_body"], name)


class _Given:
    """A body's output: last hidden states, and None for whatever else a forward reads."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
