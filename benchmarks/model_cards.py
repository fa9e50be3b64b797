"""Measures the reference models on the test split and writes their model cards."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.compare.arms import blind, seeing
from projector.models.vlm import VLM
from projector.validation.estimate import by_group, clustered
from reference.demo.halves import MODELS
from reference.demo.testset import TestSet
from reference.yard import ask, sample_scenes

_TEXT = """---
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}: {role}

A tiny model of the real `{kind}` class, trained from scratch on the yard task of
this repository, for the tests, the demo and the benchmarks of Neural Bridge. It knows nothing else.
{training}

| | |
|---|---|
| parameters | {parameters:,} |
| cache state per token | {state} = 2 × {layers} layers × {heads} heads × {dim} |
| image tokens | {rows} × {columns}, row-major |
| vision tower | {vision}, {patch}-px patches |
| RoPE base | {theta:,.0f} |
| vocabulary | {vocabulary} ({tokenizer}) |
| weights | float16 |

Accuracy on the test split ({pictures:,} pictures with ground photographs never seen in training,
{questions:,} questions; `python -m benchmarks.model_cards`):

| Questions | Seeing the picture | Blind (no picture) | n |
|---|---|---|---|
{rows_of_figures}

All: {all:.2%} (95 % interval over pictures {low:.2%} to {high:.2%}).
"""


def measure(path: Path, test: TestSet, subkinds: Sequence[str]) -> dict[str, object]:
    """Accuracy with and without the picture, per kind and subkind of question."""
    vlm = VLM.load(path)
    with tqdm(total=2 * len(test.asked), desc=path.name, unit="question") as bar:
        seen = test.right(seeing(vlm, test.pictures, test.asked, lambda n: bar.update(n) and None))
        unseen = test.right(blind(vlm, test.asked, lambda n: bar.update(n) and None))
    kinds = [question.kind for question in test.asked]
    whole = clustered([float(s) for s in seen], test.clusters)
    config = vlm.model.config
    vision = config.vision_config
    rows = []
    for groups in (["all"] * len(kinds), kinds, list(subkinds)):
        with_picture, without = by_group(seen, groups), by_group(unseen, groups)
        rows += [
            f"| {name} | {with_picture[name]:.1%} | {without[name]:.1%} | {groups.count(name)} |"
            for name in sorted(with_picture)
        ]
    layout = vlm.layout
    figures = {
        "name": path.name,
        "kind": type(vlm.model).__name__,
        "parameters": sum(p.numel() for p in vlm.model.parameters()),
        "state": layout.state_dim,
        "layers": layout.layers,
        "heads": layout.kv_heads,
        "dim": layout.head_dim,
        "rows": layout.grid[0],
        "columns": layout.grid[1],
        "vision": vision.model_type,
        "patch": vision.patch_size,
        "theta": layout.rope.theta,
        "vocabulary": config.get_text_config().vocab_size,
        "tokenizer": type(vlm.processor.tokenizer.backend_tokenizer.model).__name__,
        "pictures": len(test.pictures),
        "questions": len(test.asked),
        "rows_of_figures": "\n".join(rows),
        "all": whole.mean,
        "low": whole.low,
        "high": whole.high,
    }
    print("\n".join(rows))
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2048, help="pictures of the test split")
    parser.add_argument("--models", type=Path, nargs="*", default=sorted(MODELS.iterdir()))
    args = parser.parse_args()
    test = TestSet.load("test", args.pictures, 6)
    scenes = sample_scenes("test", 0, args.pictures)
    subkind = {
        (index, q.text): f"{q.kind}: {q.subkind}"
        for index in range(args.pictures)
        for q in ask(scenes, index, 6, 0)
    }
    subkinds = [subkind[q.picture, q.text] for q in test.asked]
    for path in args.models:
        figures = measure(path, test, subkinds)
        note = path / "training.json"
        training = ""
        if note.exists():
            facts = json.loads(note.read_text())
            training = (
                f"{facts['steps']:,} steps of {facts['batch']} pictures in {facts['minutes']:.0f} "
                f"minutes on {facts['threads']} CPU core(s), seed {facts['seed']}."
                f" {facts.get('note', '')}"
            )
        role = (
            "the large model in the cloud" if path.name == "cloud" else "a small model at the edge"
        )
        (path / "README.md").write_text(_TEXT.format(role=role, training=training, **figures))


if __name__ == "__main__":
    main()
