"""Unclipped uniform rounding, entropy coded by classes of tokens: the low-rate points."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protos.entropy.lanes import MAX_CONTEXTS, LaneCoder, lanes_for
from protos.entropy.rans import ClassCoder
from protos.entropy.tables import EntropyTables
from protos.errors import FrameMalformedError
from protos.quantize.base import Floats, Quantizer, exact_size, in_steps

_RAW_MARK = 0
_RAW_HEADER_BYTES = 2
_LANES_MARK = 32
_LANES_HEADER_BYTES = 4


@dataclass(frozen=True)
class UniformQuantizer(Quantizer):
    """`round(z / step)`, rANS coded token by token; raw if that is shorter.

    Each token gets the class that codes it shortest. From 8192 symbols on the coder has many states
    side by side (`protos.entropy.lanes`): more bytes (three a state), several times as fast. With
    more than 1024 tables (classes times latents) it always has one state.

    Args:
        tables: The operating point's, from the encoder.
    """

    tables: EntropyTables
    name: ClassVar[str] = "uniform"
    _coder: ClassCoder = field(init=False, repr=False, compare=False)
    _wide: LaneCoder | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tables = self.tables
        coder = ClassCoder(tables.frequency, tables.prior)
        object.__setattr__(self, "_coder", coder)
        few = tables.classes * tables.rank <= MAX_CONTEXTS
        wide = LaneCoder(tables.frequency, tables.prior) if few else None
        object.__setattr__(self, "_wide", wide)

    def _encode(self, z: Floats, steps: Floats) -> bytes:
        self._check_rank(z.shape[1])
        rounded = np.rint(in_steps(z, steps))
        if rounded.size and (rounded.min() < -32768 or rounded.max() > 32767):
            raise FrameMalformedError("a latent is more than 32767 steps from 0")
        values = rounded.astype(np.int64)
        classes, symbols = self.tables.coded(values)
        escaped = _zigzag(values[symbols == self.tables.escape])
        lanes = 0 if self._wide is None else lanes_for(symbols.size)
        if self._wide is not None and lanes:
            stream = struct.pack("<BBH", _RAW_MARK, _LANES_MARK, lanes)
            stream += self._wide.encode(classes, symbols, lanes)
            stream += escaped.astype("<u2").tobytes()
        else:
            stream = self._coder.encode(classes, symbols, escaped)
        codes = _zigzag(values.reshape(-1))
        width = max(1, int(codes.max(initial=0)).bit_length())
        if len(stream) <= _RAW_HEADER_BYTES + (codes.size * width + 7) // 8:
            return stream
        bits = (codes[:, None] >> np.arange(width) & 1).astype(np.uint8)
        return bytes((_RAW_MARK, width)) + np.packbits(bits, bitorder="little").tobytes()

    def _decode(self, payload: bytes, tokens: int, rank: int, steps: Floats) -> Floats:
        self._check_rank(rank)
        if payload[:2] == bytes((_RAW_MARK, _LANES_MARK)):
            values = self._values(*self._side_by_side(payload, tokens))
        elif payload[:1] == bytes((_RAW_MARK,)):
            values = _unpack(payload, tokens * rank).reshape(tokens, rank)
        elif self._wide is not None and lanes_for(tokens * rank):
            raise FrameMalformedError(
                f"a payload of {tokens * rank} latents has many states side by side, or is raw"
            )
        else:
            _, symbols, escaped = self._coder.decode(payload, tokens)
            values = self._values(symbols, escaped)
        decoded: Floats = values.astype(np.float32) * steps
        return decoded

    def _values(
        self, symbols: npt.NDArray[np.int64], escaped: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        values: npt.NDArray[np.int64] = symbols + self.tables.offset
        values[symbols == self.tables.escape] = _unzigzag(escaped)
        return values

    def _side_by_side(
        self, payload: bytes, tokens: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Symbols and escaped values of a payload of many states."""
        lanes = int.from_bytes(payload[2:_LANES_HEADER_BYTES], "little")
        wanted = 0 if self._wide is None else lanes_for(tokens * self.tables.rank)
        if self._wide is None or not wanted or lanes != wanted:
            raise FrameMalformedError(
                f"{lanes} states side by side where {tokens} tokens of {self.tables.rank} latents "
                f"need {wanted or 1}"
            )
        _, symbols, rest = self._wide.decode(payload[_LANES_HEADER_BYTES:], tokens, lanes)
        exact_size(rest, 2 * int((symbols == self.tables.escape).sum()))
        return symbols, np.frombuffer(rest, dtype="<u2").astype(np.int64)

    def _check_rank(self, rank: int) -> None:
        if rank != self.tables.rank:
            raise FrameMalformedError(
                f"{rank} latents per token, the entropy tables are for {self.tables.rank}"
            )


def _zigzag(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    code: npt.NDArray[np.int64] = (values << 1) ^ (values >> 63)
    return code


def _unzigzag(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = (codes >> 1) ^ -(codes & 1)
    return values


def _unpack(payload: bytes, numbers: int) -> npt.NDArray[np.int64]:
    width = payload[1] if len(payload) > 1 else 0
    if not 1 <= width <= 16:
        raise FrameMalformedError(f"raw latents of {width} bits, expected 1 to 16")
    exact_size(payload, _RAW_HEADER_BYTES + (numbers * width + 7) // 8)
    packed = np.frombuffer(payload, dtype=np.uint8, offset=_RAW_HEADER_BYTES)
    bits = np.unpackbits(packed, bitorder="little")
    if bits[numbers * width :].any():
        raise FrameMalformedError("the unused last bits of the payload are not 0")
    weights = 1 << np.arange(width, dtype=np.int64)
    return _unzigzag(bits[: numbers * width].reshape(numbers, width) @ weights)
