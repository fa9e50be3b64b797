"""The family of quantizers: latents to bytes and back."""

from __future__ import annotations

import difflib

from protos.entropy.tables import EntropyTables
from protos.errors import ConfigError, UnknownQuantizerError
from protos.quantize.base import Quantizer
from protos.quantize.fp8_e4m3 import Fp8E4M3Quantizer
from protos.quantize.fp8_token import Fp8TokenQuantizer
from protos.quantize.int4 import Int4Quantizer
from protos.quantize.int8 import Int8Quantizer
from protos.quantize.none import NoQuantizer
from protos.quantize.uniform import UniformQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    member.name: member
    for member in (
        NoQuantizer,
        Fp8E4M3Quantizer,
        Fp8TokenQuantizer,
        Int8Quantizer,
        Int4Quantizer,
        UniformQuantizer,
    )
}
"""Name to class, for every quantizer."""

__all__ = ["QUANTIZERS", "Quantizer", "UniformQuantizer", "get"]


def get(name: str, tables: EntropyTables | None = None) -> Quantizer:
    """Build a quantizer by name.

    Args:
        name: A key of `QUANTIZERS`.
        tables: The tables that `uniform` codes with; ignored by the others. Building `uniform`
            takes about a millisecond, so keep the instance.

    Raises:
        UnknownQuantizerError: No quantizer has that name; the message names the nearest.
        ConfigError: `uniform` without tables.
    """
    cls = QUANTIZERS.get(name)
    if cls is None:
        nearest = difflib.get_close_matches(name[:64], QUANTIZERS, n=1, cutoff=0.0)
        raise UnknownQuantizerError(
            f"no quantizer is called {name[:64]!r}; the nearest is {nearest[0]!r} "
            f"(all: {', '.join(QUANTIZERS)})"
        )
    if cls is UniformQuantizer:
        if tables is None:
            raise ConfigError("the quantizer 'uniform' needs the entropy tables of its point")
        return UniformQuantizer(tables)
    return cls()
