"""One picture's key-value cache, keys un-rotated, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protos.errors import FrameMalformedError
from protos.layout import Floats, KVLayout


@dataclass(frozen=True, eq=False)
class KVState:
    """The cache of one picture's image tokens, keys un-rotated.

    Attributes:
        keys: RoPE removed, float32 [layers, kv_heads, tokens, head_dim].
        values: float32 [layers, kv_heads, tokens, head_dim].
        positions: Where the tokens stood in the source's sequence, int64 [tokens].
        grid: (rows, columns), row-major; rows * columns == tokens.
        attention: Attention received, per query that can see the token, sums to 1,
            float32 [tokens].

    Raises:
        FrameMalformedError: The shapes contradict each other.
    """

    keys: Floats
    values: Floats
    positions: npt.NDArray[np.int64]
    grid: tuple[int, int]
    attention: Floats

    def __post_init__(self) -> None:
        for name, dtype in (
            ("keys", np.float32),
            ("values", np.float32),
            ("positions", np.int64),
            ("attention", np.float32),
        ):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        object.__setattr__(self, "grid", (int(self.grid[0]), int(self.grid[1])))
        tokens = self.grid[0] * self.grid[1]
        if (
            self.keys.ndim != 4
            or self.keys.shape != self.values.shape
            or self.keys.shape[2] != tokens
            or self.positions.shape != (tokens,)
            or self.attention.shape != (tokens,)
        ):
            raise FrameMalformedError(
                f"cache state of grid {self.grid}: expected keys and values [layers, kv_heads, "
                f"{tokens}, head_dim], positions and attention [{tokens}]; got keys "
                f"{self.keys.shape}, values {self.values.shape}, positions "
                f"{self.positions.shape}, attention {self.attention.shape}"
            )

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return int(self.keys.shape[2])

    def flat(self) -> Floats:
        """One vector per token: float32 [tokens, state_dim], ordered (k|v, layer, head, dim)."""
        both = np.stack([self.keys, self.values])
        return np.ascontiguousarray(both.transpose(3, 0, 1, 2, 4)).reshape(self.tokens, -1)

    @classmethod
    def from_flat(
        cls,
        x: npt.ArrayLike,
        layout: KVLayout,
        positions: npt.ArrayLike,
        attention: npt.ArrayLike | None = None,
    ) -> KVState:
        """The inverse of `flat`.

        Args:
            x: [tokens, layout.state_dim]; tokens is `layout.tokens`, or fewer for a text (a grid of
                one row).
            layout: The layout of the state's model.
            positions: [tokens].
            attention: [tokens]; uniform if None.

        Raises:
            FrameMalformedError: `x` is not of the layout's shape.
        """
        array = np.asarray(x, dtype=np.float32)
        tokens = len(array) if layout.grid[0] == 1 and array.ndim == 2 else layout.tokens
        if array.shape != (tokens, layout.state_dim) or not 1 <= tokens <= layout.tokens:
            raise FrameMalformedError(
                f"flat state is {array.shape}, model {layout.model_id!r} has "
                f"{(layout.tokens, layout.state_dim)} (tokens, state_dim)"
            )
        shape = (tokens, 2, layout.layers, layout.kv_heads, layout.head_dim)
        keys, values = np.ascontiguousarray(array.reshape(shape).transpose(1, 2, 3, 0, 4))
        if attention is None:
            attention = np.full(tokens, 1 / tokens)
        return cls(
            keys,
            values,
            np.asarray(positions, dtype=np.int64),
            layout.grid if tokens == layout.tokens else (1, tokens),
            np.asarray(attention, dtype=np.float32),
        )
