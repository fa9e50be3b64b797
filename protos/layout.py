"""What a model's key-value cache looks like, and one picture's worth of it.

Knows shapes, rotary embeddings and fingerprints. Knows no model, no tensor library, no wire.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.errors import FrameMalformedError

Floats = npt.NDArray[np.float32]

MAX_JSON_BYTES = 64 * 1024
_MAX = {"layers": 1024, "kv_heads": 1024, "head_dim": 4096}
_MAX_GRID_SIDE = 1024
_MAX_NUMBER = 1e30
_MAX_STATE_DIM = 1 << 24
_CACHE_DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise FrameMalformedError(f"cache layout: {message}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class RopeSpec:
    """How a model rotates its keys.

    Attributes:
        theta: Base of the frequencies, for information: `inv_freq` is what is used.
        rotary_dim: How many leading dimensions of a head are rotated (even, <= head_dim).
        interleaved: True if a pair is dimensions (2i, 2i + 1); False if it is (i, i + half).
        scaling: Name of the scaling method ("default", "linear", "llama3", "yarn", …).
        attention_factor: Multiplies cos and sin (1.0 except for some scalings).
        inv_freq: Radians per position of each pair, [rotary_dim / 2].

    Raises:
        FrameMalformedError: The fields contradict each other.
    """

    theta: float
    rotary_dim: int
    interleaved: bool
    scaling: str
    attention_factor: float
    inv_freq: tuple[float, ...]

    def __post_init__(self) -> None:
        _check(
            _is_int(self.rotary_dim) and self.rotary_dim >= 2 and self.rotary_dim % 2 == 0,
            f"rotary_dim must be even and >= 2, not {self.rotary_dim!r}",
        )
        _check(isinstance(self.interleaved, bool), "interleaved must be true or false")
        _check(isinstance(self.scaling, str) and len(self.scaling) <= 64, "scaling must be a name")
        object.__setattr__(self, "inv_freq", tuple(self.inv_freq))
        numbers = (self.theta, self.attention_factor, *self.inv_freq)
        _check(
            all(isinstance(x, float | int) and not isinstance(x, bool) for x in numbers)
            and all(0 <= x <= _MAX_NUMBER for x in numbers),
            f"theta, attention_factor and inv_freq must be numbers in 0..{_MAX_NUMBER:g}",
        )
        # 1 and 1.0 are the same rotation, so they must give the same fingerprint.
        object.__setattr__(self, "theta", float(self.theta))
        object.__setattr__(self, "attention_factor", float(self.attention_factor))
        object.__setattr__(self, "inv_freq", tuple(float(x) for x in self.inv_freq))
        _check(self.attention_factor > 0, "attention_factor must be above 0")
        _check(
            2 * len(self.inv_freq) == self.rotary_dim,
            f"rotary_dim {self.rotary_dim} needs {self.rotary_dim // 2} frequencies, "
            f"not {len(self.inv_freq)}",
        )

    def cos_sin(self, positions: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Tables to rotate by, as `transformers` computes them (angles in float32).

        Args:
            positions: Integers, [T].

        Returns:
            cos and sin, float32 [T, rotary_dim], multiplied by `attention_factor`. Frequencies are
            laid out twice in a row (half-split), or each twice (interleaved).
        """
        at = np.asarray(positions).astype(np.float32).reshape(-1, 1)
        angles = at * np.asarray(self.inv_freq, dtype=np.float32)
        if self.interleaved:
            angles = np.repeat(angles, 2, axis=1)
        else:
            angles = np.concatenate([angles, angles], axis=1)
        wide = angles.astype(np.float64)
        factor = self.attention_factor
        return (
            (np.cos(wide) * factor).astype(np.float32),
            (np.sin(wide) * factor).astype(np.float32),
        )


@dataclass(frozen=True)
class KVLayout:
    """What a model's cache looks like: two sides with equal fingerprints can exchange states.

    Attributes:
        model_id: Name of the model, for people.
        layers: Number of layers that have a cache.
        kv_heads: Key-value heads per layer.
        head_dim: Dimensions per head.
        rope: How keys are rotated.
        cache_dtype: Type in which the model keeps its cache.
        grid: Image tokens as (rows, columns), row-major.
        tokenizer_digest: SHA-256 (hex) of the tokenizer.
        weights_digest: SHA-256 (hex) of the weights.

    Raises:
        FrameMalformedError: A field is out of bounds or contradicts another.
    """

    model_id: str
    layers: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec
    cache_dtype: str
    grid: tuple[int, int]
    tokenizer_digest: str
    weights_digest: str

    def __post_init__(self) -> None:
        for name, largest in _MAX.items():
            value = getattr(self, name)
            _check(
                _is_int(value) and 1 <= value <= largest, f"{name} {value!r} not in 1..{largest}"
            )
        _check(isinstance(self.rope, RopeSpec), "rope is missing")
        _check(
            self.rope.rotary_dim <= self.head_dim,
            f"rotary_dim {self.rope.rotary_dim} exceeds head_dim {self.head_dim}",
        )
        _check(self.state_dim <= _MAX_STATE_DIM, f"state_dim {self.state_dim} is too large")
        object.__setattr__(self, "grid", tuple(self.grid))
        _check(
            len(self.grid) == 2 and all(_is_int(n) and 1 <= n <= _MAX_GRID_SIDE for n in self.grid),
            f"grid must be (rows, columns), each in 1..{_MAX_GRID_SIDE}, not {self.grid!r}",
        )
        _check(
            self.cache_dtype in _CACHE_DTYPES,
            f"cache_dtype {self.cache_dtype!r} is none of {', '.join(_CACHE_DTYPES)}",
        )
        for name in ("model_id", "tokenizer_digest", "weights_digest"):
            value = getattr(self, name)
            _check(isinstance(value, str) and len(value) <= 256, f"{name} must be a short text")

    @property
    def tokens(self) -> int:
        """Image tokens of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def state_dim(self) -> int:
        """Numbers in one token's whole cache state: keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, shortest floats that round-trip."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain["rope"] = {field.name: getattr(self.rope, field.name) for field in fields(RopeSpec)}
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> KVLayout:
        """Read what `to_json` wrote, trusting nothing.

        Raises:
            FrameMalformedError: Not JSON, too long, or not exactly the fields of a valid layout.
        """
        plain = read_json(text, MAX_JSON_BYTES, "cache layout")
        _exact_keys(plain, {field.name for field in fields(cls)}, "cache layout")
        rope = plain["rope"]
        _exact_keys(rope, {field.name for field in fields(RopeSpec)}, "rope")
        _check(isinstance(rope["inv_freq"], list), "inv_freq must be a list")
        _check(isinstance(plain["grid"], list), "grid must be a list")
        return cls(**{**plain, "rope": RopeSpec(**rope), "grid": tuple(plain["grid"])})


def read_json(text: str | bytes, max_bytes: int, what: str) -> Any:
    """Parse JSON from a peer: bounded, no NaN or infinity, no key twice.

    Args:
        text: The JSON.
        max_bytes: Longest text that is looked at.
        what: What it should be, for the message.

    Raises:
        FrameMalformedError: It is not such JSON.
    """
    if len(text) > max_bytes:
        raise FrameMalformedError(
            f"{what}: {len(text)} bytes of JSON, at most {max_bytes} are read"
        )

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            raise ValueError("a key occurs twice")
        return dict(items)

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise FrameMalformedError(f"{what}: not usable JSON ({error})") from error


def _exact_keys(plain: Any, names: set[str], what: str) -> None:
    _check(isinstance(plain, dict), f"{what} must be an object")
    if set(plain) != names:
        missing, extra = sorted(names - set(plain)), sorted(set(plain) - names)
        raise FrameMalformedError(f"{what}: missing {missing}, unexpected {extra}")


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
            x: [layout.tokens, layout.state_dim].
            layout: Of the model whose state it is.
            positions: [layout.tokens].
            attention: [layout.tokens]; uniform if None.

        Raises:
            FrameMalformedError: `x` is not of the layout's shape.
        """
        array = np.asarray(x, dtype=np.float32)
        if array.shape != (layout.tokens, layout.state_dim):
            raise FrameMalformedError(
                f"flat state is {array.shape}, model {layout.model_id!r} has "
                f"{(layout.tokens, layout.state_dim)} (tokens, state_dim)"
            )
        shape = (layout.tokens, 2, layout.layers, layout.kv_heads, layout.head_dim)
        keys, values = np.ascontiguousarray(array.reshape(shape).transpose(1, 2, 3, 0, 4))
        if attention is None:
            attention = np.full(layout.tokens, 1 / layout.tokens)
        return cls(
            keys,
            values,
            np.asarray(positions, dtype=np.int64),
            layout.grid,
            np.asarray(attention, dtype=np.float32),
        )


def rotate(keys: npt.ArrayLike, rope: RopeSpec, positions: npt.ArrayLike) -> Floats:
    """Apply rotary embeddings (RoFormer, arXiv:2104.09864, eq. 34).

    Args:
        keys: [..., T, head_dim]; dimensions from `rope.rotary_dim` on are left alone.
        rope: The model's rotation.
        positions: Integers, [T].

    Returns:
        float32, the shape of `keys`.

    Raises:
        FrameMalformedError: The shapes do not fit.
    """
    x, cos, sin = _tables(keys, rope, positions)
    return _turn(x, cos, sin, rope)


def unrotate(keys: npt.ArrayLike, rope: RopeSpec, positions: npt.ArrayLike) -> Floats:
    """Undo `rotate`; same arguments, same result type."""
    x, cos, sin = _tables(keys, rope, positions)
    square = np.float32(rope.attention_factor**2)
    return _turn(x, cos / square, -sin / square, rope)


def _tables(
    keys: npt.ArrayLike, rope: RopeSpec, positions: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    x = np.asarray(keys, dtype=np.float32)
    cos, sin = rope.cos_sin(positions)
    if x.ndim < 2 or x.shape[-2] != cos.shape[0] or x.shape[-1] < rope.rotary_dim:
        raise FrameMalformedError(
            f"cannot rotate keys {x.shape} at {cos.shape[0]} positions over "
            f"{rope.rotary_dim} dimensions: expected [..., {cos.shape[0]}, >= {rope.rotary_dim}]"
        )
    return x, cos, sin


def _turn(x: Floats, cos: Floats, sin: Floats, rope: RopeSpec) -> Floats:
    head = x[..., : rope.rotary_dim]
    turned = np.empty_like(head)
    if rope.interleaved:
        turned[..., 0::2], turned[..., 1::2] = -head[..., 1::2], head[..., 0::2]
    else:
        half = rope.rotary_dim // 2
        turned[..., :half], turned[..., half:] = -head[..., half:], head[..., :half]
    out: Floats = x.copy()
    out[..., : rope.rotary_dim] = head * cos + turned * sin
    return out
