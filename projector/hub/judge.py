"""The certificate of a joined edge half: right answers beside controls, on pictures kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from projector.bundle.certificate import GOOD, UNJUDGED, WORSE, Verdict, verdict_of
from projector.calibration.ladder import Judge
from projector.codec.arrays import Floats
from projector.validation.estimate import clustered, paired
from protos.process.progress import Progress

OWN_CONTROLS = ("untrained_edge", "shuffled_targets")
"""Fitted as the half itself: from a small model with random weights, and to the latents of other
pictures. `projector.bundle.certificate.CONTROLS` are the others."""


def judged(judge: Judge, latents: Mapping[str, Floats]) -> dict[str, Any]:
    """Answers from each arm's latents, in the form of `projector validate`'s report.

    Args:
        judge: asks about n pictures kept apart.
        latents: `[n, N, r]`, not rounded; `mapped` and every control but `blind`.

    Returns:
        `pictures`, `accuracy`, `differences`, `verdict` and `why` (see `verdict`).
    """
    with Progress("judging", 2 + len(latents), "arm") as bar:
        right = {"native": judge.native()}
        bar.advance()
        right["blind"] = judge.blind()
        bar.advance()
        for name, z in latents.items():
            right[name], _ = judge.answers(z, np.ones(z.shape[:2], dtype=np.bool_))
            bar.advance()
    pictures, count = right["native"].shape
    of = np.repeat(np.arange(pictures), count).tolist()
    flat = {name: mask.ravel().tolist() for name, mask in right.items()}
    beside = [name for name in flat if name not in ("native", "mapped")]
    differences = {f"mapped_minus_{n}": paired(flat["mapped"], flat[n], of) for n in beside}
    differences["native_minus_blind"] = paired(flat["native"], flat["blind"], of)
    told: dict[str, Any] = {
        "pictures": pictures,
        "pictures_asked": pictures,
        "questions": pictures * count,
        "accuracy": {n: clustered([float(r) for r in m], of).to_json() for n, m in flat.items()},
        "differences": {name: found.to_json() for name, found in differences.items()},
    }
    found = verdict(told)
    return {**told, "verdict": found.state, "why": found.why}


def verdict(certificate: Mapping[str, Any]) -> Verdict:
    """Whether a joined half beats every control, its own ones too.

    Args:
        certificate: as `judged` makes it.
    """
    found = verdict_of(certificate, "mapped")
    accuracy, apart = certificate["accuracy"], certificate["differences"]
    not_beaten = [n for n in OWN_CONTROLS if not apart[f"mapped_minus_{n}"]["low"] > 0]
    if found.state != GOOD or not not_beaten:
        return found
    why = ", ".join(f"{n.replace('_', ' ')} {accuracy[n]['mean']:.1%}" for n in not_beaten)
    worse = any(apart[f"mapped_minus_{n}"]["high"] <= 0 for n in not_beaten)
    return Verdict(
        WORSE if worse else UNJUDGED, f"right in {accuracy['mapped']['mean']:.1%}, beside {why}"
    )


def other_picture(latents: Floats) -> Floats:
    """Each picture's latents replaced by the next one's: a control."""
    rolled: Floats = np.roll(latents, -1, axis=0)
    return rolled
