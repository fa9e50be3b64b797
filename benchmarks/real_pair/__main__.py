"""A frozen Gemma 3 270M answers from SmolLM2-135M's cache (`make bench-real`).

The result of every step (corpora, moments by fold, maps, arms) is kept under the work folder and
not made again. `--reverse` swaps the models.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import command
from benchmarks.real_pair import diverse, facts
from benchmarks.real_pair.install import FOLDER, GEMMA3, SMOLLM2
from benchmarks.real_pair.judge import Judge, Make, own_answers
from benchmarks.real_pair.learn import FOLDS, FULL, Learner, Settings
from benchmarks.real_pair.page import FORWARD, REVERSE
from benchmarks.real_pair.targets import FLOOR, targets
from projector.calibration.calibrate import fixed_steps
from projector.maps.base import Map
from projector.models.autocast import quick_kernels
from projector.models.lm import LM
from projector.training.corpus import Corpus
from projector.training.ragged import present
from projector.validation.estimate import clustered, paired
from projector.validation.reconstruction import reconstruction
from protos.errors import ModelError
from protos.process.files import write_file
from protos.quantize import get as quantizer

TEXT_TOKENS = 224
FOREIGN_CONTEXTS = 40
WATCHED, WATCHED_CONTEXTS = "validation", 32
"""Split and number of contexts that are asked about now and then while a map is trained."""
SPLITS = {"unseen": ("unseen", False), "seen": ("train", False), "binding": ("unseen", True)}
CODECS = {"fp8_e4m3": "fp8", "int8": "int8", "int4": "int4"}
"""Quantizer, and the point of `projector.calibration.calibrate.FIXED` that fits its steps."""
BYTES = {"fp8_e4m3": 1.0, "int8": 1.0, "int4": 0.5}
_FLOAT_BYTES = 4.0
_TIMED_CONTEXTS, _TIMED_TOKENS = 12, 200
_ROUNDS = 7
SETTINGS = {
    "texts": "number of texts to learn from",
    "layers": "source layers to use; 0 for all",
    "ridge": "ridge weight of the closed forms",
    "shrink": "how far an error's cost shrinks to its mean; 0 for plain squared errors",
    "directions": "source directions that training through the target may use",
    "steps": "steps of training through the target",
    "batch": "texts per step",
    "questions": "questions per text and step",
    "rate": "peak learning rate",
}

Code = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Passes latents `[B, N, r]` through a codec."""


@dataclass
class Bench:
    """One direction of the pair.

    Attributes:
        args: the command line's arguments.
        learner: makes the corpora and the maps.
    """

    args: argparse.Namespace
    learner: Learner
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    _judges: dict[str, tuple[Judge, Corpus]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reads the results of earlier runs."""
        plan = asdict(self.learner.settings)
        about = [*({**plan, "ranks": list(plan["ranks"])}.values()), self.args.contexts]
        named = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
        self.kept = self.learner.work / f"rows-{named}.json"
        if self.kept.exists():
            self.rows = json.loads(self.kept.read_text())["rows"]
        self.about = about

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A row: kept from an earlier run, or made now."""
        if name not in self.rows:
            begun = time.monotonic()
            self.rows[name] = make() | {"seconds": round(time.monotonic() - begun, 1)}
            write_file(self.kept, json.dumps({"about": self.about, "rows": self.rows}).encode())
            print(f"bench-real: {name}: {_shown(self.rows[name])}", flush=True)
        return self.rows[name]

    # -- arms --------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Every arm on every split, every seed."""
        self.learner.claim()
        for split in (*SPLITS, *facts.FOREIGN):
            self._fixed(split)
        ranks = (self.learner.settings.coded, FULL)
        self._judge(WATCHED)  # now, so that training's time does not include its corpus
        tuned = {rank: self.learner.tuned(rank, self._watched) for rank in ranks}
        for seed in range(self.args.seeds):
            names = [f"{split}/{arm}/{seed}" for split in SPLITS for arm in self.closed]
            if all(name in self.rows for name in names):
                continue
            maps = self.learner.maps(seed)
            for split in SPLITS:
                for rank, made in maps.items():
                    self._arm(split, _closed(rank), seed, made)
        for split in (*SPLITS, *facts.FOREIGN):
            for rank, made in tuned.items():
                self._arm(split, f"{_closed(rank)} + KL", 0, made)
        for split in SPLITS:
            self._controls(split, tuned)
        self.once("ttft", lambda: self._ttft(tuned[self.learner.settings.coded]))
        return self._report()

    @property
    def closed(self) -> list[str]:
        """Names of the arms of closed forms."""
        return [_closed(rank) for rank in (FULL, *self.learner.settings.ranks)]

    def _watched(self, made: Map) -> float:
        """Accuracy on contexts whose words are neither in training nor in the benchmark."""
        judge, corpus = self._judge(WATCHED)
        return float(np.mean(judge.answers(_through(made, corpus, judge))))

    def _judge(self, split: str) -> tuple[Judge, Corpus]:
        if split not in self._judges:
            if split in SPLITS:
                words, binding = SPLITS[split]
                contexts = facts.make(words, self.args.contexts, 1, binding)
            elif split == WATCHED:
                count = min(self.args.contexts, WATCHED_CONTEXTS)
                contexts = diverse.validation(count, 0, self.learner.words)
            else:
                contexts = facts.foreign(split, FOREIGN_CONTEXTS, 1)
            corpus = self.learner.corpus(split, [context.text for context in contexts])
            self._judges[split] = Judge(self.learner.trainer(None), contexts), corpus
        return self._judges[split]

    def _fixed(self, split: str) -> None:
        """The arms that need no map."""
        judge, corpus = self._judge(split)

        def right(make: Callable[[], list[bool]]) -> Callable[[], dict[str, Any]]:
            return lambda: {"right": [int(r) for r in make()], "clusters": judge.clusters}

        self.once(
            f"{split}/native",
            right(lambda: judge.answers(lambda i: judge.states(corpus.y[i.start : i.stop]))),
        )
        self.once(f"{split}/{FLOOR}", right(lambda: judge.answers(judge.blind)))
        self.once(
            f"{split}/source alone", right(lambda: own_answers(self.learner.source, judge.contexts))
        )
        sizes = [len(context.text.encode()) for context in judge.contexts]
        tokens = corpus.x.lengths
        self.once(
            f"{split}/text",
            lambda: {
                "bytes": float(np.mean(sizes)),
                "bytes_per_token": float(np.sum(sizes) / tokens.sum()),
                "tokens": float(tokens.mean()),
            },
        )

    def _arm(
        self,
        split: str,
        name: str,
        seed: int,
        made: Map,
        code: Code | None = None,
        shift: int = 0,
        source: LM | None = None,
    ) -> None:
        judge, corpus = self._judge(split)
        if source is not None and f"{split}/{name}/{seed}" not in self.rows:
            texts = [context.text for context in judge.contexts]
            corpus = self.learner.corpus(split, texts, source)
        make = _through(made, corpus, judge, code, shift)
        self.once(
            f"{split}/{name}/{seed}",
            lambda: {
                "right": [int(r) for r in judge.answers(make)],
                "clusters": judge.clusters,
                "numbers": made.rank,
            },
        )

    def _controls(self, split: str, tuned: dict[int, Map]) -> None:
        coded = self.learner.settings.coded
        made = tuned[coded]
        for codec in CODECS:
            self._arm(split, f"{_closed(coded)} + KL, {codec}", 0, made, self._codec(made, codec))
        self._arm(split, "another context", 0, made, shift=1)
        judge, corpus = self._judge(split)
        mean = made.y_mean.numpy()
        self.once(
            f"{split}/mean state/0",
            lambda: {
                "right": [
                    int(r) for r in judge.answers(lambda i: judge.states(_mean(corpus, i, mean)))
                ],
                "clusters": judge.clusters,
            },
        )
        closed = self.learner.maps(0)
        for rank in (FULL, coded):
            if made.target.qk_norm:  # measures what their length is worth
                short = copy.deepcopy(closed[rank])
                short.key_lengths.zero_()
                self._arm(split, f"{_closed(rank)}, keys as predicted", 0, short)
        for rank, made in self.learner.untrained_maps().items():
            name = f"untrained edge, {_closed(rank)}"
            self._arm(split, name, 0, made, source=self.learner.untrained)
        fitted = {
            _closed(FULL): closed[FULL],
            _closed(coded): closed[coded],
            **{f"{_closed(rank)} + KL": one for rank, one in tuned.items()},
        }
        self.once(f"{split}/fit/0", lambda: _fit(fitted, corpus))

    def _codec(self, made: Map, name: str) -> Code:
        """Latents through a codec with one static scale per number, set on training texts."""
        x = self.learner.training.x[:256].astype(np.float32)
        with torch.no_grad():
            z = made.down(made.normal(torch.from_numpy(x[present(x)]))).numpy()
        steps, codec = fixed_steps(CODECS[name], z), quantizer(name, None)
        assert steps is not None  # only floats have none

        def through(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            here = present(latents)
            flat = np.ascontiguousarray(latents[here])
            read = np.full_like(latents, np.nan)
            read[here] = codec.decode(codec.encode(flat, steps), len(flat), flat.shape[1], steps)
            return read

        return through

    def _ttft(self, made: Map) -> dict[str, Any]:
        """Time to the first token of a long context: injected over reading it, in turn."""
        target = self.learner.target
        texts = [context.text for context in facts.make("train", _TIMED_CONTEXTS, 3)]
        row = [token for text in texts for token in target.tokens(text).ids][:_TIMED_TOKENS]
        ids = [target.question_ids("Question: Where does Anna live?\nAnswer: Anna lives in")]
        z = torch.randn(1, len(row), made.rank)
        trainer = self.learner.trainer(None)

        def injected() -> None:
            with torch.inference_mode():
                states = made.states(made.cloud(z))
                target.answer(trainer.layers(states), ids, 1)

        spent: dict[str, list[float]] = {"injected": [], "native": []}
        for _ in range(_ROUNDS):
            for name, call in (
                ("injected", injected),
                ("native", lambda: target.answer_texts([row], ids, 1)),
            ):
                begun = time.perf_counter()
                call()
                spent[name].append(time.perf_counter() - begun)
        median = {name: statistics.median(values) for name, values in spent.items()}
        return {
            "tokens": len(row),
            "injected_ms": round(1000 * median["injected"], 1),
            "native_ms": round(1000 * median["native"], 1),
            "ratio": round(median["injected"] / median["native"], 3),
        }

    # -- report ------------------------------------------------------------------------------------

    def _fit_of(self, split: str) -> dict[str, Any]:
        return {k: v for k, v in self.rows[f"{split}/fit/0"].items() if k != "seconds"}

    def _report(self) -> dict[str, Any]:
        arms: dict[tuple[str, int | None], dict[str, Any]] = {}
        for name, row in self.rows.items():
            split, _, arm = name.partition("/")
            arm, _, seed = arm.partition("/")
            if "right" not in row:
                continue
            key = (arm, int(seed) if seed else None)
            if key[1] is not None and key[1] >= self.args.seeds:
                continue  # of a run with more
            nothing = {"numbers_per_token": None, "bytes_per_token": None}
            entry = arms.setdefault(key, {"name": arm, "seed": key[1], "n": 0} | nothing)
            entry["n"] = max(entry["n"], len(row["right"]))
            entry[f"n_{split}"] = len(row["right"])
            found = clustered(row["right"], row["clusters"])
            native, floor = (self.rows[f"{split}/{k}"]["right"] for k in ("native", FLOOR))
            entry[f"acc_{split}"] = found.to_json()
            entry[f"minus_floor_{split}"] = paired(row["right"], floor, row["clusters"]).to_json()
            entry[f"minus_native_{split}"] = paired(row["right"], native, row["clusters"]).to_json()
            gap = float(np.mean(native) - np.mean(floor))
            if paired(native, floor, row["clusters"]).low > 0:  # else there is no gap to recover
                recovered = (found.mean - float(np.mean(floor))) / gap
                entry[f"gap_recovered_{split}"] = round(recovered, 4)
            if "numbers" in row:
                codec = arm.partition(", ")[2]
                entry["numbers_per_token"] = row["numbers"]
                entry["bytes_per_token"] = row["numbers"] * BYTES.get(codec, _FLOAT_BYTES)
        report = {
            "source": self.learner.source.layout.model_id,
            "target": self.learner.target.layout.model_id,
            "settings": asdict(self.learner.settings)
            | {"contexts": self.args.contexts, "seeds": self.args.seeds},
            "tokens": int(self.learner.training.x.lengths.sum()),
            "threads": torch.get_num_threads(),
            "arms": list(arms.values()),
            "text_on_the_wire": {s: self.rows[f"{s}/text"] for s in (*SPLITS, *facts.FOREIGN)},
            "fit": {s: self._fit_of(s) for s in SPLITS},
            "ttft": self.rows["ttft"],
            "sensitivity": self.learner.shares(),
            "training_minutes": self.learner.minutes(),
            "judging_minutes": round(sum(row["seconds"] for row in self.rows.values()) / 60, 2),
        }
        coded = self.learner.settings.coded
        return report | {"targets": targets(report, coded, self.args.out / REVERSE)}


def _mean(corpus: Corpus, chosen: range, mean: npt.NDArray[np.float32]) -> Any:
    """The mean state for every token that is there."""
    there = present(corpus.y[chosen.start : chosen.stop])
    return np.where(there[..., None], mean, np.nan).astype(np.float32)


def _fit(maps: dict[str, Map], corpus: Corpus) -> dict[str, Any]:
    """R² per layer, K and V apart."""
    found = {}
    for name, made in maps.items():
        fit = reconstruction(made, corpus)
        found[name] = {
            "r2_k": round(fit["keys"]["r2"], 4),
            "r2_v": round(fit["values"]["r2"], 4),
            "layers": [
                {"r2_k": round(r["keys"]["r2"], 4), "r2_v": round(r["values"]["r2"], 4)}
                for r in fit["layers"]
            ],
        }
    return found


def _closed(rank: int) -> str:
    return "full" if rank == FULL else f"rank {rank}"


def _through(
    made: Map, corpus: Corpus, judge: Judge, code: Code | None = None, shift: int = 0
) -> Make:
    """Caches that a map makes from the source's states of the context `shift` further on."""

    def make(chosen: range) -> Any:
        x = corpus.x[[(i + shift) % len(corpus) for i in chosen]].astype(np.float32)
        with torch.no_grad():
            z = made.down(made.normal(torch.from_numpy(x)))
            z = z if code is None else torch.from_numpy(code(z.numpy()))
            return judge.trainer.layers(made.states(made.cloud(z)))

    return make


def _shown(row: dict[str, Any]) -> str:
    if "right" in row:
        return f"{np.mean(row['right']):.3f} of {len(row['right'])} ({row['seconds']} s)"
    return json.dumps({k: v for k, v in row.items() if not isinstance(v, dict | list)})


def main() -> int:
    """Run, print, write `build/bench/real_pair.json`."""
    parser = command.parser("real_pair", __doc__)
    parser.add_argument("--models", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=FOLDER / "work", help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="default: %(default)s"
    )
    parser.add_argument("--contexts", type=int, default=150, help="per split; %(default)s")
    parser.add_argument(
        "--seeds", type=int, default=3, choices=range(1, FOLDS + 1), help="of closed forms"
    )
    plain = Settings()
    for name, said in SETTINGS.items():
        default = getattr(plain, name)
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"{said}; %(default)s"
        )
    parser.add_argument("--reverse", action="store_true", help="Gemma's cache, SmolLM2's answers")
    return command.run(parser, bench)


def bench(args: argparse.Namespace) -> int:
    """Load, learn, measure, write."""
    names = [SMOLLM2.name, GEMMA3.name]
    if args.reverse:
        names.reverse()
    quick_kernels()
    if not all((args.models / name / "config.json").exists() for name in names):
        raise ModelError(f"{args.models} lacks a model: `make real-pair` installs both")
    source, target = (LM.load(args.models / name, text_tokens=TEXT_TOKENS) for name in names)
    work = args.work / ("reverse" if args.reverse else "forward")
    settings = Settings(**{name: getattr(args, name) for name in SETTINGS})
    report = Bench(args, Learner(source, target, work, settings)).run()
    command.write(report, args.out / (REVERSE if args.reverse else FORWARD))
    return 0


if __name__ == "__main__":
    sys.exit(main())
