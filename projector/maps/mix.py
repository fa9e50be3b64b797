"""`mix`: attention between tokens in latent space, between the halves of any other map.

With queries at the target's positions it also maps one token grid to another. It starts from
interpolated latents and must beat them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from projector.maps.base import Family, Map, configured, family
from projector.maps.moments import Moments
from protos.errors import FitError
from protos.layout import KVLayout

MAX_WIDTH, MAX_DEPTH = 256, 8
ORDERS = ("source", "target")


@dataclass(frozen=True)
class Mix(Family):
    """A residual transformer block around another family's map; has no operator norm.

    Attributes:
        inner: name of the other family.
        config: its configuration; missing fields get their defaults.
        width: of the block, at most 256.
        depth: number of layers.
        heads: attention heads.
        order: `source`: the layers run over the source's tokens, then queries at the target's
            positions attend to them. `target`: the queries come first, then the other layers run
            over the target's tokens.
    """

    name: ClassVar[str] = "mix"
    closed: ClassVar[bool] = False
    per_token: ClassVar[bool] = False
    inner: str = "low_rank"
    config: dict[str, Any] = field(default_factory=dict)
    width: int = 128
    depth: int = 1
    heads: int = 4
    order: str = "source"

    @property
    def member(self) -> Family:
        """The other family's configuration.

        Raises:
            FitError: the name is unknown, or is `mix` itself.
        """
        if self.inner == self.name:
            raise FitError("a mix around a mix: name another family inside")
        cls = family(self.inner)
        return configured(cls, {**asdict(cls()), **self.config})

    @property
    def asks_answers(self) -> bool:
        """As the other family."""
        return self.member.asks_answers

    @property
    def needs_target_gram(self) -> bool:
        """As the other family."""
        return self.member.needs_target_gram

    def make(self, source: KVLayout, target: KVLayout) -> Map:
        """The unfitted map."""
        if not (1 <= self.width <= MAX_WIDTH and self.heads >= 1 and self.width % self.heads == 0):
            raise FitError(
                f"a mixing width of {self.width} with {self.heads} heads: expected at most "
                f"{MAX_WIDTH}, a multiple of the heads"
            )
        if not 1 <= self.depth <= MAX_DEPTH:
            raise FitError(f"a mixing block of {self.depth} layers: expected 1 to {MAX_DEPTH}")
        if self.order not in ORDERS:
            raise FitError(f"order '{self.order}': expected one of {', '.join(ORDERS)}")
        return MixMap(self, source, target)


class Attend(nn.Module):
    """One pre-norm layer: queries attend to tokens, then an MLP.

    Args:
        width: of queries and tokens.
        heads: attention heads.
        one_norm: whether queries and tokens share one norm.
    """

    def __init__(self, width: int, heads: int, one_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width)
        self.norm_token = None if one_norm else nn.LayerNorm(width)
        self.norm_mlp = nn.LayerNorm(width)
        self.query, self.merge = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Queries `[B, M, width]` attend to tokens `[B, N, width]`."""
        asking = self.norm_query(queries)
        if self.norm_token is not None:
            told = self.norm_token(tokens)
        else:
            told = asking if tokens is queries else self.norm_query(tokens)
        query = self._heads(self.query(asking))
        key, value = self.key_value(told).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, self._heads(key), self._heads(value))
        x = queries + self.merge(mixed.transpose(1, 2).flatten(-2))
        widened = functional.gelu(self.widen(self.norm_mlp(x)), approximate="tanh")
        out: Tensor = x + self.narrow(widened)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


class MixMap(Map):
    """The other map and the mixing block."""

    family: Mix

    def __init__(self, family: Mix, source: KVLayout, target: KVLayout) -> None:
        super().__init__(family, source, target)
        self.inner = family.member.make(source, target)
        width, first = family.width, family.order == "target"
        self.inward = nn.Linear(self.inner.rank, width)
        self.place_source: nn.Parameter | None = None
        if not first or self.to_grid is not None:
            self.place_source = nn.Parameter(torch.randn(source.tokens, width) * 0.02)
        self.place_target = nn.Parameter(torch.randn(target.tokens, width) * 0.02)
        self.layers = nn.ModuleList(
            Attend(width, family.heads, one_norm=first) for _ in range(family.depth)
        )
        self.ask = None if first else Attend(width, family.heads)
        self.norm_out = nn.LayerNorm(width)
        self.outward = nn.Linear(width, self.inner.up_rank)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def take_statistics(self, moments: Moments) -> None:
        """Set the statistics of both maps."""
        super().take_statistics(moments)
        self.inner.take_statistics(moments)

    def fit(self, moments: Moments) -> None:
        """Fit the other map in closed form; the block does nothing yet."""
        self.inner.fit(moments)

    def penalty(self) -> Tensor:
        """As the other map."""
        return self.inner.penalty()

    @property
    def rank(self) -> int:
        """As the other map."""
        return self.inner.rank

    @property
    def up_rank(self) -> int:
        """As the other map."""
        return self.inner.up_rank

    def down(self, x: Tensor) -> Tensor:
        """The other map's edge half."""
        return self.inner.down(x)

    def up(self, z: Tensor) -> Tensor:
        """The other map's cloud half."""
        return self.inner.up(z)

    def onto(self) -> Tensor | None:
        """As the other map."""
        return self.inner.onto()

    def latent(self, z: Tensor) -> Tensor:
        """Mix latents, move them to the target's grid, and fill in those that did not travel."""
        placed = self.regrid(z)
        told: Tensor = self.outward(self.norm_out(self._mixed(z, placed)))
        rank = z.shape[-1]
        if told.shape[-1] == rank:
            return placed + told
        return torch.cat((placed + told[..., :rank], told[..., rank:]), dim=-1)

    def _mixed(self, z: Tensor, placed: Tensor) -> Tensor:
        """Mixed latents `[B, M, width]` at the target's positions."""
        queries: Tensor = self.inward(placed) + self.place_target
        tokens = queries if self.place_source is None else self.inward(z) + self.place_source
        if self.ask is not None:
            for layer in self.layers:
                tokens = layer(tokens, tokens)
            out: Tensor = self.ask(queries, tokens)
            return out
        for layer in self.layers:
            queries = layer(queries, tokens)
            tokens = queries
        return queries
