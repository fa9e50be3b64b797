"""What a model's key-value cache looks like: shapes, rotations, fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.errors import ContextError, FrameMalformedError
from protos.strict_json import read_json

Floats = npt.NDArray[np.float32]
MAX_JSON_BYTES = 64 * 1024
MAX_GRID_SIDE = 1024
_MAX = {"layers": 1024, "kv_heads": 1024, "head_dim": 4096}
_MAX_NUMBER = 1e30
_MAX_STATE_DIM = 1 << 24
_MAX_ROPES = 8
_MAX_WINDOW = 1 << 30
_CACHE_DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn")


@dataclass(frozen=True)
class RopeSpec:
    """How a model rotates its keys.

    Attributes:
        theta: Base of the frequencies, for information only; `inv_freq` is used.
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
        cos, sin = self._turns(positions)
        factor = self.attention_factor
        return (cos * factor).astype(np.float32), (sin * factor).astype(np.float32)

    def inverse(self, positions: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Tables of the rotation that undoes `cos_sin`; same argument, same shapes."""
        cos, sin = self._turns(positions)
        factor = self.attention_factor
        return (cos / factor).astype(np.float32), (-sin / factor).astype(np.float32)

    def _turns(
        self, positions: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        at = np.asarray(positions).astype(np.float32).reshape(-1, 1)
        angles = at * np.asarray(self.inv_freq, dtype=np.float32)
        if self.interleaved:
            angles = np.repeat(angles, 2, axis=1)
        else:
            angles = np.concatenate([angles, angles], axis=1)
        wide = angles.astype(np.float64)
        return np.cos(wide), np.sin(wide)


@dataclass(frozen=True)
class LayeredRope:
    """Rotations that differ from layer to layer; used like one `RopeSpec`.

    Attributes:
        specs: one for each layer, of the same rotary dimensions and the same pairing.
    """

    specs: tuple[RopeSpec, ...]

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of a head, the same in every layer."""
        return self.specs[0].rotary_dim

    @property
    def interleaved(self) -> bool:
        """How dimensions are paired, the same in every layer."""
        return self.specs[0].interleaved

    def cos_sin(self, positions: npt.ArrayLike) -> tuple[Floats, Floats]:
        """The tables of every layer, with axes that fit keys `[layers, kv_heads, T, head_dim]`.

        Args:
            positions: Integers, [T].

        Returns:
            cos and sin, float32 [layers, 1, T, rotary_dim].
        """
        return self._each(RopeSpec.cos_sin, positions)

    def inverse(self, positions: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Tables of the rotation that undoes `cos_sin`; same argument, same shapes."""
        return self._each(RopeSpec.inverse, positions)

    def _each(
        self, tables: Callable[[RopeSpec, npt.ArrayLike], tuple[Floats, Floats]], at: npt.ArrayLike
    ) -> tuple[Floats, Floats]:
        made = {spec: tables(spec, at) for spec in dict.fromkeys(self.specs)}
        cos, sin = (np.stack([made[spec][i] for spec in self.specs])[:, None] for i in (0, 1))
        return cos, sin


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
        grid: Image tokens as (rows, columns), row-major; for a text-only model one row, as long as
            the longest text.
        tokenizer_digest: SHA-256 (hex) of the tokenizer.
        weights_digest: SHA-256 (hex) of the weights.
        more_ropes: Rotations besides `rope`, for models that have one per kind of layer.
        layer_ropes: Which rotation each layer uses: 0 for `rope`, i for `more_ropes[i - 1]`;
            empty if all use `rope`.
        windows: How many tokens back each layer sees, itself included; 0 for all of them; empty
            if no layer has a window that its context could outgrow.
        qk_norm: Whether keys are normalised before they are rotated.
        settings_digest: SHA-256 (hex) of all else that changes a cache or the prompt before it:
            configuration, tokenizer, template and processor settings, the prompt's ids. Empty in
            layouts of version 1.

    A field that holds its default is left out of the JSON and so of the fingerprint.

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
    more_ropes: tuple[RopeSpec, ...] = ()
    layer_ropes: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()
    qk_norm: bool = False
    settings_digest: str = ""

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
            len(self.grid) == 2 and all(_is_int(n) and 1 <= n <= MAX_GRID_SIDE for n in self.grid),
            f"grid must be (rows, columns), each in 1..{MAX_GRID_SIDE}, not {self.grid!r}",
        )
        _check(
            self.cache_dtype in _CACHE_DTYPES,
            f"cache_dtype {self.cache_dtype!r} is none of {', '.join(_CACHE_DTYPES)}",
        )
        for name in ("model_id", "tokenizer_digest", "weights_digest", "settings_digest"):
            value = getattr(self, name)
            _check(isinstance(value, str) and len(value) <= 256, f"{name} must be a short text")
        self._check_layers()

    def _check_layers(self) -> None:
        """Check the fields that differ from layer to layer."""
        for name in ("more_ropes", "layer_ropes", "windows"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check(
            len(self.more_ropes) <= _MAX_ROPES
            and all(isinstance(rope, RopeSpec) for rope in self.more_ropes),
            f"more_ropes must hold at most {_MAX_ROPES} rotations",
        )
        one = (self.rope.rotary_dim, self.rope.interleaved)
        _check(
            all((rope.rotary_dim, rope.interleaved) == one for rope in self.more_ropes),
            "all rotations must turn the same dimensions, paired the same way",
        )
        for name, most in (("layer_ropes", len(self.more_ropes)), ("windows", _MAX_WINDOW)):
            values = getattr(self, name)
            _check(
                len(values) in (0, self.layers)
                and all(_is_int(v) and 0 <= v <= most for v in values),
                f"{name} must hold one number in 0..{most} for each of {self.layers} layers",
            )
        _check(
            set(self.layer_ropes or (0,)) == set(range(len(self.more_ropes) + 1)),
            "every rotation must be some layer's",
        )
        _check(not self.windows or any(self.windows), "windows must be empty if no layer has one")
        _check(isinstance(self.qk_norm, bool), "qk_norm must be true or false")

    @property
    def rotation(self) -> RopeSpec | LayeredRope:
        """How all layers' keys are rotated."""
        if not self.layer_ropes:
            return self.rope
        ropes = (self.rope, *self.more_ropes)
        return LayeredRope(tuple(ropes[i] for i in self.layer_ropes))

    @property
    def window(self) -> int | None:
        """The narrowest window of any layer; every layer sees the whole of a shorter context."""
        return min((window for window in self.windows if window), default=None)

    def require_window(self, tokens: int, what: str) -> None:
        """Refuse a sequence that some layer could not see from end to end.

        Args:
            tokens: The sequence's whole length.
            what: Its name, for the message.

        Raises:
            ContextError: It is longer than the narrowest window.
        """
        if self.window is not None and tokens > self.window:
            raise ContextError(
                f"{what} takes {tokens} tokens; the sliding windows of {self.model_id} see "
                f"{self.window}, and a cache past a window cannot be moved: shorten it"
            )

    @property
    def of_text(self) -> bool:
        """Whether the model reads texts: one row of at most `tokens` tokens."""
        return self.grid[0] == 1

    @property
    def tokens(self) -> int:
        """Image tokens of one picture, or the most tokens of a text."""
        return self.grid[0] * self.grid[1]

    @property
    def state_dim(self) -> int:
        """Numbers in one token's whole cache state: keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def versions(self) -> tuple[KVLayout, ...]:
        """This layout as each version of layouts describes it, the newest first.

        Version 1 has no `settings_digest`: two models that differ only in a setting share its
        fingerprint. Files made with version 1 stay usable: they fit any model of that fingerprint.
        """
        return (self, replace(self, settings_digest="")) if self.settings_digest else (self,)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The fingerprint of each version, newest first; a file made for any of them fits."""
        return tuple(layout.fingerprint for layout in self.versions)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, shortest floats that round-trip."""
        plain = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.default is MISSING or getattr(self, field.name) != field.default
        }
        plain["rope"] = asdict(self.rope)
        if self.more_ropes:
            plain["more_ropes"] = [asdict(rope) for rope in self.more_ropes]
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> KVLayout:
        """Read what `to_json` wrote; everything is checked.

        Raises:
            FrameMalformedError: Not JSON, too long, or not exactly the fields of a valid layout.
        """
        plain = read_json(text, MAX_JSON_BYTES, "cache layout")
        required = {field.name for field in fields(cls) if field.default is MISSING}
        optional = {field.name: field.default for field in fields(cls)}
        given = set(plain) if isinstance(plain, dict) else set()
        _exact_keys(plain, required | (given & set(optional)), "cache layout")
        lists = given & {"grid", "more_ropes", "layer_ropes", "windows"}
        _check(all(isinstance(plain[name], list) for name in lists), f"{lists} must be lists")
        more = [_rope_from(rope) for rope in plain.get("more_ropes", [])]
        made = cls(**{**plain, "rope": _rope_from(plain["rope"]), "more_ropes": tuple(more)})
        spelled_out = [n for n in given - required if getattr(made, n) == optional[n]]
        _check(not spelled_out, f"{spelled_out} hold what is left out")
        return made


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise FrameMalformedError(f"cache layout: {message}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rope_from(plain: Any) -> RopeSpec:
    _exact_keys(plain, {field.name for field in fields(RopeSpec)}, "rope")
    _check(isinstance(plain["inv_freq"], list), "inv_freq must be a list")
    return RopeSpec(**plain)


def _exact_keys(plain: Any, names: set[str], what: str) -> None:
    _check(isinstance(plain, dict), f"{what} must be an object")
    if set(plain) != names:
        missing, extra = sorted(names - set(plain)), sorted(set(plain) - names)
        raise FrameMalformedError(f"{what}: missing {missing}, unexpected {extra}")
