"""What a frozen Gemma 3 270M answers from SmolLM2-135M's cache (`make bench-real`).

Knows the arms, what they are measured with and where figures are kept. Every step (corpora, moments
by fold, maps, arms) is kept under the work folder and not made again; `--reverse` swaps the models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.real_pair import diverse, facts
from benchmarks.real_pair.fit import closed_forms, keep, kept, source_columns
from benchmarks.real_pair.install import FOLDER, GEMMA3, SMOLLM2
from benchmarks.real_pair.judge import Judge, own_answers
from projector.corpus import Corpus
from projector.estimate import clustered, paired
from projector.families import load
from projector.families.base import Map, write
from projector.fit import chunks
from projector.lm import LM
from projector.moments import Moments
from projector.ragged import present
from projector.texts import collect
from projector.train import Trainer, TrainSettings
from projector.validate import reconstruction
from protos.errors import BridgeError
from protos.quantize import get as quantizer

RANKS = (512, 256, 128, 64)
CODED = 256
TEXT_TOKENS = 224
FOLDS = 4
SPLITS = {"unseen": ("unseen", False), "seen": ("train", False), "binding": ("unseen", True)}
LEVELS = {"fp8_e4m3": 224.0, "int8": 127.0, "int4": 7.0}
BYTES = {"fp8_e4m3": 1.0, "int8": 1.0, "int4": 0.5}
_FLOAT_BYTES = 4.0
_INT4_SIGMAS = 3.0  # four bits are spent on the bulk, not on the largest value
_TIMED_FACTS = 36  # some 200 tokens
_ROUNDS = 7


@dataclass
class Bench:
    """One direction of the pair.

    Attributes:
        args: of the command line.
        source: the model whose cache is projected.
        target: the frozen model that answers.
    """

    args: argparse.Namespace
    source: LM
    target: LM
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reads what earlier runs left."""
        self.work: Path = self.args.work / ("reverse" if self.args.reverse else "forward")
        self.work.mkdir(parents=True, exist_ok=True)
        about = [self.args.texts, self.args.contexts, self.args.layers, self.args.ridge]
        self.kept = self.work / "rows.json"
        if self.kept.exists():
            read = json.loads(self.kept.read_text())
            self.rows = read["rows"] if read["about"] == about else {}
        self.about = about

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A row, made or remembered."""
        if name not in self.rows:
            begun = time.monotonic()
            self.rows[name] = make() | {"seconds": round(time.monotonic() - begun, 1)}
            draft = self.kept.with_suffix(".part")
            draft.write_text(json.dumps({"about": self.about, "rows": self.rows}))
            draft.replace(self.kept)
            print(f"bench-real: {name}: {_shown(self.rows[name])}", flush=True)
        return self.rows[name]

    # -- pairs -------------------------------------------------------------------------------------

    def corpus(self, name: str, texts: list[str]) -> Corpus:
        """Both models' caches of some texts."""
        folder = self.work / f"corpus-{name}-{len(texts)}"
        return collect(
            self.source, self.target, texts.__getitem__, len(texts), folder, name, inputs=name
        )

    def training(self) -> Corpus:
        """Diverse texts, and contexts of the words that are seen in training."""
        count = self.args.texts
        contexts = facts.make("train", count // 4, 0)
        told = [context.text for context in contexts]
        mixed = diverse.make(count - len(told), 0)
        for place, text in enumerate(told):
            mixed.insert(4 * place, text)
        return self.corpus("training", mixed)

    def moments(self, corpus: Corpus) -> list[Moments]:
        """One set for each fold of the texts."""
        made = []
        for fold in range(FOLDS):
            path = self.work / f"moments-{len(corpus)}-{fold}.npz"
            if not path.exists():
                part = corpus.part(np.arange(len(corpus)) % FOLDS == fold)
                keep(Moments.of(chunks(part, self.source.layout, self.target.layout)), path)
                print(f"bench-real: moments of fold {fold}", flush=True)
            made.append(kept(path))
        return made

    def maps(self, seed: int) -> dict[int, Map]:
        """Closed forms without one fold; rank 0 is the full matrix."""
        source, target = self.source.layout, self.target.layout
        name = f"map-{self.args.texts}-{self.args.layers}-{self.args.ridge:g}-{seed}"
        paths = {rank: self.work / f"{name}-{rank}.safetensors" for rank in (0, *RANKS)}
        if not all(path.exists() for path in paths.values()):
            folds = self.moments(self.training())
            total = folds[(seed + 1) % FOLDS]
            for step in range(2, FOLDS):
                total = total + folds[(seed + step) % FOLDS]
            columns = source_columns(source, self.args.layers or source.layers)
            for rank, made in closed_forms(
                total, source, target, RANKS, self.args.ridge, columns
            ).items():
                write(paths[rank], made)
        return {rank: load(path.read_bytes(), source, target) for rank, path in paths.items()}

    # -- arms --------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Every arm on every split, every seed."""
        for split in SPLITS:
            self._fixed(split)
        for seed in range(self.args.seeds):
            names = [f"{split}/{arm}/{seed}" for split in SPLITS for arm in self._arm_names(seed)]
            if all(name in self.rows for name in names):
                continue
            maps = self.maps(seed)
            for split in SPLITS:
                self._mapped(split, seed, maps)
        self.once("ttft", self._ttft)
        return self._report()

    def _arm_names(self, seed: int) -> list[str]:
        arms = ["full", *(f"rank {rank}" for rank in RANKS)]
        if seed == 0:
            arms += [f"rank {CODED}, {codec}" for codec in LEVELS]
            arms += ["another context", "mean state", "fit"]
        return arms

    def _judge(self, split: str) -> tuple[Judge, Corpus]:
        words, binding = SPLITS[split]
        contexts = facts.make(words, self.args.contexts, 1, binding)
        corpus = self.corpus(split, [context.text for context in contexts])
        settings = TrainSettings(reconstruct_steps=0, task_steps=0)
        trainer: Trainer[Any] = Trainer(
            None, corpus, self.target, lambda *_: [], settings, self.work / "state"
        )
        return Judge(trainer, contexts), corpus

    def _fixed(self, split: str) -> None:
        """The arms that need no map."""
        judge, corpus = self._judge(split)

        def right(make: Callable[[], list[bool]]) -> Callable[[], dict[str, Any]]:
            return lambda: {"right": [int(r) for r in make()], "clusters": judge.clusters}

        self.once(
            f"{split}/native",
            right(lambda: judge.answers(lambda i: judge.states(corpus.y[i.start : i.stop]))),
        )
        self.once(f"{split}/no context", right(lambda: judge.answers(judge.blind)))
        self.once(f"{split}/source alone", right(lambda: own_answers(self.source, judge.contexts)))
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

    def _mapped(self, split: str, seed: int, maps: dict[int, Map]) -> None:
        judge, corpus = self._judge(split)
        there = [corpus.x[i : i + 1] for i in range(len(corpus))]

        def arm(name: str, made: Map, code: Any = None, shift: int = 0) -> None:
            def make(chosen: range) -> Any:
                places = [(i + shift) % len(there) for i in chosen]
                x = corpus.x[places].astype(np.float32)
                with torch.no_grad():
                    z = made.down(made.normal(torch.from_numpy(x)))
                    z = z if code is None else torch.from_numpy(code(z.numpy()))
                    states = made.cloud(z) * made.y_scale + made.y_mean
                    return judge.trainer.layers(states)

            self.once(
                f"{split}/{name}/{seed}",
                lambda: {
                    "right": [int(r) for r in judge.answers(make)],
                    "clusters": judge.clusters,
                    "numbers": made.rank,
                },
            )

        arm("full", maps[0])
        for rank in RANKS:
            arm(f"rank {rank}", maps[rank])
        if seed:
            return
        made = maps[CODED]
        for codec in LEVELS:
            arm(f"rank {CODED}, {codec}", made, code=self._codec(made, codec))
        arm("another context", made, shift=1)
        mean = made.y_mean.numpy()
        self.once(
            f"{split}/mean state/{seed}",
            lambda: {
                "right": [
                    int(r) for r in judge.answers(lambda i: judge.states(_mean(corpus, i, mean)))
                ],
                "clusters": judge.clusters,
            },
        )
        self.once(f"{split}/fit/{seed}", lambda: _fit(maps, corpus))

    def _codec(self, made: Map, name: str) -> Callable[[npt.NDArray[np.float32]], Any]:
        """Latents through a codec with one static scale per number, set on training texts."""
        training = self.training()
        x = training.x[:256].astype(np.float32)
        with torch.no_grad():
            z = made.down(made.normal(torch.from_numpy(x[present(x)]))).abs()
        largest = z.amax(0)
        if name == "int4":
            largest = torch.minimum(largest, _INT4_SIGMAS * z.square().mean(0).sqrt())
        steps = (largest / LEVELS[name] + 1e-8).numpy()
        codec = quantizer(name, None)

        def through(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            here = present(latents)
            flat = np.ascontiguousarray(latents[here])
            read = np.full_like(latents, np.nan)
            read[here] = codec.decode(codec.encode(flat, steps), len(flat), flat.shape[1], steps)
            return read

        return through

    def _ttft(self) -> dict[str, Any]:
        """Time to the first token of a long context: injected over reading it, in turn."""
        target, made = self.target, self.maps(0)[CODED]
        told = " ".join(c.text for c in facts.make("train", _TIMED_FACTS // 4, 3))
        row = target.tokens(told).ids[:200]
        ids = [target.question_ids("Question: Where does Anna live?\nAnswer: Anna lives in")]
        z = torch.randn(1, len(row), made.rank)
        settings = TrainSettings(reconstruct_steps=0, task_steps=0)
        trainer: Trainer[Any] = Trainer(
            None, self.training(), target, lambda *_: [], settings, self.work / "state"
        )

        def injected() -> None:
            with torch.inference_mode():
                states = made.cloud(z) * made.y_scale + made.y_mean
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

    def _report(self) -> dict[str, Any]:
        arms: dict[tuple[str, int | None], dict[str, Any]] = {}
        for name, row in self.rows.items():
            split, _, arm = name.partition("/")
            arm, _, seed = arm.partition("/")
            if "right" not in row:
                continue
            key = (arm, int(seed) if seed else None)
            entry = arms.setdefault(key, {"name": arm, "seed": key[1], "n": len(row["right"])})
            found = clustered(row["right"], row["clusters"])
            native, floor = (self.rows[f"{split}/{k}"]["right"] for k in ("native", "no context"))
            entry[f"acc_{split}"] = found.to_json()
            entry[f"minus_native_{split}"] = paired(row["right"], native, row["clusters"]).to_json()
            gap = float(np.mean(native) - np.mean(floor))
            if gap > 0:
                recovered = (found.mean - float(np.mean(floor))) / gap
                entry[f"gap_recovered_{split}"] = round(recovered, 4)
            if "numbers" in row:
                codec = arm.partition(", ")[2]
                entry["numbers_per_token"] = row["numbers"]
                entry["bytes_per_token"] = row["numbers"] * BYTES.get(codec, _FLOAT_BYTES)
        return {
            "source": self.source.layout.model_id,
            "target": self.target.layout.model_id,
            "texts": self.args.texts,
            "source_layers": self.args.layers or self.source.layout.layers,
            "ridge": self.args.ridge,
            "arms": list(arms.values()),
            "text_on_the_wire": {s: self.rows[f"{s}/text"] for s in SPLITS},
            "fit": {s: self.rows[f"{s}/fit/0"] for s in SPLITS if f"{s}/fit/0" in self.rows},
            "ttft": self.rows.get("ttft"),
            "seconds": round(sum(row["seconds"] for row in self.rows.values()), 1),
        }


def _mean(corpus: Corpus, chosen: range, mean: npt.NDArray[np.float32]) -> Any:
    """The mean state in the place of every token that is there."""
    there = present(corpus.y[chosen.start : chosen.stop])
    return np.where(there[..., None], mean, np.nan).astype(np.float32)


def _fit(maps: dict[int, Map], corpus: Corpus) -> dict[str, Any]:
    """R² per layer, K and V apart."""
    found = {}
    for rank in (0, CODED):
        fit = reconstruction(maps[rank], corpus)
        found["full" if not rank else f"rank {rank}"] = {
            "r2_k": round(fit["keys"]["r2"], 4),
            "r2_v": round(fit["values"]["r2"], 4),
            "layers": [
                {"r2_k": round(r["keys"]["r2"], 4), "r2_v": round(r["values"]["r2"], 4)}
                for r in fit["layers"]
            ],
        }
    return found


def _shown(row: dict[str, Any]) -> str:
    if "right" in row:
        return f"{np.mean(row['right']):.3f} of {len(row['right'])} ({row['seconds']} s)"
    return json.dumps({k: v for k, v in row.items() if not isinstance(v, dict | list)})


def main() -> int:
    """Run, print, write `build/bench/real_pair.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_pair", description=__doc__)
    parser.add_argument("--models", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=FOLDER / "work", help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="default: %(default)s"
    )
    parser.add_argument("--texts", type=int, default=4000, help="to learn from; %(default)s")
    parser.add_argument("--contexts", type=int, default=150, help="per split; %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="of closed forms, at most 4")
    parser.add_argument("--layers", type=int, default=0, help="of the source; 0 for all")
    parser.add_argument("--ridge", type=float, default=1e-2, help="weight; default: %(default)s")
    parser.add_argument("--reverse", action="store_true", help="Gemma's cache, SmolLM2's answers")
    args = parser.parse_args()
    names = [SMOLLM2.name, GEMMA3.name]
    if args.reverse:
        names.reverse()
    try:
        source, target = (LM.load(args.models / name, text_tokens=TEXT_TOKENS) for name in names)
        report = Bench(args, source, target).run()
    except BridgeError as error:
        print(f"bench-real: {error.message}", file=sys.stderr)
        return error.exit_code
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / ("real_pair_reverse.json" if args.reverse else "real_pair.json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"bench-real: wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
