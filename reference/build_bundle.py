"""Trains the map of one reference edge model to the cloud model and writes its bundle.

`python -m reference.build_bundle edge-a`. Knows the yard and the two checkpoints. All choices are
made on the validation split; the certificate says so. Resumes where an earlier run stopped. The
training and the rest may run on two machines: `--train-only --device cuda` where there is a GPU,
`--trained` with the file that it wrote where there is none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from projector.bundle.write import write_bundle
from projector.calibration.calibrate import COARSENESS, make_encoder
from projector.codec.encoder import Encoder
from projector.maps.trainable import LowRankMap, Way
from projector.models.vlm import VLM
from projector.serving import backends
from projector.serving.backends import CloudFiles
from projector.serving.export import export
from projector.training.corpus import Corpus, collect
from projector.training.train import Trainer, TrainSettings, closed_form
from projector.validation.reconstruction import reconstruction
from protos.errors import BridgeError, BundleLayoutError, ConfigError
from protos.process.files import write_files
from reference.calibrate import calibrate, certified
from reference.split import HELD_OUT, Split, pairs_folder

HERE = Path(__file__).parent
CALIBRATED_ON = 10240
"""Training pictures, at most, that the edge half's tables are learnt from."""
TRAINED = "trained.safetensors"
Floats = npt.NDArray[np.float32]


def mask_all(latents: torch.Tensor) -> torch.Tensor:
    """Every token kept, `[B, N]`."""
    return torch.ones(latents.shape[:2])


def measure(
    trainer: Trainer[LowRankMap], corpus: Corpus, split: Split, scale: float | None
) -> float:
    """Accuracy on held-out pictures through the map, rounded at `scale` steps (None: not)."""

    def make(x: Floats, _y: npt.NDArray[np.floating]) -> object:
        return trainer.layers(trainer.map.travel(trainer.placed(x), Way(scale or 0.0))[0])

    return trainer.accuracy(corpus, split.questions, make)  # type: ignore[arg-type]


def controls(
    trainer: Trainer[LowRankMap], lowrank: LowRankMap, corpus: Corpus, split: Split
) -> dict[str, float]:
    """The certificate's controls on held-out pictures: native, blind, mean state, other picture."""
    prefix = trainer.prefix

    def projected(latents: torch.Tensor) -> object:
        return trainer.layers(lowrank.cloud.state(latents, mask_all(latents)))

    def blind(x: Floats, _y: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(k.expand(len(x), -1, -1, -1), v.expand(len(x), -1, -1, -1)) for k, v in prefix]

    def mean_state(x: Floats, _y: object) -> object:
        return projected(torch.zeros(len(x), x.shape[1], lowrank.down.shape[1]))

    def other(x: Floats, _y: object) -> object:
        return trainer.mapped_layers(np.roll(x, -1, axis=0))

    torch.manual_seed(1)
    shuffled = torch.randn_like(lowrank.down) * lowrank.down.std()

    def untrained(x: Floats, _y: object) -> object:
        normal = (torch.from_numpy(x) - lowrank.x_mean) / lowrank.x_scale
        return projected(normal @ shuffled)

    arms: dict[str, Callable[..., object]] = {
        "cloud_image": lambda _x, y: trainer.native_layers(y),
        "blind": blind,
        "mean_state": mean_state,
        "other_picture": other,
        "untrained_map": untrained,
    }
    return {
        name: trainer.accuracy(corpus, split.questions, make)  # type: ignore[arg-type]
        for name, make in arms.items()
    }


def fidelity(lowrank: LowRankMap, corpus: Corpus) -> dict[str, float]:
    """Mean cosine, relative L2 and R² of keys and values apart, on z-scored held-out states."""
    fit = reconstruction(lowrank, corpus)
    return {
        "cosine": fit["whole"]["cosine"],
        "relative_l2": fit["whole"]["relative_l2"],
        "r2_keys": fit["keys"]["r2"],
        "r2_values": fit["values"]["r2"],
    }


def roundings(finish_scale: float) -> dict[str, float]:
    """Of the points that a sweep starts from, finest first; the last but one is what was trained.

    The sweep's coarseness counts in multiples of the finest.
    """
    return {
        name: finish_scale * factor / COARSENESS["coarser"] for name, factor in COARSENESS.items()
    }


def edge_half(
    lowrank: LowRankMap, source: VLM, corpus: Corpus, coarseness: dict[str, float]
) -> Encoder:
    """The edge half, calibrated on the training pictures."""
    with torch.no_grad():
        centre, base = lowrank.centre.numpy(), lowrank.steps.numpy()
    return make_encoder(
        source.layout,
        corpus.x,
        x_mean=lowrank.x_mean.numpy(),
        x_scale=lowrank.x_scale.numpy(),
        projection=lowrank.down.detach().numpy().copy(),
        centre=centre,
        steps=base,
        coarseness=coarseness,
    )


@dataclass(frozen=True)
class Pairs:
    """Two models and pairs of their caches, those to train on and those held out."""

    source: VLM
    target: VLM
    train: Split
    held_out: Split
    corpus: Corpus
    validation: Corpus

    @classmethod
    def of(cls, name: str, pictures: int, device: str, args: argparse.Namespace) -> Pairs:
        """Makes the pairs that are not there yet.

        Args:
            name: the edge model.
            pictures: to train on.
            device: where both models run.
            args: command line.
        """
        source = VLM.load(args.models / name, device)
        target = VLM.load(args.models / "cloud", device)
        train, held = Split("train", pictures, args.pool), Split("validation", HELD_OUT, args.pool)
        folder = args.work / pairs_folder(name, source, target)
        corpus = collect(source, target, train.picture, pictures, folder / "train")
        validation = collect(
            source, target, held.picture, HELD_OUT, folder / "validation", "held out"
        )
        return cls(source, target, train, held, corpus, validation)


def state(name: str, args: argparse.Namespace) -> Path:
    """Where an attempt's training is kept."""
    folder: Path = args.work / f"map-{name}-{args.tag}"
    return folder


def train(name: str, args: argparse.Namespace) -> bytes:
    """Corpus and map; the trained map with how it was trained (`LowRankMap.to_bytes`).

    Args:
        name: the edge model.
        args: command line.
    """
    pairs = Pairs.of(name, args.pictures, args.device, args)
    settings = TrainSettings(
        rank=args.rank,
        inner=args.inner,
        reconstruct_steps=args.reconstruct_steps,
        task_steps=args.task_steps,
        step_scale=args.step_scale,
        finish_steps=args.finish_steps,
        finish_scale=args.finish_scale,
        finish_rate=args.finish_rate,
        finish_weight=args.finish_weight,
        rate_weight=args.rate_weight,
        mix_width=args.mix_width,
        mix_depth=args.mix_depth,
        rate=args.rate,
        task_rate=args.task_rate,
        batch=args.batch,
        quiet=args.quiet,
        drop=args.drop,
        seed=args.seed,
    )
    lowrank = closed_form(pairs.corpus, pairs.source.layout, pairs.target, settings)
    trainer = Trainer(
        lowrank,
        pairs.corpus,
        pairs.target,
        pairs.train.questions,
        settings,
        state(name, args),
    )

    def report() -> dict[str, float]:
        figures = {"float": measure(trainer, pairs.validation, pairs.held_out, None)}
        figures["rounded"] = measure(trainer, pairs.validation, pairs.held_out, args.step_scale)
        print(json.dumps(figures), flush=True)
        return figures

    started = report()
    print(f"closed form {started}", flush=True)
    trainer.run(report)
    return lowrank.to_bytes(
        {
            "closed_form": started["float"],
            "float": measure(trainer, pairs.validation, pairs.held_out, None),
            "pictures": len(pairs.corpus),
            "minutes": round(trainer.spent_s / 60, 1),
            "device": args.device,
            "models": [vlm.layout.fingerprint for vlm in (pairs.source, pairs.target)],
            "settings": asdict(settings),
        }
    )


def build(name: str, trained: bytes, args: argparse.Namespace) -> None:
    """Ladder, certificate, bundle.

    Args:
        name: the edge model.
        trained: what `train` gave.
        args: command line.

    Raises:
        BundleFormatError: that is no such map.
        BundleLayoutError: it was trained between other models.
    """
    lowrank, about = LowRankMap.from_bytes(trained)
    settings = TrainSettings(**about["settings"])
    pairs = Pairs.of(name, min(about["pictures"], CALIBRATED_ON), "cpu", args)
    source, target = pairs.source, pairs.target
    if about.get("models") != [source.layout.fingerprint, target.layout.fingerprint]:
        raise BundleLayoutError(f"the trained map is of other models than {name} and the cloud's")
    corpus, validation, held_out = pairs.corpus, pairs.validation, pairs.held_out
    trainer = Trainer(lowrank, corpus, target, pairs.train.questions, settings, state(name, args))
    accuracy = {figure: about[figure] for figure in ("closed_form", "float")}
    cloud = lowrank.cloud.eval()
    files = CloudFiles(weights=cloud.to_bytes(), graph=export(cloud).graph)
    backend = backends.get("onnxruntime")(
        files, target.layout, settings.rank, threads=args.threads, tokens=source.layout.tokens
    )
    made = calibrate(
        edge_half(lowrank, source, corpus, roundings(settings.finish_scale)),
        backend,
        source,
        target,
        (corpus, validation),
        (pairs.train, held_out),
        args.within,
    )
    found = certified(made, len(validation))
    certificate = {
        **found,
        "split": "validation",
        "pictures": len(validation),
        "questions": 6 * len(validation),
        "accuracy": {**accuracy, **found["accuracy"]},
        "controls": controls(trainer, lowrank, validation, held_out),
        "reconstruction": fidelity(lowrank, validation),
        "training": {key: about[key] for key in ("pictures", "minutes", "device")}
        | {"seed": settings.seed},
    }
    info = write_bundle(
        args.out / f"{name}-cloud",
        id=f"{name}-cloud",
        version=args.version,
        source=source.layout,
        target=target.layout,
        encoder=made.encoder,
        cloud=files,
        certificate=certificate,
        default_point=made.default_point,
        ladder=made.ladder,
    )
    print(json.dumps(certificate, indent=1))
    print(f"wrote {info.id} version {info.version}, default point {made.default_point}", flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the edge model's folder under --models")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--inner", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=24576)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--reconstruct-steps", type=int, default=4000)
    parser.add_argument("--task-steps", type=int, default=6000)
    parser.add_argument("--finish-steps", type=int, default=1500)
    parser.add_argument("--finish-scale", type=float, default=16.0, help="rounding at the end")
    parser.add_argument("--finish-rate", type=float, default=2e-4)
    parser.add_argument("--finish-weight", type=float, default=0.04, help="as --rate-weight")
    parser.add_argument("--step-scale", type=float, default=8.0, help="rounding while training")
    parser.add_argument(
        "--rate-weight", type=float, default=0.04, help="nats of KL per bit and latent number"
    )
    parser.add_argument(
        "--quiet", type=float, default=0.0, help="squared steps, as of an operating point"
    )
    parser.add_argument("--drop", type=float, default=0.0, help="most of the tokens that are lost")
    parser.add_argument("--mix-width", type=int, default=256)
    parser.add_argument("--mix-depth", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--task-rate", type=float, default=0.0, help="0: half of --rate")
    parser.add_argument(
        "--within", type=float, default=0.016, help="accuracy that the default point may lose"
    )
    parser.add_argument("--version", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where the map is trained")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--train-only", action="store_true", help="stop before the ladder")
    part.add_argument(
        "--trained", type=Path, help="a map trained before: the file that --train-only wrote"
    )
    parser.add_argument("--tag", default="0", help="name of this attempt's training state")
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--pool", type=Path, default=Path("build/pool"))
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--out", type=Path, default=HERE / "bundles")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        if args.trained is not None:
            trained = _read(args.trained)
        else:
            trained = train(args.name, args)
            write_files(state(args.name, args), {TRAINED: trained})
            print(f"wrote {state(args.name, args) / TRAINED}", flush=True)
        if not args.train_only:
            build(args.name, trained, args)
    except BridgeError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"no trained map at {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
