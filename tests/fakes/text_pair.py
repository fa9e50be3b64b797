"""Two tiny language models, a bundle between them, and what the large one should answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from edge_agent.prefill import EdgeModel
from edge_agent.prefill import load as load_edge
from projector.bundle.load import Bundle
from projector.bundle.write import write_bundle
from projector.calibration.calibrate import FP8_POINT, encoder_of
from projector.codec.encoder import Encoder
from projector.maps import ServedMap
from projector.maps.base import Map
from projector.maps.low_rank import LowRank
from projector.models import cache as kv
from projector.models.lm import LM
from projector.serving.backends import CloudFiles
from projector.serving.export import export
from projector.training import texts
from projector.training.fit import moments_of
from protos.state import KVState
from tests.fakes.tiny_models import tiny_gemma3, tiny_lm

TEXTS = tuple(
    f"{count} {colour} {thing} near the {place}"
    for count in ("one", "two", "three")
    for colour in ("red", "green", "blue")
    for thing in ("car", "dog", "ladder", "truck")
    for place in ("yard", "fire", "open yard")
)
QUESTION = "what is red ?"


@dataclass(frozen=True)
class TextPair:
    """Checkpoints, the map between them and the bundle of it."""

    source: Path
    target: Path
    bundle: Path
    map: Map

    @cached_property
    def edge(self) -> EdgeModel:
        """The small model, as the agent loads it."""
        return load_edge(self.source, target_tokenizer=self.target)

    @cached_property
    def cloud(self) -> LM:
        """The large model."""
        return LM.load(self.target)

    @cached_property
    def encoder(self) -> Encoder:
        """The edge half, as it is loaded for these two."""
        return Bundle.load(self.bundle, self.edge.layout, self.cloud.layout).encoder


def make_pair(folder: Path, reverse: bool = False) -> TextPair:
    """A map from the tiny Llama to the tiny Gemma 3 (or back) in closed form, as a bundle."""
    paths = [tiny_lm(folder), tiny_gemma3(folder)]
    source_path, target_path = reversed(paths) if reverse else paths
    source, target = LM.load(source_path), LM.load(target_path)
    corpus = texts.collect(source, target, TEXTS.__getitem__, len(TEXTS), folder / "corpus")
    made = LowRank(r=8).build(source.layout, target.layout, moments_of(corpus, source, target))
    write_bundle(
        folder / "bundle",
        id="tiny-texts",
        version=1,
        source=source.layout,
        target=target.layout,
        encoder=encoder_of(made, corpus.x),
        cloud=CloudFiles(weights=made.to_bytes(), graph=export(ServedMap(made)).graph),
        certificate={"made": "from random models"},
        default_point=FP8_POINT,
        ladder=[1, FP8_POINT],
    )
    return TextPair(source_path, target_path, folder / "bundle", made)


def in_process(pair: TextPair, text: str, question: str, point: str, most: int = 16) -> str:
    """What the large model answers from a text's cache, without any of the service."""
    sight, target, encoder = pair.edge.see(text), pair.cloud, pair.encoder
    encoded = encoder.encode(
        sight.state, next(p for p in encoder.points if p.name == point), sight.fresh
    )
    with torch.no_grad():
        made = pair.map.cloud(torch.from_numpy(encoded.held.latents))
        flat = (made * pair.map.y_scale + pair.map.y_mean).numpy()
    at = target.positions[: len(flat)]
    state = KVState.from_flat(flat.astype(np.float32), target.layout, at)
    layers = target.scene_cache(*kv.from_states([state], target.layout, at))
    return target.generate_text(layers, [question], most)[0]
