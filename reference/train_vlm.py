"""Trains one reference VLM on the yard, from scratch: `python -m reference.train_vlm edge-a`.

Each model is trained alone: nothing is distilled from another, and no weight, vocabulary or
auxiliary head is shared. First the image tokens learn to show what is there, then everything is
trained together. It writes a checkpoint every five minutes and when it is stopped, and resumes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from projector.models.autocast import products
from protos.process.files import write_files
from protos.process.progress import Progress, note
from protos.process.stopping import Stopped, Stopping
from reference import zoo
from reference.lessons import Tokens, collate
from reference.pictures import Pictures
from reference.trainee import Trainee

BLIND_EVERY = 10
"""One joint step in so many also asks without the picture."""


def evaluate(
    trainee: Trainee, pictures: Pictures, count: int, *, questions: int = 6
) -> dict[str, float]:
    """Teacher-forced exact-match accuracy per kind and subkind of question.

    Args:
        trainee: the model.
        pictures: a held-out split.
        count: number of pictures.
        questions: questions per picture.

    Returns:
        Accuracy by name, `all` included.
    """
    trainee.eval()
    tally: dict[str, list[int]] = {}
    with torch.no_grad(), products():
        for first in range(0, count, 64):
            chosen = list(range(first, min(first + 64, count)))
            batch, asked = collate(
                pictures,
                chosen,
                trainee.tokens,
                trainee.recipe.grid,
                questions=questions,
                seed=0,
                lossy_rng=None,
            )
            right = trainee(batch)[3]
            for b, row in enumerate(asked):
                for k, question in enumerate(row):
                    for name in ("all", question.kind, f"{question.kind}/{question.subkind}"):
                        tally.setdefault(name, []).append(int(right[b, k]))
    trainee.train()
    return {name: sum(values) / len(values) for name, values in sorted(tally.items())}


def order(count: int, batch: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Endless batches of shuffled indices, with the epoch they belong to."""
    epoch = 0
    while True:
        shuffled = np.random.default_rng([seed, epoch]).permutation(count)
        for first in range(0, count - batch + 1, batch):
            yield epoch, shuffled[first : first + batch].tolist()
        epoch += 1


def train(name: str, args: argparse.Namespace) -> None:
    """Trains a reference model and writes its checkpoint directory.

    Args:
        name: a key of `zoo.RECIPES`.
        args: command line.
    """
    recipe = zoo.RECIPES[name]
    seed = recipe.seed if args.seed is None else args.seed
    torch.manual_seed(seed)
    torch.set_num_threads(args.threads)
    steps = recipe.steps if args.steps is None else args.steps
    reading_steps = recipe.reading_steps if args.reading_steps is None else args.reading_steps
    answering_steps = min(steps, recipe.answering_steps)
    model, processor = recipe.build()
    tokens = Tokens(processor, model.config.image_token_id)
    trainee = Trainee(model, tokens, recipe)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{name}: {parameters / 1e6:.2f} M parameters", flush=True)
    pictures = Pictures("train", args.pictures, args.pool)
    held_out = Pictures("validation", 512, args.pool)
    decayed = [p for p in trainee.parameters() if p.ndim >= 2]
    other = [p for p in trainee.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    state_file = args.work / f"{name}.pt"
    args.work.mkdir(parents=True, exist_ok=True)
    step, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        trainee.load_state_dict(state["trainee"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["spent"]
        print(f"resumed at step {step}", flush=True)
    batches = order(args.pictures, args.batch, seed)
    for _ in range(step):
        next(batches)
    log = (args.work / f"{name}.jsonl").open("a")
    begun, saved = time.monotonic() - spent, time.monotonic()
    reached = 0.0
    with Stopping() as stopping, Progress(f"training {name}", steps) as bar:
        bar.skip(step)
        while step < steps:
            epoch, indices = next(batches)
            reading_only = step < reading_steps
            batch, _ = collate(
                pictures,
                indices,
                tokens,
                recipe.grid,
                questions=args.questions,
                seed=epoch + 1,
                lossy_rng=random.Random(step * 7919 + seed) if recipe.lossy_pictures else None,
                finely=step >= answering_steps,
            )
            rate = _rate(step, reading_steps, answering_steps, steps)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * rate
            with products():
                if reading_only:
                    reading = trainee.reading_loss(trainee.image_tokens(batch.pixels), batch.cells)
                    answers = looking = torch.zeros(())
                    right = torch.zeros(1)
                    loss = reading
                else:
                    answers, reading, looking, right = trainee(batch)
                    loss = answers + 0.5 * reading + looking
                    if step % BLIND_EVERY == 0:
                        loss = loss + 0.5 * trainee.blind_loss(batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            optimiser.step()
            step += 1
            bar.advance()
            reached = 0.98 * reached + 0.02 * right.float().mean().item()
            if step % 20 == 0:
                row: dict[str, object] = {
                    "step": step,
                    "minutes": round((time.monotonic() - begun) / 60, 2),
                    "answers": round(answers.item(), 4),
                    "reading": round(reading.item(), 4),
                    "looking": round(looking.item(), 4),
                    "train_accuracy": round(reached, 4),
                }
                if step % args.evaluate_every == 0 and not reading_only:
                    row["validation"] = evaluate(trainee, held_out, 256)
                log.write(json.dumps(row) + "\n")
                log.flush()
            if stopping.asked or time.monotonic() - saved > 300 or step == steps:
                saved = time.monotonic()
                state = {
                    "trainee": trainee.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "spent": saved - begun,
                }
                with stopping.writing():
                    blob = io.BytesIO()
                    torch.save(state, blob)
                    write_files(args.work, {state_file.name: blob.getvalue()})
            if stopping.asked:
                note(f"stopped after step {step} of {steps}; the same command goes on from there")
                raise Stopped(stopping.asked)
    figures = evaluate(trainee, held_out, 512)
    print(json.dumps(figures, indent=1), flush=True)
    zoo.save(model, processor, args.out / name)
    facts = {
        "steps": step,
        "batch": args.batch,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "threads": args.threads,
        "seed": seed,
        "validation": figures,
    }
    (args.out / name / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def _rate(step: int, reading: int, answering: int, steps: int) -> float:
    """Learning-rate factor: constant while reading is taught, then per stage a warm-up and cosine.

    Each cosine falls to 2 %. The second stage restarts at 60 % (warm restarts: Loshchilov and
    Hutter, 2017).
    """
    if step < reading:
        return min(1.0, (step + 1) / 200)
    peak, first, last = (1.0, reading, answering) if step < answering else (0.6, answering, steps)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, last - first)))
    return peak * min(1.0, (step - first + 1) / 100) * (0.02 + 0.98 * cosine)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(zoo.RECIPES))
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--reading-steps", type=int, help="default: the recipe's")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=24576)
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, help="default: the recipe's")
    parser.add_argument("--pool", type=Path, default=Path("build/pool"))
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--out", type=Path, default=Path("reference/models"))
    train(parser.parse_args().name, parser.parse_args())


if __name__ == "__main__":
    main()
