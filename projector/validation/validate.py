"""How good a map is: reconstruction per layer, answers, controls, grades, diagnostics (torch).

Knows a map, held-out pairs, questions with answers and the frozen target. Does not know: files,
plots. A figure of answers is never made without its controls, and never from fewer than 384
questions (5 points either way at 95 %).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from projector.bundle.certificate import CONTROLS, LEAST_PICTURES, answered, grade, verdict_of
from projector.maps.base import Map
from projector.maps.bidirectional import BidirectionalMap
from projector.maps.low_rank import LowRankMatrix
from projector.models.cache import LayerCache
from projector.models.packed import IGNORED, Packed
from projector.training.corpus import Corpus
from projector.training.dataset import Asked, Dataset
from projector.training.train import Trainer
from projector.validation import literature
from projector.validation.bounds import judge_bound, through_fp8
from projector.validation.estimate import by_group, clustered, paired
from protos.errors import CorpusError, FitError

CONDITION_LIMIT = 1000.0
LEAST_OF_A_KIND = 30
"""Questions of a kind, for anything to be said of it."""
_BATCH = 32
_NEGLIGIBLE = 0.01
_TOLD = 1e-7
_SPREAD_PICTURES = 256
_KEPT_BYTES = 1 << 28  # of native logits, which every arm is compared with

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""Narrower types that a map's weights may be stored in."""

States = npt.NDArray[np.floating]
Make = Callable[[npt.NDArray[np.float32], States, range], Sequence[LayerCache]]
"""From source states `[B, N, d_s]`, target states `[B, M, d_r]` and the pictures to a cache."""


@dataclass
class Answers:
    """What the frozen model answered from some cache, one entry per question.

    Attributes:
        right: every answer token is the likeliest one (an exact match, under teacher forcing).
        first: the answer's first token is what the native cache gives.
        full: all its tokens are.
        kl: KL of the native answer distribution from this one, nats, summed over the answer.
        variation: total variation distance of the first token's distributions, 0 to 1.
    """

    right: list[bool]
    first: list[bool]
    full: list[bool]
    kl: list[float]
    variation: list[float]


@dataclass
class Validator:
    """Held-out pairs and the questions about their pictures.

    Attributes:
        trainer: holds the map and the frozen target, on any device.
        corpus: held-out pairs, in the dataset's order from picture `first` on.
        dataset: pictures and questions.
        per_picture: questions asked of each picture.
        first: index of the corpus's first picture in the dataset.
        told: is told of how many more pictures an arm was asked.
    """

    trainer: Trainer[Any]
    corpus: Corpus
    dataset: Dataset
    per_picture: int = 6
    first: int = 0
    told: Callable[[int], None] = lambda _: None

    def __post_init__(self) -> None:
        """Lists the questions.

        Raises:
            CorpusError: fewer pictures in the dataset than in the corpus.
            FitError: fewer than 384 questions.
        """
        if self.first + len(self.corpus) > len(self.dataset):
            raise CorpusError(
                f"the corpus holds {len(self.corpus)} pictures, the dataset {len(self.dataset)}"
            )
        inputs = range(self.first, self.first + len(self.corpus))
        self.dataset.require_questions(self.per_picture, inputs)
        self.rows: list[list[Asked]] = [
            list(self.dataset.asked(self.first + i)[: self.per_picture])
            for i in range(len(self.corpus))
        ]
        self.asked = [one for row in self.rows for one in row]
        self.pictures = [one.picture for one in self.asked]
        self._native: dict[int, torch.Tensor] = {}

    @property
    def map(self) -> Any:
        """The map, on the CPU: only what the target is asked needs another device."""
        made = self.trainer.map
        return made if self.trainer.device.type == "cpu" else copy.deepcopy(made).to("cpu")

    def arms(self, untrained_edge: npt.NDArray[np.floating] | None) -> int:
        """How many arms `report` asks, at most."""
        made = self.map
        controls = 3 + isinstance(made, Map) + (untrained_edge is not None)
        if not isinstance(made, Map):
            return 2 + controls
        return 3 + len(PRECISIONS) + controls + len(_ranks(made))

    def answers(self, make: Make) -> Answers:
        """Answers from a cache, beside those from the native one."""
        found = Answers([], [], [], [], [])
        with torch.no_grad():
            for begin in range(0, len(self.corpus), _BATCH):
                chosen = range(begin, min(begin + _BATCH, len(self.corpus)))
                rows = [self.rows[i] for i in chosen]
                self.told(len(chosen))
                if not any(rows):
                    continue
                packed = self._packed(rows)
                x = self.corpus.x[begin : chosen.stop].astype(np.float32)
                y = self.corpus.y[begin : chosen.stop]
                given = self.trainer.logits(packed, make(x, y, chosen))
                native = self._native_logits(begin, packed, y)
                self._take(found, packed, native, given, [len(row) for row in rows])
        return found

    def _packed(self, rows: Sequence[Sequence[Asked]]) -> Packed:
        """As many questions for each picture; `_take` drops the repeated ones again."""
        most = max(map(len, rows))
        some = next(row for row in rows if row)
        full = [(list(row) * most)[:most] if row else [some[0]] * most for row in rows]
        ids, answers = self.trainer.question_ids, self.trainer.answer_ids
        asked = [[(ids(q.text), answers(q.answer)) for q in row] for row in full]
        return Packed.of(asked, self.trainer.device)

    def _native_logits(self, begin: int, packed: Packed, y: States) -> torch.Tensor:
        if begin in self._native:
            return self._native[begin]
        found = self.trainer.logits(packed, self.trainer.native_layers(y))
        if found.nbytes + sum(kept.nbytes for kept in self._native.values()) <= _KEPT_BYTES:
            self._native[begin] = found
        return found

    def _take(
        self,
        found: Answers,
        packed: Packed,
        native: torch.Tensor,
        given: torch.Tensor,
        counts: list[int],
    ) -> None:
        wanted = packed.labels != IGNORED
        shape = (len(packed.labels), packed.questions, -1)
        log_p, log_q = native.log_softmax(-1), given.log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        columns = {
            "wrong": (given.argmax(-1) != packed.labels[wanted]).float(),
            "other": (given.argmax(-1) != native.argmax(-1)).float(),
            "kl": (p * (log_p - log_q)).sum(-1),
            "variation": 0.5 * (p - q).abs().sum(-1),
        }
        spread = {}
        for name, values in columns.items():
            grid = given.new_zeros(packed.labels.shape)
            grid[wanted] = values
            spread[name] = grid.view(*shape)
        start = wanted.view(*shape).float().argmax(-1, keepdim=True)
        first = {name: grid.gather(-1, start)[..., 0] for name, grid in spread.items()}
        for b, count in enumerate(counts):
            found.right += (spread["wrong"][b, :count].sum(-1) == 0).tolist()
            found.full += (spread["other"][b, :count].sum(-1) == 0).tolist()
            found.first += (first["other"][b, :count] == 0).tolist()
            found.kl += spread["kl"][b, :count].sum(-1).tolist()
            found.variation += first["variation"][b, :count].tolist()

    # -- arms --------------------------------------------------------------------------------------

    def mapped(self) -> Answers:
        """From the map's cache."""
        return self.answers(lambda x, _y, _i: self.trainer.mapped_layers(x))

    def mapped_fp8(self) -> Answers:
        """From the map's cache, latents through FP8."""
        made = self.map
        through = through_fp8(made, self.corpus)

        def states(x: npt.NDArray[np.float32]) -> torch.Tensor:
            z = made.down(made.normal(torch.from_numpy(x)))
            read: torch.Tensor = made.cloud(torch.from_numpy(through(z.numpy())))
            there: torch.Tensor = made.states(read)
            return there

        return self.states(states)

    def in_precision(self, name: str) -> Answers:
        """From the map's cache, its weights stored in a type of `PRECISIONS`."""
        made = self.map.in_precision(PRECISIONS[name])
        return self.states(lambda x: made(torch.from_numpy(x)))

    def native(self) -> Answers:
        """From the target's own cache."""
        return self.answers(lambda _x, y, _i: self.trainer.native_layers(y))

    def states(self, of: Callable[[npt.NDArray[np.float32]], torch.Tensor]) -> Answers:
        """From target states `[B, M, d_r]` that a function makes of source states."""
        return self.answers(lambda x, _y, _i: self.trainer.layers(of(x)))

    def blind(self) -> Answers:
        """From no picture at all."""
        return self.answers(lambda x, _y, _i: self.trainer.blind_layers(len(x)))

    def other_picture(self) -> Answers:
        """From the cache of the next picture."""
        whole = self.corpus.x

        def make(_x: npt.NDArray[np.float32], _y: States, chosen: range) -> list[LayerCache]:
            others = [(i + 1) % len(whole) for i in chosen]
            return self.trainer.mapped_layers(whole[others].astype(np.float32))

        return self.answers(make)

    def other_labels(self) -> tuple[list[bool], list[int]]:
        """What the next picture's labels would score, where the dataset says what they are.

        Returns:
            Whether they are right, and the indices of the questions concerned.
        """
        right, where = [], []
        for index, one in enumerate(self.asked):
            place = (one.picture - self.first + 1) % len(self.corpus) + self.first
            label = self.dataset.truth(place, one.text)
            if label is not None:
                right.append(label == one.answer)
                where.append(index)
        return right, where

    def controls(self, untrained_edge: npt.NDArray[np.floating] | None) -> dict[str, Answers]:
        """Every arm that must do badly.

        Args:
            untrained_edge: target states `[n, M, d_r]` of a map fitted to a random edge model.
        """
        made = self.map
        mean = made.y_stats[0]
        arms = {
            "blind": self.blind(),
            "other_picture": self.other_picture(),
            "mean_state": self.states(lambda x: mean.expand(len(x), self.corpus.y.shape[1], -1)),
        }
        if isinstance(made, Map):
            other = untrained(made)
            arms["untrained_map"] = self.states(lambda x: other(torch.from_numpy(x)))
        if untrained_edge is not None:
            states = untrained_edge
            arms["untrained_edge"] = self.answers(
                lambda _x, _y, i: self.trainer.native_layers(states[i.start : i.stop])
            )
        return arms

    # -- the report --------------------------------------------------------------------------------

    def report(
        self,
        untrained_edge: npt.NDArray[np.floating] | None = None,
        edge_only: list[bool] | None = None,
        costs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Everything, as `report.json` holds it.

        Args:
            untrained_edge: as `controls` takes it.
            edge_only: whether the edge model's own answer is right, one per question.
            costs: of `cost.costs`.
        """
        native, mapped = self.native(), self.mapped()
        arms = {"native": native, "mapped": mapped}
        bound: dict[str, Any] = {"none": "not a map of a family"}
        if isinstance(self.map, Map):
            arms["mapped_fp8"] = self.mapped_fp8()
            arms |= {f"mapped_{name}": self.in_precision(name) for name in PRECISIONS}
            try:
                bound = judge_bound(self.map, self.corpus)
            except FitError as error:
                bound = {"none": error.message}
        arms |= self.controls(untrained_edge)
        accuracy = {
            name: clustered([float(r) for r in arm.right], self.pictures).to_json()
            for name, arm in arms.items()
        }
        if edge_only is not None:
            found = clustered([float(r) for r in edge_only], self.pictures)
            accuracy["edge_only"] = found.to_json()
        right, where = self.other_labels()
        labels = None if not right else float(np.mean(right))
        followed = (
            None if not right else float(np.mean([arms["other_picture"].right[i] for i in where]))
        )
        fit = reconstruction(self.map, self.corpus)
        kinds = [one.kind for one in self.asked]
        differences = {
            "native_minus_blind": paired(native.right, arms["blind"].right, self.pictures),
            **{
                f"mapped_minus_{name}": paired(mapped.right, arms[name].right, self.pictures)
                for name in CONTROLS
            },
        }
        told: dict[str, Any] = {
            "pictures_asked": len(set(self.pictures)),
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
            "pictures": len(self.corpus),
            "pictures_asked": told["pictures_asked"],
            "questions": len(self.asked),
            "accuracy": accuracy,
            "differences": told["differences"],
            "verdict": verdict.state,
            "why": verdict.why,
            "mapped_minus_native": paired(mapped.right, native.right, self.pictures).to_json(),
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
                mapped.variation, kinds, rel_l2, self._telling(native, arms["blind"])
            ),
            "reconstruction": fit,
            "retention": retention,
            "grade_by_reconstruction": grade(fit["whole"]["cosine"], fit["whole"]["mse"]),
            "grade_by_answers": letter,
            "tier_by_answers": metal,
            "diagnostics": diagnostics(self.map),
            "round_trip": self._round_trip(),
            "bound": bound,
            "distortion_by_arm": {
                name: float(np.mean(arm.variation)) for name, arm in arms.items()
            },
            "precision": self._precision(arms, fit),
            "retention_by_rank": self._by_rank(floor, above),
            "worst_pictures": self._worst(mapped),
        }
        if costs is not None:
            report["costs"] = dict(costs)
        return report | {"literature": literature.beside(report)}

    def _telling(self, native: Answers, blind: Answers) -> set[str]:
        """Kinds of question of which the native cache answers more than no picture does."""
        found = set()
        for kind in {one.kind for one in self.asked}:
            rows = [i for i, one in enumerate(self.asked) if one.kind == kind]
            pictures = [self.pictures[i] for i in rows]
            if len(rows) < LEAST_OF_A_KIND or len(set(pictures)) < LEAST_PICTURES:
                continue
            seen, unseen = ([arm.right[i] for i in rows] for arm in (native, blind))
            if paired(seen, unseen, pictures).low > 0:
                found.add(kind)
        return found

    def _precision(
        self, arms: Mapping[str, Answers], fit: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """What the map loses when its weights are stored in fewer bits."""
        made = self.map
        if not isinstance(made, Map):
            return []
        fits = {"float32": fit} | {
            name: reconstruction(made.in_precision(dtype), self.corpus)
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
                    "answers_changed": float(
                        np.mean(np.not_equal(arm.right, arms["mapped"].right))
                    ),
                    "cosine": whole["cosine"],
                    "cosine_lost": fit["whole"]["cosine"] - whole["cosine"],
                    "relative_l2": whole["relative_l2"],
                }
            )
        return found

    def _round_trip(self) -> float | None:
        """`||back(forward(x)) - x||^2 / ||x||^2` on z-scores; None for a map without a way back."""
        made = self.map
        if not isinstance(made, BidirectionalMap):
            return None
        return made.round_trip(torch.from_numpy(self.corpus.x.astype(np.float32)))

    def _by_rank(self, floor: float, above: float) -> list[dict[str, Any]]:
        """Retention of the map's best approximations of lower rank; empty if it is not linear."""
        made = self.map
        if not isinstance(made, Map) or made.weights() is None or above <= 0:
            return []
        x = torch.from_numpy(self.corpus.x[:_SPREAD_PICTURES].astype(np.float32))
        with torch.no_grad():
            seen = made.regrid(made.normal(x)).flatten(0, 1)
            u, s, v = principal(made, seen[~seen[:, 0].isnan()])  # texts end where they end
            bias = made.cloud(made.down(torch.zeros(1, made.source.tokens, made.source.state_dim)))
            bias = bias[:, :1]  # every token's
        found = []
        for rank in _ranks(made):
            if rank >= len(s):
                break
            narrow, wide = u[:, :rank] * s[:rank], v[:rank]

            def states(
                x: npt.NDArray[np.float32], narrow: Tensor = narrow, wide: Tensor = wide
            ) -> Tensor:
                z = made.regrid(made.normal(torch.from_numpy(x)) @ narrow)
                there: Tensor = made.states(z @ wide + bias)
                return there

            right = float(np.mean(self.states(states).right))
            found.append({"rank": rank, "accuracy": right, "retention": (right - floor) / above})
        return found

    def _worst(self, mapped: Answers, most: int = 10) -> list[dict[str, Any]]:
        """The pictures with the largest KL, and the questions that were answered otherwise."""
        total: dict[int, float] = {}
        for one, kl in zip(self.asked, mapped.kl, strict=True):
            total[one.picture] = total.get(one.picture, 0.0) + kl
        return [
            {
                "picture": self.dataset.files[picture].name,
                "kl_nats": total[picture],
                "answered_otherwise": [
                    {"question": one.text, "answer": one.answer}
                    for one, same in zip(self.asked, mapped.full, strict=True)
                    if one.picture == picture and not same
                ],
            }
            for picture in sorted(total, key=lambda p: -total[p])[:most]
        ]


def _ranks(made: Map) -> list[int]:
    """Lower ranks that a linear map is cut to."""
    if made.weights() is None:
        return []
    return [rank for rank in (4 << i for i in range(20)) if rank < made.rank]


def principal(made: Map, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A linear map taken apart by what it explains of some states: `W = U diag(s) V`.

    Cut after k components it is the best map of rank k to the map's own predictions (as in
    reduced-rank regression; Izenman, 1975).

    Args:
        made: a linear map.
        x: z-scored source states `[n, d_s]`.

    Returns:
        `U [d_s, k]`, `s [k]`, `V [k, d_r]`, without what no state of the sample tells.
    """
    weights = made.weights()
    if weights is None:
        raise FitError(f"'{made.family.name}' is not linear: it has no principal components")
    # The components of the predictions are those of W: no d_s x d_s covariance is taken apart.
    given = x.double() / len(x) ** 0.5
    if isinstance(made, LowRankMatrix):
        # On an orthonormal basis of what U spans a prediction has r numbers.
        basis, onward = torch.linalg.qr(made.u.double())
        _, s, v = torch.linalg.svd(given @ (made.v * made.sigma).double() @ onward.T, False)
        v = v @ basis.T
    else:
        _, s, v = torch.linalg.svd(given @ weights.double(), full_matrices=False)
    told = s > s[0] * _TOLD
    s, v = s[told], v[told]
    return (weights.double() @ v.T / s).float(), s.float(), v.float()


def untrained(made: Map, seed: int = 1) -> Map:
    """The same map with random weights of the same size as its own."""
    other = made.in_precision(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            scale = parameter.square().mean().sqrt()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return other


def reconstruction(made: Any, corpus: Corpus) -> dict[str, Any]:
    """Fit on held-out pairs, in z-scores of the target: whole, and per layer for K and V apart.

    Args:
        made: a map of either sort (`projector.training.train.Trainable`).
        corpus: held-out pairs.

    Returns:
        `whole` and `layers[]`, each with `cosine` (mean over tokens), `mse`, `relative_l2`
        (`||y - y'|| / ||y||`), `r2`, the last two None of states that are all alike; `epsilon`, the
        RMSE over all numbers.
    """
    mean, scale = made.y_stats
    width = corpus.y.shape[-1]
    sums = np.zeros((5, width))  # y^2, (y - y')^2, y, per number; cosines follow per layer
    cosines: list[npt.NDArray[np.float64]] = []
    whole_cosine, tokens = 0.0, 0
    layout = getattr(made, "target", None)
    layers = layout.layers if layout is not None else 1
    with torch.no_grad():
        for begin in range(0, len(corpus), _BATCH):
            x = torch.from_numpy(corpus.x[begin : begin + _BATCH].astype(np.float32))
            y = torch.from_numpy(corpus.y[begin : begin + _BATCH].astype(np.float32))
            there = ~y[..., 0].isnan()
            want = ((y - mean) / scale)[there]
            got = made.predict(x)[there]
            sums[0] += want.square().sum(0).numpy()
            sums[1] += (want - got).square().sum(0).numpy()
            sums[2] += want.sum(0).numpy()
            one, other = (part.unflatten(-1, (2, layers, -1)) for part in (want, got))
            along = torch.nn.functional.cosine_similarity(one, other, dim=-1)
            cosines.append(along.sum(0).double().numpy())
            whole_cosine += float(torch.nn.functional.cosine_similarity(want, got, dim=-1).sum())
            tokens += len(want)
    square, error, total = sums[0], sums[1], sums[2]
    spread = square - total * total / tokens
    each = np.sum(cosines, axis=0) / tokens  # [2, layers]

    def figures(columns: slice, cosine: float) -> dict[str, float | None]:
        lost = _share(error[columns], spread[columns])
        return {
            "cosine": cosine,
            "mse": float(error[columns].sum() / tokens / error[columns].size),
            "relative_l2": _root(_share(error[columns], square[columns])),
            "r2": None if lost is None else 1 - lost,
        }

    block = width // (2 * layers)
    rows = []
    for layer in range(layers):
        row: dict[str, Any] = {"layer": layer}
        for part, name in enumerate(("keys", "values")):
            start = (part * layers + layer) * block
            row[name] = figures(slice(start, start + block), float(each[part, layer]))
        rows.append(row)
    half = width // 2
    return {
        "whole": figures(slice(0, width), whole_cosine / tokens),
        "keys": figures(slice(0, half), float(each[0].mean())),
        "values": figures(slice(half, width), float(each[1].mean())),
        "layers": rows,
        "epsilon": float(math.sqrt(error.sum() / tokens / width)),
        "residual_variance": _share(error, spread),
    }


def _share(error: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> float | None:
    """An error as a share of what there was to tell; None where there was nothing."""
    return float(error.sum() / whole.sum()) if whole.sum() > 0 else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)


def diagnostics(made: Any) -> dict[str, Any]:
    """Effective rank, condition number, operator norm; None for a map that is not linear."""
    weights = made.weights() if isinstance(made, Map) else None
    if weights is None:
        return {"effective_rank": None, "condition_number": None, "operator_norm": None}
    small = weights.detach().double()
    if isinstance(made, LowRankMatrix):  # r x r, with the same singular values
        v, u = (torch.linalg.qr(side.detach().double())[1] for side in (made.v, made.u))
        small = (v * made.sigma.detach().double()) @ u.T
    values = np.linalg.svd(small.numpy(), compute_uv=False)
    values = values[values > values[0] * 1e-12]
    rank = min(made.rank, len(values))
    condition = float(values[0] / values[rank - 1])
    return {
        "effective_rank": int((values > _NEGLIGIBLE * values[0]).sum()),
        "condition_number": condition,
        "condition_flagged": condition > CONDITION_LIMIT,
        # A map that gives keys a length is not linear, whatever its matrix.
        "operator_norm": None if made.target.qk_norm else float(values[0]) * made.grid_norm,
        "singular_values": [float(v) for v in values[: made.rank]],
    }


def amplification(
    variation: Sequence[float], kinds: Sequence[str], rel_l2: float | None, telling: Collection[str]
) -> dict[str, dict[str, float | None]]:
    """Measured `C_attn = D_task / delta_rel` per kind of question.

    Whether a kind is within the limit is said of those that are `telling`; None for the others.
    `D_task` is the mean total variation distance between the answers' distributions from the
    native and from the projected cache; `delta_rel` the mean relative L2 error of the states.
    """
    grouped: dict[str, list[float]] = {}
    for value, kind in zip(variation, kinds, strict=True):
        grouped.setdefault(kind, []).append(value)
    return {
        kind: {
            "d_task": float(np.mean(values)),
            "c_attn": float(np.mean(values)) / rel_l2 if rel_l2 else None,
            "within_0.1": bool(np.mean(values) <= 0.1) if kind in telling else None,
        }
        for kind, values in sorted(grouped.items())
    }
