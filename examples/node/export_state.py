"""Writes an edge model's cache of one picture, for a client that cannot run the model.

    python -m examples.node.export_state --model MODEL --source SOURCE --out FOLDER

The folder gets `picture.png` and `state.safetensors`: the cache as the model keeps it, keys rotated
(`keys` and `values`, float32 [layers, kv_heads, N, head_dim]), each token's position (`positions`,
int64 [N]) and the attention that it received (`attention`, float32 [N]). The metadata hold the
cache's layout (`source_layout_json`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edge_agent.prefill import load
from edge_agent.sources import Capture, open_source
from protos.errors import BridgeError, SourceError
from protos.layout import KVLayout
from protos.rotation import rotate
from protos.state import KVState


def write_state(state: KVState, layout: KVLayout, path: Path) -> None:
    """Write one picture's cache.

    Args:
        state: the cache, keys un-rotated.
        layout: the model's layout.
        path: the safetensors file.
    """
    tensors = {
        "keys": rotate(state.keys, layout.rotation, state.positions),
        "values": state.values,
        "positions": state.positions,
        "attention": state.attention,
    }
    made = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(made, path, metadata={"source_layout_json": layout.to_json()})


def export(model: Path, source: str, out: Path) -> Capture:
    """Run the model over a source's first picture; write its cache and the picture itself.

    Raises:
        SourceError: the source's first capture is no picture.
        BridgeError: an error of the model or the source.
    """
    capture = next(iter(open_source(source)))
    if capture.error is not None:
        raise capture.error
    if capture.picture is None:
        raise SourceError(f"source {source}: {capture.name} is no picture")
    loaded = load(model)
    out.mkdir(parents=True, exist_ok=True)
    write_state(loaded.see(capture.picture).state, loaded.layout, out / "state.safetensors")
    capture.picture.save(out / "picture.png")
    return capture


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.node.export_state",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="a vision-language model")
    parser.add_argument("--source", required=True, help="source; its first picture is taken")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    given = parser.parse_args(arguments)
    try:
        export(given.model, given.source, given.out)
    except BridgeError as error:
        print(f"export_state: {error.name}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {given.out / 'state.safetensors'} and picture.png beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
