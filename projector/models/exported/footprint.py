"""A program that measures what an edge export takes in memory: prints bytes.

python -m projector.models.exported.footprint FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from protos.process.memory import peak_bytes, resident_bytes


def main(folder: str) -> int:
    """Open an export on the CPU, run its witness, print the growth of resident memory at its peak.

    ONNX Runtime and the tokenizer count too; what the agent has anyway (NumPy, Pillow) does not.
    """
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import pydantic  # noqa: F401

    before = resident_bytes()
    from projector.models.exported import check
    from projector.models.exported.vlm import ExportedVLM

    check.require(ExportedVLM.load(Path(folder), "cpu", 1), Path(folder))
    print(peak_bytes() - before)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
