"""The committed reference pair is what the README says it is, and the bridge works between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.compare.arms import Pair
from projector.bundle.load import Bundle
from projector.calibration.ladder import Judge
from projector.training.corpus import Corpus
from protos.digest import verify
from protos.errors import BridgeError, BundleLayoutError
from protos.header import Header, pack_header
from protos.requests import parse_infer_request, seal
from reference.demo.halves import BUNDLE, CLOUD_MODEL, EDGE_MODEL
from reference.demo.testset import TestSet


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.load(EDGE_MODEL, CLOUD_MODEL, BUNDLE)


@pytest.mark.parametrize("path", [EDGE_MODEL, CLOUD_MODEL], ids=lambda p: p.name)
def test_the_auto_classes_load_the_committed_checkpoint(path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(path, local_files_only=True)
    processor = AutoProcessor.from_pretrained(path, local_files_only=True)
    assert processor.chat_template
    assert type(model).__name__ in (
        "Idefics3ForConditionalGeneration",
        "LlavaForConditionalGeneration",
    )


def test_the_two_models_share_nothing_but_the_grid(pair: Pair) -> None:
    edge, cloud = pair.edge, pair.cloud
    assert (edge.layout.state_dim, cloud.layout.state_dim) == (512, 4096)
    assert edge.layout.grid == cloud.layout.grid == (6, 6)
    sizes = [sum(p.numel() for p in vlm.model.parameters()) for vlm in (edge, cloud)]
    assert sizes[1] >= 5 * sizes[0]
    configs = [vlm.model.config for vlm in (edge, cloud)]
    assert configs[0].model_type != configs[1].model_type
    assert configs[0].vision_config.model_type != configs[1].vision_config.model_type
    assert configs[0].vision_config.patch_size != configs[1].vision_config.patch_size
    assert edge.layout.rope.theta != cloud.layout.rope.theta
    assert edge.layout.tokenizer_digest != cloud.layout.tokenizer_digest
    assert edge.processor.tokenizer.get_vocab() != cloud.processor.tokenizer.get_vocab()


def test_the_committed_weights_stay_below_thirty_megabytes() -> None:
    files = list(EDGE_MODEL.parent.glob("*/*.safetensors"))
    assert {EDGE_MODEL, CLOUD_MODEL} <= {f.parent for f in files}
    assert sum(f.stat().st_size for f in files) <= 30_000_000


def test_the_bundle_refuses_the_models_the_other_way_round(pair: Pair) -> None:
    with pytest.raises(BundleLayoutError):
        Bundle.load(BUNDLE, pair.cloud.layout, pair.edge.layout)


def test_no_flipped_bit_of_a_real_frame_of_the_reference_pair_is_accepted(pair: Pair) -> None:
    encoder, info = pair.bundle.encoder, pair.bundle.info
    (picture,) = TestSet.load("validation", 1, 1).pictures
    shot = pair.encode(pair.states([picture])[0], encoder.point(info.default_point)).shot
    constants = bytes(range(32))
    head, payload = pack_header(Header(shot.point, 7, shot.kept, 0, shot.distortion), shot.payload)
    raw = seal(constants, b"requests", head, payload, "is there a fire ?", 4).SerializeToString()

    def accept(blob: bytes) -> None:
        verify(parse_infer_request(blob).request, constants)

    accept(raw)
    accepted = []
    for bit in range(8 * len(raw)):
        wrong = bytearray(raw)
        wrong[bit // 8] ^= 1 << bit % 8
        try:
            accept(bytes(wrong))
        except BridgeError:
            continue
        accepted.append(bit)
    assert accepted == []


@pytest.mark.slow
def test_answers_come_from_the_picture_whose_cache_was_injected(pair: Pair) -> None:
    test = TestSet.load("validation", 48, 6)
    states = pair.states(test.pictures)
    encoder = pair.bundle.encoder
    point = encoder.point(pair.bundle.info.default_point)
    frames = [pair.encode(state, point) for state in states]
    own = test.right(
        pair.injected(frames, [(q.picture, q.text) for q in test.asked], lambda n: None)
    )
    other = test.right(pair.other_picture(test, frames, test.others(), lambda n: None))
    blind = test.right(pair.blind(test, lambda n: None))
    mean = [float(np.mean(right)) for right in (own, other, blind)]
    assert mean[0] >= mean[1] + 0.15, mean
    assert mean[0] >= mean[2] + 0.15, mean


@pytest.mark.slow
def test_a_ladders_judge_answers_what_the_served_path_answers(pair: Pair) -> None:
    test = TestSet.load("validation", 16, 6)
    states = pair.states(test.pictures)
    point = pair.bundle.encoder.point(pair.bundle.info.default_point)
    frames = [pair.encode(state, point) for state in states]
    greedy = test.right(
        pair.injected(frames, [(q.picture, q.text) for q in test.asked], lambda n: None)
    )
    corpus = Corpus(
        np.stack([state.flat() for state in states]),
        np.empty((16, 0, 0), dtype=np.float16),
        np.stack([state.attention for state in states]),
    )

    def questions(picture: int, count: int, seed: int) -> list[tuple[str, str]]:
        return [(q.text, q.truth) for q in test.asked if q.picture == picture][:count]

    judge = Judge(pair.edge, pair.cloud, pair.backend, corpus, questions)
    found = judge.measure(pair.bundle.encoder, point)
    assert found.right.reshape(-1).tolist() == greedy
    assert found.measured.accuracy == np.mean(greedy)
    assert found.measured.payload_bytes == np.mean([len(f.shot.payload) for f in frames])
