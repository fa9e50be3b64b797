"""kvpress chooses the tokens, at equal budgets; our own path does the rest.

The presses see a fixed question after the picture, since no question is known when a frame is made.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.compare.arms import Frame
from benchmarks.compare.wire import Shot
from benchmarks.rate.arms import Baseline, Edge
from benchmarks.rate.sequences import message_bytes
from benchmarks.rate.tensors import RIVALS_PYTHON
from projector.models.vlm import VLM
from protos.errors import BridgeError
from protos.header import Header
from reference.demo.terminal import Terminal

BUDGETS = (6, 12, 18)
OURS = ("symmetric_focus", "key_diversity", "uniform", "random")
QUESTION = "What is in the picture?"
SCRIPT = Path(__file__).with_name("kvpresses.py")
_TIMEOUT_S = 1800
_BATCH = 32

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def scores(vlm: VLM, pictures: Sequence[Image.Image]) -> dict[str, Floats]:
    """Every press's scores `[n, N]` of the pictures' tokens; the highest are kept.

    Raises:
        BridgeError: there is no environment for kvpress, or it cannot run on the model.
    """
    if not RIVALS_PYTHON.exists():
        raise BridgeError("no environment for kvpress: `make rivals` sets it up")
    after = vlm.question_ids(QUESTION)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.npz", Path(folder) / "out.npz"
        np.savez(given, inputs_embeds=_read_by_the_decoder(vlm, pictures, after))
        places = map(str, (len(vlm.prefix_ids), vlm.image_tokens, len(after)))
        done = subprocess.run(
            [str(RIVALS_PYTHON), str(SCRIPT), str(vlm.path), str(given), str(out), *places],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise BridgeError(f"kvpress failed on {vlm.path.name}: {' '.join(last)}")
        with np.load(out) as found:
            return {name: found[name] for name in found.files}


def _read_by_the_decoder(
    vlm: VLM, pictures: Sequence[Image.Image], question: Sequence[int]
) -> Floats:
    """The embeddings of the whole prompt, `[n, T, E]`."""
    noted: list[Floats] = []

    def note(_module: Any, _arguments: Any, kwargs: Any) -> None:
        noted.append(kwargs["inputs_embeds"].numpy())

    hook = vlm.decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for at in range(0, len(pictures), _BATCH):
            part = pictures[at : at + _BATCH]
            vlm.answer_pictures(part, [question] * len(part), 1)
    finally:
        hook.remove()
    return np.concatenate(noted)


def highest(some: Floats, budget: int) -> Mask:
    """The `budget` highest of each row `[n, N]`; of equals the first."""
    kept = np.zeros(some.shape, dtype=np.bool_)
    order = np.argsort(-some, axis=1, kind="stable")[:, :budget]
    np.put_along_axis(kept, order, True, axis=1)
    return kept


def rows(
    edge: Edge, judge: Baseline, found: Mapping[str, Floats], show: Terminal
) -> list[dict[str, Any]]:
    """The presses and our selectors at equal budgets, coded at the bundle's default point.

    `wire_bytes` are the message's, without the transport's.

    Args:
        edge: the edge model, with every picture's state.
        judge: judges the answers.
        found: scores `[n, N]` by press.
        show: the bench's terminal.
    """
    encoder = edge.pair.bundle.encoder
    made = []
    for budget in BUDGETS:
        chosen = {f"kvpress {name}": highest(each, budget) for name, each in found.items()}
        for name in OURS:
            selector = encoder.selecting(name)
            chosen[f"selector {name}"] = np.stack(
                [selector.keep(state, budget=budget) for state in edge.states]
            )
        for name, kept in chosen.items():
            kind = "rival" if name.startswith("kvpress") else "control"
            made.append(_row(edge, judge, f"{name}, {budget} tokens", kind, kept, show))
    return made


def _row(
    edge: Edge, judge: Baseline, name: str, kind: str, kept: Mask, show: Terminal
) -> dict[str, Any]:
    bundle = edge.pair.bundle
    point = bundle.encoder.point(bundle.info.default_point)
    frames, sizes = [], []
    for number, (state, mask) in enumerate(zip(edge.states, kept, strict=True)):
        coded = bundle.encoder.encode(state, point, mask)
        frames.append(Frame(Shot(point.index, b""), coded.held.latents, coded.held.kept))
        header = Header(point.index, number, coded.kept, 100, coded.distortion)
        sizes.append((len(coded.payload), message_bytes(header, coded.payload)))
    asked = [(q.picture, q.text) for q in judge.test.asked]
    with show.stage(f"{edge.name}: {name}", len(asked)) as advance:
        answers = edge.pair.injected(frames, asked, advance)
    payload, message = np.mean(sizes, axis=0).tolist()
    return judge.row(
        name,
        kind,
        answers,
        edge_model=edge.name,
        payload_bytes=round(payload, 2),
        wire_bytes=round(message, 2),
        tokens=int(kept[0].sum()),
        quantizer=point.quantizer,
    )
