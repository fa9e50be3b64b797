"""The parts of an edge export: pictures as the processor prepares them, attention, engines."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from projector.models.attention import Received
from projector.models.exported import sessions
from projector.models.exported.check import Known, difference
from projector.models.exported.manifest import WITNESS, Manifest
from projector.models.exported.picture_input import picture_input
from projector.models.exported.sessions import engine_folder, engine_key
from projector.models.exported.vlm import ExportedVLM, received_shares
from projector.models.vlm import VLM
from projector.serving.edge_export import export_edge
from projector.serving.edge_pictures import picture_steps
from protos.errors import QuestionError, UnsupportedModelError
from tests.fakes.tiny_models import tiny_gemma3_vlm, tiny_llava, tiny_ovis2, tiny_smolvlm

PROCESSORS = {
    "clip-crop": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 48, "width": 33}
    ),
    "clip-square": CLIPImageProcessorPil(
        size={"height": 31, "width": 64}, do_center_crop=False, resample=3
    ),
    "siglip": SiglipImageProcessorPil(size={"height": 48, "width": 48}),
    "idefics3": Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": 77},
        max_image_size={"longest_edge": 64},
    ),
    "plain": CLIPImageProcessorPil(
        size={"height": 16, "width": 16},
        do_center_crop=False,
        do_normalize=False,
    ),
}
SIZES = ((1, 1), (2, 3), (640, 17), (17, 640), (33, 48), (47, 49), (1001, 999))


class Prepared:
    """What `picture_steps` needs of a model: its image processor."""

    def __init__(self, processor: Any) -> None:
        self.prompt = SimpleNamespace(processor=SimpleNamespace(image_processor=processor))

    def of_pictures(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        made = self.prompt.processor.image_processor(
            images=[[picture] for picture in pictures], return_tensors="pt"
        )
        return {k: v for k, v in made.items() if k in ("pixel_values", "pixel_attention_mask")}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_of_odd_sizes_are_prepared_as_the_processor_does(name: str) -> None:
    pixels: Any = Prepared(PROCESSORS[name])
    steps = picture_steps(pixels)
    draw = np.random.default_rng(3)
    for width, height in SIZES:
        shown = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours, theirs = picture_input(shown, steps), pixels.of_pictures([shown])
        assert set(ours) == set(theirs)
        for key, wanted in theirs.items():
            assert ours[key].shape == tuple(wanted.shape)
            np.testing.assert_allclose(ours[key], wanted.numpy(), rtol=0, atol=1e-6)


def test_a_processor_that_does_more_is_refused() -> None:
    class Darker(CLIPImageProcessorPil):  # type: ignore[misc]
        def rescale(self, image: Any, scale: float, **more: Any) -> Any:
            return super().rescale(image, scale, **more) * 0.99

    pixels: Any = Prepared(Darker(size={"height": 16, "width": 16}, do_center_crop=False))
    with pytest.raises(UnsupportedModelError, match="Darker cannot be exported: its pixels differ"):
        picture_steps(pixels)


@pytest.mark.parametrize("two_way", [False, True])
def test_shares_of_attention_are_those_that_torch_measures(two_way: bool) -> None:
    draw, start, count, total = torch.Generator().manual_seed(1), 3, 5, 11
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    if two_way:
        seen[start : start + count, start : start + count] = True
    logits = torch.randn(4, total, total, generator=draw).masked_fill(~seen, float("-inf"))
    layers = logits.softmax(dim=-1)
    received = Received(start, count)
    for layer in layers:
        received.add(layer[None, start:], torch.arange(start, total))
    ours = received_shares(layers.sum(dim=0).numpy(), start, count)
    np.testing.assert_allclose(ours, received.shares()[0].numpy(), atol=1e-6)


def test_a_text_alone_has_the_checkpoints_cache_of_its_own_tokens(tmp_path: Path) -> None:
    vlm = VLM.load(tiny_llava(tmp_path))
    export_edge(vlm, tmp_path / "export")
    exported = ExportedVLM.load(tmp_path / "export")
    for text in ("red car", "where is the red car ?"):
        theirs, ours = vlm.text_state(text), exported.text_state(text)
        assert ours.grid == theirs.grid == (1, len(text.split()))
        assert (ours.positions == theirs.positions).all()
        np.testing.assert_allclose(ours.keys, theirs.keys, atol=1e-4)
        np.testing.assert_allclose(ours.values, theirs.values, atol=1e-4)
    first, longer = vlm.text_state("red car"), vlm.text_state("red car is near")
    np.testing.assert_allclose(longer.values[:, :, :2], first.values, atol=1e-5)
    for model in (vlm, exported):
        with pytest.raises(QuestionError, match="empty"):
            model.text_state(" ")


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_smolvlm, tiny_ovis2], ids=["smolvlm", "ovis2"])
def test_families_whose_towers_write_in_place_or_embed_tokens_anew(
    build: Any, tmp_path: Path
) -> None:
    made = export_edge(VLM.load(build(tmp_path)), tmp_path / "export")
    assert made.parity.cache < 1e-3 and made.parity.same_tokens == made.parity.tokens
    assert bool(made.prompt.seen_as) == (build is tiny_ovis2)


@pytest.mark.slow
def test_half_precision_is_half_the_size_and_within_its_rounding(tmp_path: Path) -> None:
    path, sizes = tiny_llava(tmp_path), []
    for dtype in ("float32", "float16"):
        made = export_edge(VLM.load(path, dtype=dtype), tmp_path / dtype)
        sizes.append(made.files["decoder.weights"].bytes)
        assert made.kv_layout.cache_dtype == dtype
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.slow
def test_a_family_that_the_exporter_cannot_trace_is_a_typed_error(tmp_path: Path) -> None:
    vlm = VLM.load(tiny_gemma3_vlm(tmp_path))
    with pytest.raises(UnsupportedModelError, match="'gemma3' cannot be exported"):
        export_edge(vlm, tmp_path / "export")
    assert not list((tmp_path / "export").iterdir())


def test_an_engine_is_for_one_model_driver_jetpack_and_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def manifest(digest: str) -> Any:
        return SimpleNamespace(digest=digest)

    names = ("_RELEASE", "_MODULE", "_BOARD")
    for name in names:
        monkeypatch.setattr(sessions, name, tmp_path / name)
    keys = {engine_key(manifest("a")), engine_key(manifest("b")), engine_key(manifest("a"), "1")}
    for name in names:
        (tmp_path / name).write_text("R36 (release)")
        keys.add(engine_key(manifest("a")))
    (tmp_path / "_RELEASE").write_text("R39 (release)")
    keys.add(engine_key(manifest("a")))
    assert len(keys) == 7
    assert engine_key(manifest("a")) in keys


def test_a_new_jetpack_has_engines_built_again_and_old_ones_do_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, engines = tmp_path / "release", tmp_path / "engines"
    monkeypatch.setattr(sessions, "_RELEASE", release)
    model: Any = SimpleNamespace(digest="a")
    made = []
    for number in range(9):
        release.write_text(f"R36 (release), REVISION: {number}")
        folder = engine_folder(engines, model)
        assert list(folder.iterdir()) == [], "nothing of another JetPack is used"
        (folder / "vision.engine").write_bytes(b"engine")
        os.utime(folder, (number, number))
        made.append(folder)
        assert engine_folder(engines, model) == folder and list(folder.iterdir())
        os.utime(folder, (number, number))
    assert set(engines.iterdir()) == set(made[-4:])


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_computes_what_the_checkpoint_does(tmp_path: Path, device: str) -> None:
    provider = sessions.PROVIDERS[device][0]
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"needs a GPU: this onnxruntime has no {provider}")
    export_edge(VLM.load(tiny_llava(tmp_path)), tmp_path / "export")
    engines = tmp_path / "engines"
    vlm = ExportedVLM.load(tmp_path / "export", device, engines=engines)
    assert (vlm.running.device, vlm.running.fallback) == (device, "")
    found = difference(vlm, Known.load(tmp_path / "export" / WITNESS))
    assert found.cache < 0.05 and found.same
    if device == "tensorrt":
        built = sorted(file.name for file in engines.rglob("*.engine"))
        ExportedVLM.load(tmp_path / "export", device, engines=engines)
        assert built and sorted(file.name for file in engines.rglob("*.engine")) == built


def test_a_manifest_refuses_unknown_fields() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        Manifest.model_validate({"formatt": 1})
