"""Trains and judges feedback: the edge model answers from the state that comes back (torch).

A way back is itself a map, from the cloud's states to the edge's, so the same training and the same
judge serve it.

The cloud holds one of two kinds of state of a scene: its own if the picture was sent, the map's if
latents were sent. The way back is trained and judged on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from projector.bundle.feedback import Feedback
from projector.calibration.calibrate import feedback_of
from projector.maps.bidirectional import BidirectionalMap
from projector.maps.rounding import WHOLE, Way
from projector.models.lm import LM
from projector.models.vlm import VLM
from projector.training.corpus import Corpus
from projector.training.dataset import Dataset
from projector.training.settings import TrainSettings
from projector.training.train import Trainer
from projector.validation.answers import Answers, Validator
from projector.validation.estimate import clustered, paired
from protos.errors import FitError
from protos.state import KVState

_BATCH = 64
_RANKS = (16, 32, 64, 128)  # the way back is judged at these and at its own
_COMPRESS_RATE, _ATTEND_RATE = 0.1, 0.3  # shares of the peak rate; a closed form needs a low one

Floats = npt.NDArray[np.float32]


class Backwards(nn.Module):
    """The way back of a map as a map of its own (`projector.training.train.Trainable`).

    It shares the weights `compress` and `attend` with the map; nothing else of it is trained.
    """

    def __init__(self, both: BidirectionalMap) -> None:
        super().__init__()
        self.compress, self.attend = both.compress, both.attend
        self._both = (both,)  # in a tuple, so that its other weights are not this module's

    @property
    def y_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the edge's states, `[d_s]` each."""
        return self._both[0].x_mean, self._both[0].x_scale

    def forward(self, y: Tensor) -> Tensor:
        """States of the cloud `[B, M, d_r]` to states of the edge `[B, N, d_s]`."""
        return self._both[0].back(y)

    def predict(self, y: Tensor) -> Tensor:
        """The same in z-scores."""
        return self._both[0].normal(self(y))

    def travel(self, y: Tensor, way: Way = WHOLE) -> tuple[Tensor, Tensor]:
        """The edge's states, and no bits: training never rounds the feedback, whatever the way."""
        return self(y), torch.zeros(())

    def penalty(self) -> Tensor:
        """0: only errors count."""
        return torch.zeros(())

    def groups(self) -> list[dict[str, Any]]:
        """Two groups, each with its share of the learning rate."""
        return [
            {"params": [self.compress], "scale": _COMPRESS_RATE},
            {"params": [self.attend], "scale": _ATTEND_RATE},
        ]


@dataclass(frozen=True)
class HeldStates:
    """What the cloud may hold of n pictures, `[2n, M, d_r]`: its own states, then the map's.

    Made when it is indexed, by an array of rows.
    """

    made: BidirectionalMap
    pairs: Corpus

    def __len__(self) -> int:
        """The number of rows, 2n."""
        return 2 * len(self.pairs)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Floats:
        """States of some rows."""
        picture, made = rows % len(self.pairs), rows >= len(self.pairs)
        found: Floats = self.pairs.y[picture].astype(np.float32)
        if made.any():
            x = torch.from_numpy(self.pairs.x[picture[made]].astype(np.float32))
            with torch.no_grad():
                found[made] = self.made(x).numpy()
        return found


def train(
    made: BidirectionalMap,
    training: Corpus,
    held: Corpus,
    source: VLM | LM,
    data: Dataset,
    settings: TrainSettings,
    folder: Path,
    about: str,
    details: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Reconstruction, then through the frozen edge model on its own answers; resumes.

    Args:
        made: its way back is changed in place, the way there is not.
        training: pairs of the dataset's first pictures.
        held: the pairs after them, which decide when to stop.
        source: the edge model.
        data: pictures and questions.
        settings: as for the way there.
        folder: where checkpoint and log are kept.
        about: as `Trainer` takes it.
        details: as `Trainer` takes them.

    Returns:
        Figures on the held-out pairs: as `errors`, and `accuracy` of the edge model's answers,
        beside those from its `own` cache and `blind`.

    Raises:
        FitError: as `Trainer.run`.
    """
    n, first = len(training), len(training)
    pairs = Corpus(
        HeldStates(made, training),
        np.concatenate((training.x, training.x)),
        np.concatenate((training.attention, training.attention)),
    )
    backwards = Backwards(made)

    def questions(row: int, count: int, seed: int) -> Any:
        return data.questions(row % n, count, seed)

    def asked(row: int, count: int, seed: int) -> Any:
        return data.questions(first + row, count, seed)

    about += " back"
    trainer = Trainer(
        backwards, pairs, source, questions, settings, folder, about=about, details=details
    )
    judged = bool(held) and all(data.asked(i) for i in range(first, first + len(held)))

    def report() -> dict[str, float]:
        if not judged:
            return {}
        figures = errors(made, held)

        def returned(x: Floats, _y: Any) -> Any:
            with torch.no_grad():
                return trainer.mapped_layers(made(torch.from_numpy(x)).numpy())

        return figures | {"accuracy": trainer.accuracy(held, asked, returned)}

    trainer.run(report)
    if not judged:
        return {}
    own = trainer.accuracy(held, asked, lambda x, _y: trainer.native_layers(x))
    blind = trainer.accuracy(held, asked, lambda x, _y: trainer.blind_layers(len(x)))
    return report() | {"own": own, "blind": blind}


def errors(made: BidirectionalMap, pairs: Corpus) -> dict[str, float]:
    """Error of the returned states against the edge's own, as shares of their energy.

    Returns:
        `round_trip`, from the map's states; `from_picture`, from the cloud's own states.
    """
    off, size = np.zeros(2), 0.0
    with torch.no_grad():
        for begin in range(0, len(pairs), _BATCH):
            rows = slice(begin, begin + _BATCH)
            x = torch.from_numpy(pairs.x[rows].astype(np.float32))
            own = made.normal(x)
            y = torch.from_numpy(pairs.y[rows].astype(np.float32))
            for place, states in enumerate((made(x), y)):
                off[place] += float((made.normal(made.back(states)) - own).square().sum())
            size += float(own.square().sum())
    return {"round_trip": float(off[0] / size), "from_picture": float(off[1] / size)}


def judge(
    made: BidirectionalMap,
    pairs: Corpus,
    source: VLM | LM,
    data: Dataset,
    per_picture: int,
    folder: Path,
    rank: int = 0,
) -> dict[str, Any]:
    """The edge model's answers from what comes back, beside its own cache and the controls.

    Args:
        made: the map.
        pairs: held out, the dataset's first.
        source: the edge model.
        data: pictures and questions.
        per_picture: questions asked of each picture.
        folder: for the trainer that is not run.
        rank: numbers per token that are sent back; 0 for all there are.

    Returns:
        `accuracy`: `own` (the edge model's own cache), `returned` (there and back), `sent` (the
        same through the default point of the way back, FP8), `from_picture` (back from the cloud's
        own state) and the controls `blind`, `other_picture`, `mean_state`, `untrained`, each with
        its picture-clustered interval; `judged`, whether `own` is above `blind` by more than
        chance, without which no arm says anything; `returned_minus_own`; `agreement` and `kl_nats`
        of `returned` with `own`; `errors`; `rank` and `bytes`, what `sent` takes; `by_rank`, what
        is sent at lower ranks too (`rank`, `bytes`, `round_trip`, `accuracy`); and `weights`, how
        uneven the weights of tokens are (the largest share times the number of tokens, mean over
        pictures).

    Raises:
        FitError: too few questions, or a way back that was never fitted.
    """
    backwards = Backwards(made).eval()
    turned = Corpus(pairs.y, pairs.x, pairs.attention)
    trainer = Trainer(backwards, turned, source, data.questions, TrainSettings(), folder)
    validator = Validator(trainer, turned, data, per_picture)

    def there(rows: range) -> Tensor:
        with torch.no_grad():
            x = torch.from_numpy(pairs.x[rows.start : rows.stop].astype(np.float32))
            states: Tensor = made(x)
        return states

    def sent(rank: int) -> tuple[Answers, dict[str, Any]]:
        feedback = feedback_of(made, pairs.y, rank)
        if feedback is None:
            raise FitError("the map has no way back")
        bodies: list[int] = []
        off = np.zeros(2)

        def received(_x: Any, _y: Any, rows: range) -> list[Any]:
            states = [
                _through(feedback, made, source, flat, bodies) for flat in there(rows).numpy()
            ]
            again = torch.from_numpy(np.stack(states))
            own = torch.from_numpy(pairs.x[rows.start : rows.stop].astype(np.float32))
            off[0] += float((made.normal(again) - made.normal(own)).square().sum())
            off[1] += float(made.normal(own).square().sum())
            return trainer.layers(again)

        arm = validator.answers(received)
        return arm, {
            "rank": feedback.decoder.rank - 1,
            "bytes": float(np.mean(bodies)),
            "round_trip": float(off[0] / off[1]),
            "accuracy": float(np.mean(arm.right)),
        }

    def other(_x: Any, _y: Any, rows: range) -> list[Any]:
        moved = np.roll(np.arange(len(pairs)), -1)[rows.start : rows.stop]
        with torch.no_grad():
            states = made(torch.from_numpy(pairs.x[moved].astype(np.float32)))
        return trainer.layers(backwards(states))

    generator = torch.Generator().manual_seed(1)
    random = torch.randn(made.compress.shape, generator=generator) * made.compress.detach().std()

    def untrained(_x: Any, _y: Any, rows: range) -> list[Any]:
        normal = (there(rows) - made.y_mean) / made.y_scale
        small = made.to_edge(normal @ random)
        return trainer.layers(small * made.x_scale + made.x_mean)

    mean = made.x_mean.expand(pairs.x.shape[1], -1)
    received, at = sent(rank)
    by_rank = [sent(lower)[1] for lower in _RANKS if lower < at["rank"]] + [at]
    arms: dict[str, Answers] = {
        "own": validator.native(),
        "returned": validator.answers(lambda _x, _y, i: trainer.layers(backwards(there(i)))),
        "sent": received,
        "from_picture": validator.mapped(),
        "blind": validator.blind(),
        "other_picture": validator.answers(other),
        "mean_state": validator.states(lambda x: mean.expand(len(x), -1, -1)),
        "untrained": validator.answers(untrained),
    }
    pictures, returned = validator.pictures, arms["returned"]
    return {
        "questions": len(validator.asked),
        "accuracy": {
            name: clustered([float(r) for r in arm.right], pictures).to_json()
            for name, arm in arms.items()
        },
        "judged": paired(arms["own"].right, arms["blind"].right, pictures).low > 0,
        "returned_minus_own": paired(returned.right, arms["own"].right, pictures).to_json(),
        "agreement": float(np.mean(returned.full)),
        "kl_nats": float(np.mean(returned.kl)),
        "errors": errors(made, pairs) | {"sent": at["round_trip"]},
        "rank": at["rank"],
        "bytes": at["bytes"],
        "by_rank": by_rank,
        "weights": _unevenness(made, pairs),
    }


def _through(
    feedback: Feedback, made: BidirectionalMap, source: VLM | LM, flat: Floats, bodies: list[int]
) -> Floats:
    """One picture's state as the edge reads it off the wire, `[N, d_s]`."""
    encoder, decoder = feedback.encoder, feedback.decoder
    point, every = decoder.points[0], np.ones(encoder.tokens, dtype=np.bool_)
    state = KVState.from_flat(flat, made.target, np.arange(made.target.tokens))
    body = encoder.encode(state, point, every).payload
    bodies.append(len(body))
    latents = decoder.decode(body, every, point.index)
    found: Floats = decoder.state(latents, made.source, source.positions).flat()
    return found


def _unevenness(made: BidirectionalMap, pairs: Corpus) -> float:
    largest = []
    with torch.no_grad():
        for begin in range(0, len(pairs), _BATCH):
            x = torch.from_numpy(pairs.x[begin : begin + _BATCH].astype(np.float32))
            largest.append(made.shares((made(x) - made.y_mean) / made.y_scale).amax(-1))
    return float(torch.cat(largest).mean())
