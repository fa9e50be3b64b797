"""One training, from pairs to a map on disk: moments, build, descend, judge, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from projector.maps import Family, Map, base
from projector.maps.bidirectional import BidirectionalMap
from projector.maps.metric import Metric
from projector.maps.moments import Moments
from projector.maps.tuned import Tuned, best_directions
from projector.models.decoder import key_norm_weights
from projector.models.lm import LM
from projector.models.vlm import VLM
from projector.report import tables
from projector.training import distributed, feedback
from projector.training.corpus import Corpus
from projector.training.dataset import Dataset
from projector.training.fit import held_out_accuracy, held_out_controls, moments_of, split
from projector.training.map_folder import DESCRIPTION, MAP_FILE, SEEN
from projector.training.sensitivity import measure, token_weights
from projector.training.settings import TrainSettings
from projector.training.train import Trainer, plot_losses
from protos.process.files import write_files


@dataclass(frozen=True)
class Run:
    """A training: map, models, data and settings.

    Attributes:
        member: the family's member.
        settings: settings of the steps.
        data: pictures or texts, with their questions.
        source: the edge model.
        target: the cloud model, frozen.
        pairs: caches of both models for the data's first inputs.
        held_out: share of the pairs (the last ones) that is not trained on.
        out: folder of the map, and of the state from which a later run goes on.
        directions: as `Tuned`; 0 trains every weight.
        focus: whether closed forms weigh tokens by what answers depend on.
    """

    member: Family
    settings: TrainSettings
    data: Dataset
    source: VLM | LM
    target: VLM | LM
    pairs: Corpus
    held_out: float
    out: Path
    directions: int = 0
    focus: bool = False

    def go(self) -> dict[str, float]:
        """Run the whole training; resumes.

        Returns:
            Figures of the answers about held-out inputs; empty if they have no questions.
        """
        seen = sorted(self.data.contents[: len(self.pairs)])  # now, before any file goes away
        self.out.mkdir(parents=True, exist_ok=True)
        moments = self.moments()
        made = self.build(moments)
        trainer, made = self.descend(made, moments)
        held_out = self.judge(trainer)
        for module in (trainer.map, made, self.source.model, self.target.model):
            module.to("cpu")  # the way back and the files need no GPU
        back = self.turn_back(made, moments)
        if not distributed.rank():
            self.write(made, seen, held_out, back, trainer.spent_s)
        return held_out

    @cached_property
    def parts(self) -> tuple[Corpus, Corpus]:
        """The pairs to train on, and those held out."""
        return split(self.pairs, self.held_out)

    @property
    def state(self) -> Path:
        """Folder of checkpoint and log."""
        return self.out / "state"

    def moments(self) -> Moments:
        """The moments from which the closed form is computed."""
        (training, held), gram = self.parts, self.member.needs_target_gram
        judge: Trainer[Any] | None = None
        if self.focus or self.member.asks_answers:
            asked = self.data.questions
            judge = Trainer(None, training, self.target, asked, self.settings, self.state)
        weights = token_weights(judge) if judge is not None and self.focus else None
        with tables.doing(f"moments of {len(training)} pairs"):
            found = moments_of(
                training, self.source, self.target, target_gram=gram, weights=weights
            )
            if held:
                beside = moments_of(held, self.source, self.target, target_gram=False)
                found = replace(found, held=beside)
        if judge is not None and self.member.asks_answers:
            found = replace(found, metric=Metric.of(measure(judge), found.y_stats.scale))
        return found

    def build(self, moments: Moments) -> Map:
        """The closed form, or the start of a map that has none."""
        torch.manual_seed(self.settings.seed)  # a map without a closed form starts from it
        with tables.doing(f"the closed form of '{self.member.name}'"):
            made = self.member.build(self.source.layout, self.target.layout, moments)
        norm = key_norm_weights(self.target.decoder, self.target.layout)
        if norm is not None:
            made.take_key_norm(norm, moments)
        if self.settings.rounds:
            usual = self.parts[0].x.mean(axis=0, dtype=np.float32)
            made.start_rounding(torch.from_numpy(usual))
        return made

    def descend(self, made: Map, moments: Moments) -> tuple[Trainer[Any], Map]:
        """Every step, from wherever an earlier run stopped."""
        moved: Any = made
        if self.directions:
            moved = Tuned(made, best_directions(made, moments, self.directions))
        trainer: Trainer[Any] = Trainer(
            moved,
            self.parts[0],
            self.target,
            self.data.questions,
            self.settings,
            self.state,
            about=self.about,
            details=self.details,
        )
        trainer.run((lambda: self._accuracy(trainer)) if self.asks else None)
        return trainer, moved.merged() if isinstance(moved, Tuned) else made

    def judge(self, trainer: Trainer[Any]) -> dict[str, float]:
        """Accuracy on held-out inputs, beside its controls."""
        (training, held), unit = self.parts, self.data.unit
        if not self.asks:
            return {}
        with tables.doing(f"judging {len(held)} held-out {unit}s"):
            controls = held_out_controls(trainer, held, self.data, len(training))
            return self._accuracy(trainer) | controls

    def turn_back(self, made: Map, moments: Moments) -> dict[str, float] | None:
        """Fit the way back, if the map has one, to the trained way there."""
        if not isinstance(made, BidirectionalMap) or self.pairs.ragged:
            return None
        made.fit_back(moments)
        folder = self.out / "state-back"
        return feedback.train(
            made,
            *self.parts,
            self.source,
            self.data,
            self.settings,
            folder,
            self.about,
            self.details,
        )

    def write(
        self,
        made: Map,
        seen: list[str],
        held_out: Mapping[str, float],
        back: Mapping[str, float] | None,
        spent_s: float,
    ) -> None:
        """Write the map, how it was trained, what it has seen, and a plot of its losses."""
        base.write(self.out / MAP_FILE, made)
        training, held = self.parts
        story = {
            "family": made.family.name,
            "config": asdict(made.family),
            "source": self.source.layout.fingerprint,
            "target": self.target.layout.fingerprint,
            "parameters": made.parameters_count(),
            "directions": self.directions,
            "focus": self.focus,
            "operator_norm": made.operator_norm(),
            "ridge_weight": made.ridge_weight,
            "pictures": len(training),
            "held_out_pictures": len(held),
            "settings": asdict(self.settings),
            "minutes": round(spent_s / 60, 1),
            "held_out": dict(held_out),
        } | ({} if back is None else {"held_out_back": dict(back)})
        of = hashlib.sha256((self.out / MAP_FILE).read_bytes()).hexdigest()
        told = (json.dumps(story, indent=1) + "\n").encode()
        known = "\n".join([of, *seen, ""]).encode()
        write_files(self.out, {DESCRIPTION: told, SEEN: known})
        plot_losses(self.state / "log.jsonl", self.out / "loss.png")
        if back is not None:
            plot_losses(self.out / "state-back" / "log.jsonl", self.out / "loss-back.png")
            print("the way back: " + json.dumps(back))

    @property
    def asks(self) -> bool:
        """Whether every held-out input has a question."""
        training, held = (len(part) for part in self.parts)
        return bool(held) and all(self.data.asked(i) for i in range(training, training + held))

    @property
    def about(self) -> str:
        """Digest of all that is trained and its data; a state of anything else is not resumed."""
        layouts = (side.layout.fingerprint for side in (self.source, self.target))
        about: list[Any] = [self.member.name, asdict(self.member), *layouts]
        if self.directions:
            about.append(self.directions)
        if self.focus:
            about.append("focus")
        of = self.data.digest, self.data.questions_digest, len(self.parts[0])
        return json.dumps([*about, *of], sort_keys=True)

    @property
    def details(self) -> dict[str, Any]:
        """The same by name, for people."""
        member, data = self.member, self.data
        return {
            "family": member.name,
            **{f"{member.name}'s {name}": value for name, value in asdict(member).items()},
            "edge model": self.source.layout.fingerprint[:12],
            "cloud model": self.target.layout.fingerprint[:12],
            "directions": self.directions,
            "focus": self.focus,
            f"digest of the {data.unit}s": data.digest[:12],
            "digest of the questions": data.questions_digest[:12],
            f"training {data.unit}s": len(self.parts[0]),
        }

    def _accuracy(self, trainer: Trainer[Any]) -> dict[str, float]:
        training, held = self.parts
        return {"accuracy": held_out_accuracy(trainer, held, self.data, len(training))}
