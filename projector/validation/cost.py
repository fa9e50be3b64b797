"""Cost of an answer from a projected cache and from the input itself (torch, batch 1).

CPU time is this process's, over all threads. Energy is that time times a stated wattage: an
estimate, given on a CPU only. FLOPs are counted by torch over matrix products, convolutions and
attention.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from projector.maps.base import Map
from projector.models.lm import LM
from projector.training.train import Trainer

_WARM = 2


def costs(
    trainer: Trainer[Any],
    x: np.ndarray[Any, Any],
    seen: Image.Image | str,
    question: str,
    watts: float,
    rounds: int = 12,
) -> dict[str, Any]:
    """Latency, CPU time, energy, operations and bytes up to the first answer token.

    Args:
        trainer: holds the map and the frozen target.
        x: the source states `[1, N, d_s]` of one picture or text.
        seen: that picture or text.
        question: the question about it.
        watts: power of one busy core.
        rounds: figures are medians over so many rounds, the two arms in turn.

    Returns:
        `watts`, `device`, and `projected` and `full` with `latency_ms`, `cpu_s`, `energy_j` (None
        where the models run on a GPU), `flops` and `bytes` (the map's latents in FP8 against the
        picture as PNG, or the text); `projected.project_flops` is the map's share.
    """
    target, ids = trainer.target, [trainer.question_ids(question)]
    states, on_cpu = trainer.placed(x), trainer.device.type == "cpu"

    def full() -> None:
        if isinstance(target, LM):
            target.answer_texts([target.tokens(str(seen)).ids], ids, 1)
        elif isinstance(seen, Image.Image):
            target.answer_pictures([seen], ids, 1)

    def projected() -> None:
        with torch.inference_mode():
            layers = trainer.layers(trainer.map.travel(states)[0])
        target.answer(layers, ids, 1)

    def project() -> None:
        with torch.inference_mode():
            trainer.map.travel(states)

    arms = {"projected": projected, "full": full}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(rounds + _WARM):
        for name, call in arms.items():
            begun, cpu = time.perf_counter(), time.process_time()
            call()
            spent[name].append((time.perf_counter() - begun, time.process_time() - cpu))
    encoded = io.BytesIO(str(seen).encode())
    if isinstance(seen, Image.Image):
        encoded = io.BytesIO()
        seen.save(encoded, "PNG")
    made = trainer.map
    rank = made.rank if isinstance(made, Map) else int(made.down.shape[1])
    sent = {"projected": x.shape[1] * rank, "full": len(encoded.getvalue())}
    found: dict[str, Any] = {"watts": watts, "device": _named(trainer.device)}
    for name, call in arms.items():
        wall, cpu = np.median(np.array(spent[name][_WARM:]), axis=0)
        found[name] = {
            "latency_ms": round(1000 * float(wall), 3),
            "cpu_s": round(float(cpu), 5),
            "energy_j": round(float(cpu) * watts, 5) if on_cpu else None,
            "flops": _flops(call),
            "bytes": sent[name],
        }
    found["projected"]["project_flops"] = _flops(project)
    return found


def _named(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)


def _flops(call: Callable[[], None]) -> float:
    with FlopCounterMode(display=False) as counted:
        call()
    return float(counted.get_total_flops())
