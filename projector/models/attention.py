"""Measures the attention that image tokens receive while a decoder runs."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from protos.errors import UnsupportedModelError

_ATTENTION = "neural_bridge"
_MOST_LOGITS = 1 << 22
"""Most attention logits computed at once: 16 MiB."""


@dataclass
class Received:
    """Adds up, layer by layer, the attention that image tokens receive while a prefill runs.

    Fused attention returns no weights, so they are computed again from its queries and keys: only
    for queries that see a token of the picture, a block of rows at a time. At most one layer and
    `_MOST_LOGITS` numbers are held.

    Attributes:
        start: position of the first image token.
        tokens: image tokens, N.
        layers: layers measured.
        sums: what each token receives from other tokens, summed over layers, mean over heads,
            `[batch, N]`.
        seen_by: number of other queries that see each token, `[N]`.
        early: those of them that come before the token (bidirectional attention in the picture).
    """

    start: int
    tokens: int
    layers: int = 0
    sums: Tensor | None = None
    seen_by: Tensor | None = None
    early: Tensor | None = None

    def take(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        softcap: float | None,
        mask: Tensor | None = None,
    ) -> None:
        """Add one layer: queries `[B, heads, T, D]`, keys `[B, kv_heads, T, D]`, both rotated.

        `mask` `[B, 1, T, T]` says what each query sees, as fused attention takes it: bool, or
        added to the logits (a large negative number hides a key). None: causal.
        """
        batch, heads, length, dim = query.shape
        group = heads // key.shape[1]
        columns = key.float().transpose(-1, -2).unsqueeze(2)
        places = torch.arange(length, device=key.device)
        rows = max(1, _MOST_LOGITS // (batch * heads * length))
        for first in range(self.start, length, rows):
            chosen = query[:, :, first : first + rows].float()
            logits = chosen.unflatten(1, (-1, group)) @ columns * scaling
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            at = places[first : first + rows]
            if mask is None or mask.ndim != 4:
                unseen = places > at[:, None]
            else:
                part = mask[:1, 0, first : first + rows, :length]
                unseen = (
                    ~part if part.dtype is torch.bool else part < torch.finfo(part.dtype).min / 2
                )
            logits.masked_fill_(unseen, float("-inf"))
            self.add(logits.softmax(dim=-1).mean(dim=(1, 2)), at)
        self.layers += 1

    def add(self, weights: Tensor, at: Tensor) -> None:
        """Add weights `[B, rows, T]` (mean over heads) of the queries at positions `at`."""
        columns = torch.arange(self.start, self.start + self.tokens, device=weights.device)
        received = weights[..., self.start : self.start + self.tokens].float()
        early = ((received[0] > 0) & (columns > at[:, None])).sum(dim=0)
        received = received.masked_fill(columns == at[:, None], 0.0).sum(dim=1)
        self.sums = received if self.sums is None else self.sums + received
        self.early = early if self.early is None or at[0] == self.start else self.early + early
        self.seen_by = int(at[-1]) - columns + self.early

    def shares(self) -> Tensor:
        """Shares `[batch, N]`: each token's sum per query that can see it, rows normalised to 1.

        (More queries see an early token; that gives it no larger share.)
        """
        if self.sums is None or self.seen_by is None:
            raise UnsupportedModelError("the decoder's attention could not be measured")
        share = self.sums / self.seen_by.clamp(min=1)
        return share / share.sum(dim=1, keepdim=True)


@dataclass
class Looked:
    """Notes, layer by layer, what the last token of each row attends to while questions are read.

    Attributes:
        start: column of the first token that counts.
        tokens: how many count, N.
        last: column of each row's last token, `[batch]`; columns after it are padding.
        layers: layers measured.
        sums: attention of the last token to each, summed over layers, mean over heads,
            `[batch, N]`.
    """

    start: int
    tokens: int
    last: Tensor
    layers: int = 0
    sums: Tensor | None = None

    def take(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        softcap: float | None,
        mask: Tensor | None = None,
    ) -> None:
        """Add one layer: queries `[B, heads, T, D]` of the last columns, keys of all of them."""
        length = key.shape[2]
        rows = torch.arange(len(query), device=query.device)
        asking = query[rows, :, self.last - (length - query.shape[2])].float()
        grouped = asking.unflatten(1, (key.shape[1], -1))  # [B, kv_heads, heads of each, D]
        logits = grouped @ key.float().transpose(-1, -2) * scaling
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        padding = torch.arange(length, device=key.device) > self.last[:, None]
        weights = logits.masked_fill(padding[:, None, None], float("-inf")).softmax(dim=-1)
        seen = weights.mean(dim=(1, 2))[:, self.start : self.start + self.tokens]
        self.sums = seen if self.sums is None else self.sums + seen
        self.layers += 1


_received: contextvars.ContextVar[Received | Looked | None] = contextvars.ContextVar(
    "received", default=None
)


def measured_attention(implementation: str) -> str | None:
    """Register fused attention that is also measured; return its name.

    None if `implementation` is not fused: eager attention returns its weights.
    """
    if implementation.startswith(_ATTENTION):
        return implementation
    if implementation not in ALL_ATTENTION_FUNCTIONS or implementation == "eager":
        return None
    attend = ALL_ATTENTION_FUNCTIONS[implementation]

    def noting(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        received = _received.get()
        if received is not None:
            scaling = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
            received.take(query, key, scaling, kwargs.get("softcap"), attention_mask)
        return attend(module, query, key, value, attention_mask, **kwargs)

    name = _ATTENTION if implementation == "sdpa" else f"{_ATTENTION}_{implementation}"
    AttentionInterface.register(name, noting)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


@contextlib.contextmanager
def measuring(received: Received | Looked | None) -> Iterator[None]:
    """Within this context, fused attention reports its queries and keys to `received`."""
    token = _received.set(received)
    try:
        yield
    finally:
        _received.reset(token)
