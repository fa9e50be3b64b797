"""The pool: frames and questions that simulated devices send, made from pictures of the test split.

`python -m benchmarks.serve.pool FILE` makes the file with the edge model. It runs in its own
process, so that the process that measures loads no model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protos.distortion import Distortion
from protos.header import Header, pack_header
from protos.layout import KVLayout
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL

PICTURES, QUESTIONS = 128, 2


@dataclass(frozen=True)
class Item:
    """One frame with its question.

    Attributes:
        point: index of the operating point.
        kept: bool [N], as bytes.
        payload: the frame's payload.
        distortion: the header's four figures, one byte each.
        question: the question about it.
        truth: the right answer.
    """

    point: int
    kept: bytes
    payload: bytes
    distortion: bytes
    question: str
    truth: str

    def packed(self, frame_number: int) -> tuple[bytes, bytes]:
        """The fields `Frame.header` and `Frame.payload`."""
        kept = np.frombuffer(self.kept, dtype=np.bool_)
        figures = Distortion.from_bytes(self.distortion)
        header = Header(self.point, frame_number, kept, 0, figures)
        return pack_header(header, self.payload)


@dataclass(frozen=True)
class Pool:
    """Frames with questions, and the layout of the edge model.

    Attributes:
        layout: the edge model's layout.
        items: frames with questions.
    """

    layout: KVLayout
    items: list[Item]

    @classmethod
    def read(cls, path: Path) -> Pool:
        """Read what `write` wrote."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        items = [
            Item(
                row["point"],
                bytes.fromhex(row["kept"]),
                bytes.fromhex(row["payload"]),
                bytes.fromhex(row["distortion"]),
                row["question"],
                row["truth"],
            )
            for row in plain["items"]
        ]
        return cls(KVLayout.from_json(plain["layout"]), items)


def pool(folder: Path) -> Pool:
    """The reference bundle's pool; made now if the folder does not have it."""
    digest = json.loads((BUNDLE / "bundle.json").read_text(encoding="utf-8"))["digest"]
    path = folder / f"pool-{digest[:12]}.json"
    if not path.is_file():
        print(f"serve: encoding {PICTURES} pictures once, into {path}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "benchmarks.serve.pool", str(path)], check=True)
    return Pool.read(path)


def write(path: Path) -> None:
    """Encode pictures of the test split at the reference bundle's default point."""
    from benchmarks.compare.arms import Pair
    from reference.demo.testset import TestSet

    pair = Pair.load(EDGE_MODEL, CLOUD_MODEL, BUNDLE)
    test = TestSet.load("test", PICTURES, QUESTIONS)
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    shots = [pair.encode(state, point).shot for state in pair.states(test.pictures)]
    items = [
        {
            "point": shots[asked.picture].point,
            "kept": shots[asked.picture].kept.tobytes().hex(),
            "payload": shots[asked.picture].payload.hex(),
            "distortion": shots[asked.picture].distortion.to_bytes().hex(),
            "question": asked.text,
            "truth": asked.truth,
        }
        for asked in test.asked
    ]
    made = {"layout": pair.edge.layout.to_json(), "items": items}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(made), encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
