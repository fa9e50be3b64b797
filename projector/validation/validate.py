"""Judges a map in full: the content of `report.json` (torch).

It gathers the figures of `answers`, `reconstruction`, `bounds`, `diagnostics` and `literature`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector.bundle.certificate import CONTROLS, LEAST_PICTURES, answered, grade, verdict_of
from projector.maps.base import Map
from projector.maps.bidirectional import BidirectionalMap
from projector.training.corpus import Corpus
from projector.validation import literature
from projector.validation.answers import PRECISIONS, Answers, Validator
from projector.validation.bounds import judge_bound
from projector.validation.diagnostics import amplification, diagnostics, lower_ranks, principal
from projector.validation.estimate import by_group, clustered, paired
from projector.validation.reconstruction import reconstruction
from protos.errors import FitError

LEAST_OF_A_KIND = 30
"""Fewest questions of a kind for a verdict on it."""
_SPREAD_PICTURES = 256


def validate(
    judge: Validator,
    untrained_edge: npt.NDArray[np.floating] | None = None,
    edge_only: list[bool] | None = None,
    costs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge a map: the whole of `report.json`.

    Args:
        judge: asks the questions.
        untrained_edge: as `controls` takes it.
        edge_only: whether the edge model's own answer is right, one per question.
        costs: what `cost.costs` returned.
    """
    native, mapped = judge.native(), judge.mapped()
    arms = {"native": native, "mapped": mapped}
    bound: dict[str, Any] = {"none": "not a map of a family"}
    if isinstance(judge.map, Map):
        arms["mapped_fp8"] = judge.mapped_fp8()
        arms |= {f"mapped_{name}": judge.in_precision(name) for name in PRECISIONS}
        try:
            bound = judge_bound(judge.map, judge.corpus)
        except FitError as error:
            bound = {"none": error.message}
    arms |= judge.controls(untrained_edge)
    accuracy = {
        name: clustered([float(r) for r in arm.right], judge.pictures).to_json()
        for name, arm in arms.items()
    }
    if edge_only is not None:
        found = clustered([float(r) for r in edge_only], judge.pictures)
        accuracy["edge_only"] = found.to_json()
    right, where = judge.other_labels()
    labels = None if not right else float(np.mean(right))
    followed = (
        None if not right else float(np.mean([arms["other_picture"].right[i] for i in where]))
    )
    fit = reconstruction(judge.map, judge.corpus)
    kinds = [one.kind for one in judge.asked]
    differences = {
        "native_minus_blind": paired(native.right, arms["blind"].right, judge.pictures),
        **{
            f"mapped_minus_{name}": paired(mapped.right, arms[name].right, judge.pictures)
            for name in CONTROLS
        },
    }
    told: dict[str, Any] = {
        "pictures_asked": len(set(judge.pictures)),
        "accuracy": accuracy,
        "differences": {name: found.to_json() for name, found in differences.items()},
    }
    verdict = verdict_of(told, "mapped")
    floor = accuracy["blind"]["mean"]
    above = accuracy["native"]["mean"] - floor if verdict.judged else 0.0
    retention = (accuracy["mapped"]["mean"] - floor) / above if above > 0 else None
    letter, metal = answered(retention, verdict)
    rel_l2 = fit["whole"]["relative_l2"]
    report = {
        "pictures": len(judge.corpus),
        "pictures_asked": told["pictures_asked"],
        "questions": len(judge.asked),
        "accuracy": accuracy,
        "differences": told["differences"],
        "verdict": verdict.state,
        "why": verdict.why,
        "mapped_minus_native": paired(mapped.right, native.right, judge.pictures).to_json(),
        "other_picture_labels": {
            "questions": len(right),
            "labels": labels,
            "other_picture": followed,
        },
        "accuracy_by_kind": {
            name: by_group(arms[name].right, kinds) for name in ("native", "mapped", "blind")
        },
        "agreement": {
            "first_token": float(np.mean(mapped.first)),
            "full_answer": float(np.mean(mapped.full)),
            "kl_nats": float(np.mean(mapped.kl)),
        },
        "attention_amplification": amplification(
            mapped.variation, kinds, rel_l2, _telling(judge, native, arms["blind"])
        ),
        "reconstruction": fit,
        "retention": retention,
        "grade_by_reconstruction": grade(fit["whole"]["cosine"], fit["whole"]["mse"]),
        "grade_by_answers": letter,
        "tier_by_answers": metal,
        "diagnostics": diagnostics(judge.map),
        "round_trip": _round_trip(judge.map, judge.corpus),
        "bound": bound,
        "distortion_by_arm": {name: float(np.mean(arm.variation)) for name, arm in arms.items()},
        "precision": _precision(judge, arms, fit),
        "retention_by_rank": by_rank(judge, floor, above),
        "worst_pictures": _worst(judge, mapped),
    }
    if costs is not None:
        report["costs"] = dict(costs)
    return report | {"literature": literature.beside(report)}


def arm_count(judge: Validator, untrained_edge: npt.NDArray[np.floating] | None) -> int:
    """How many arms `validate` asks, at most."""
    made = judge.map
    controls = 3 + isinstance(made, Map) + (untrained_edge is not None)
    if not isinstance(made, Map):
        return 2 + controls
    return 3 + len(PRECISIONS) + controls + len(lower_ranks(made))


def _telling(judge: Validator, native: Answers, blind: Answers) -> set[str]:
    """Kinds of question that the native cache answers better than no picture does."""
    found = set()
    for kind in {one.kind for one in judge.asked}:
        rows = [i for i, one in enumerate(judge.asked) if one.kind == kind]
        pictures = [judge.pictures[i] for i in rows]
        if len(rows) < LEAST_OF_A_KIND or len(set(pictures)) < LEAST_PICTURES:
            continue
        seen, unseen = ([arm.right[i] for i in rows] for arm in (native, blind))
        if paired(seen, unseen, pictures).low > 0:
            found.add(kind)
    return found


def _precision(
    judge: Validator, arms: Mapping[str, Answers], fit: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What the map loses when its weights are stored in fewer bits."""
    made = judge.map
    if not isinstance(made, Map):
        return []
    fits = {"float32": fit} | {
        name: reconstruction(made.in_precision(dtype), judge.corpus)
        for name, dtype in PRECISIONS.items()
    }
    found = []
    for name, figures in fits.items():
        arm = arms["mapped" if name == "float32" else f"mapped_{name}"]
        whole = figures["whole"]
        found.append(
            {
                "precision": name,
                "accuracy": float(np.mean(arm.right)),
                "answers_changed": float(np.mean(np.not_equal(arm.right, arms["mapped"].right))),
                "cosine": whole["cosine"],
                "cosine_lost": fit["whole"]["cosine"] - whole["cosine"],
                "relative_l2": whole["relative_l2"],
            }
        )
    return found


def _round_trip(made: Any, corpus: Corpus) -> float | None:
    """`||back(forward(x)) - x||^2 / ||x||^2` on z-scores; None for a map without a way back."""
    if not isinstance(made, BidirectionalMap):
        return None
    return made.round_trip(torch.from_numpy(corpus.x.astype(np.float32)))


def by_rank(judge: Validator, floor: float, above: float) -> list[dict[str, Any]]:
    """Retention of the map's best approximations of lower rank; empty if it is not linear."""
    made = judge.map
    if not isinstance(made, Map) or made.weights() is None or above <= 0:
        return []
    x = torch.from_numpy(judge.corpus.x[:_SPREAD_PICTURES].astype(np.float32))
    with torch.no_grad():
        seen = made.regrid(made.normal(x)).flatten(0, 1)
        u, s, v = principal(made, seen[~seen[:, 0].isnan()])  # NaN past a text's end
        bias = made.cloud(made.down(torch.zeros(1, made.source.tokens, made.source.state_dim)))
        bias = bias[:, :1]  # the same for every token
    found = []
    for rank in lower_ranks(made):
        if rank >= len(s):
            break
        narrow, wide = u[:, :rank] * s[:rank], v[:rank]

        def states(
            x: npt.NDArray[np.float32], narrow: Tensor = narrow, wide: Tensor = wide
        ) -> Tensor:
            z = made.regrid(made.normal(torch.from_numpy(x)) @ narrow)
            there: Tensor = made.states(z @ wide + bias)
            return there

        right = float(np.mean(judge.states(states).right))
        found.append({"rank": rank, "accuracy": right, "retention": (right - floor) / above})
    return found


def _worst(judge: Validator, mapped: Answers, most: int = 10) -> list[dict[str, Any]]:
    """The pictures with the largest KL, and the questions whose answers differ."""
    total: dict[int, float] = {}
    for one, kl in zip(judge.asked, mapped.kl, strict=True):
        total[one.picture] = total.get(one.picture, 0.0) + kl
    return [
        {
            "picture": judge.dataset.files[picture].name,
            "kl_nats": total[picture],
            "answered_otherwise": [
                {"question": one.text, "answer": one.answer}
                for one, same in zip(judge.asked, mapped.full, strict=True)
                if one.picture == picture and not same
            ],
        }
        for picture in sorted(total, key=lambda p: -total[p])[:most]
    ]
