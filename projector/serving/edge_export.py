"""Writes an edge export: a vision-language checkpoint as files that a device runs without torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel
from PIL import Image

from projector.models.exported import check
from projector.models.exported.check import Known
from projector.models.exported.manifest import (
    DECODER,
    DESCRIPTION,
    EMBEDDINGS,
    TOKENIZER,
    VISION,
    WITNESS,
    ExportedFile,
    Fidelity,
    Manifest,
    PromptParts,
    sha256_of,
    write_manifest,
)
from projector.models.exported.vlm import ExportedVLM
from projector.models.vlm import VLM
from projector.models.witness import TOLERANCES
from projector.serving.edge_graphs import OPSET, decoder_graph, vision_graph
from projector.serving.edge_pictures import picture_steps
from protos.errors import ModelError, SelfCheckError, UnsupportedModelError
from protos.process.files import write_file, writing

_LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "neural-bridge")
_SIZES = ((96, 64), (40, 48), (64, 64), (31, 77), (200, 50))
_QUESTIONS = ("What is left of the red car?", "How many people are there? One, 2 or 30")
_ANSWER_TOKENS = 8
_LEAST_EXTERNAL_BYTES = 1024
_ROWS = 4096


def export_edge(vlm: VLM, folder: Path) -> Manifest:
    """Write the export of a loaded model, and compare it with the model in torch.

    Args:
        vlm: on the CPU, in float32 or float16; afterwards its weights are float32.
        folder: made if missing; an earlier export in it is replaced when the new one is whole.

    Raises:
        UnsupportedModelError: its pictures, its template or its attention cannot be exported.
        SelfCheckError: the graphs compute something else than the model.
        DiskFullError, ConfigError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        with writing(folder):
            manifest = _write(vlm, draft)
            earlier = folder / DESCRIPTION
            earlier.unlink(missing_ok=True)
            for file in sorted(draft.iterdir(), key=lambda file: file.name == DESCRIPTION):
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _write(vlm: VLM, folder: Path) -> Manifest:
    prompt, pictures = _prompt(vlm), picture_steps(vlm.pixels)
    known = [_known(vlm, picture) for picture in _pictures()]
    vlm.model.requires_grad_(False)
    np.save(folder / EMBEDDINGS, _embeddings(vlm, prompt.seen_as))
    half = vlm.layout.cache_dtype == "float16"
    vlm.model.float()  # traced so; the exporter mixes formats up where a model does
    with vlm.eager():
        picture = vlm.pixels.of_pictures([next(_pictures())])
        for file, graph in ((VISION, vision_graph(vlm, picture)), (DECODER, decoder_graph(vlm))):
            _save(graph, folder / file, half)
    write_file(folder / TOKENIZER, vlm.tokenizer.backend_tokenizer.to_str().encode())
    known[0].save(folder / WITNESS)
    plain = Manifest(
        format=1,
        layout=json.loads(vlm.layout.to_json()),
        opset=OPSET,
        made_with={name: importlib.metadata.version(name) for name in _LIBRARIES},
        prompt=prompt,
        pictures=pictures,
        parity=Fidelity(cache=0.0, variation=0.0, same_tokens=0, tokens=0),
        resident_bytes=0,
        files={
            file.name: ExportedFile(bytes=file.stat().st_size, sha256=sha256_of(file))
            for file in sorted(folder.iterdir())
        },
    )
    write_manifest(folder, plain)
    found = {"parity": _parity(vlm, folder, known), "resident_bytes": _footprint(folder)}
    manifest = plain.model_copy(update=found)
    write_manifest(folder, manifest)
    return manifest


def _save(graph: bytes, file: Path, half: bool) -> None:
    """Check a graph and write it, its weights in a file that a runtime maps into memory.

    Args:
        graph: in float32.
        file: where to.
        half: whether it is to compute in float16; what goes in and out stays float32.
    """
    model = onnx.load_from_string(graph)
    if half:
        model = float16.convert_float_to_float16(model, keep_io_types=True)
        OnnxModel(model).topological_sort()  # it adds its casts at the end
    onnx.checker.check_model(model, full_check=True)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            raise UnsupportedModelError(f"{file.name} would compute in float64 ({tensor.name})")
    weights = file.with_suffix(".weights")
    onnx.save_model(
        model,
        str(file),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=weights.name,
        size_threshold=_LEAST_EXTERNAL_BYTES,
    )
    for written in (file, weights):
        written.chmod(0o644)


def _prompt(vlm: VLM) -> PromptParts:
    around, prompt = vlm.prompt.affixes(), vlm.prompt
    if getattr(vlm.tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            f"the tokenizer of {vlm.path} is of Python (no tokenizer.json): a device without "
            "transformers cannot run it"
        )
    seen_as = vlm.seen_as
    return PromptParts(
        before=prompt.before,
        cue=prompt.cue,
        tail=around.tail,
        image_text=prompt.image_text,
        opening=around.opening,
        closing=around.closing,
        strip=around.strip,
        reserved=list(prompt.reserved),
        eos=sorted(vlm.eos_ids),
        seen_as=sorted(seen_as),
        two_way=_two_way(vlm),
        max_question_tokens=vlm.max_question_tokens,
    )


def _two_way(vlm: VLM) -> bool:
    """Whether the picture's tokens see each other both ways, as the model's attention shows.

    Raises:
        UnsupportedModelError: tokens see each other in a third way.
    """
    seen = vlm.seen_tokens(next(_pictures()))
    causal = np.tri(len(seen), dtype=np.bool_)
    both, start = causal.copy(), len(vlm.prefix_ids)
    both[start : start + vlm.image_tokens, start : start + vlm.image_tokens] = True
    if not (seen & ~causal).any():
        return False
    if not (seen & ~both).any():
        return True
    raise UnsupportedModelError(
        f"the decoder of {vlm.path} lets tokens see each other in a way that is neither causal nor "
        "causal with one block for the picture"
    )


def _embeddings(vlm: VLM, seen_as: Sequence[int]) -> npt.NDArray[Any]:
    """The embedding of every token `[V, E]`, then those of tokens that a picture changes."""
    table = vlm.decoder.get_input_embeddings()
    count = table.weight.shape[0]
    with torch.inference_mode():
        parts = [
            table(torch.arange(first, min(first + _ROWS, count)))
            for first in range(0, count, _ROWS)
        ]
        more = vlm.seen_as
        whole = torch.cat([*parts, *(more[token][None].to(parts[0].dtype) for token in seen_as)])
    return whole.numpy()


def _pictures() -> Iterator[Image.Image]:
    draw = np.random.default_rng(1)
    for width, height in _SIZES:
        blocks = draw.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8)
        yield Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def _known(vlm: VLM, picture: Image.Image) -> Known:
    """What the model in torch makes of a picture."""
    made, question = vlm.prefill([picture]), vlm.question_ids(_QUESTIONS[0])
    layers = torch.stack([torch.stack(pair) for pair in made.layers()])
    assert made.attention is not None
    return Known(
        picture=np.asarray(picture),
        question=np.array(question, np.int64),
        layers=layers.float().numpy(),
        attention=made.attention[0].float().numpy(),
        first=vlm.first_token(made.layers(), [question])[0],
        answer=np.array(vlm.answer(made.layers(), [question], _ANSWER_TOKENS)[0], np.int64),
    )


def _footprint(folder: Path) -> int:
    """Memory that the export takes, measured in a process of its own.

    Raises:
        ModelError: it could not be run there.
    """
    command = [sys.executable, "-m", "projector.models.exported.footprint", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True)
    if told.returncode:
        raise ModelError(f"the export cannot be run in a process of its own: {told.stderr[-300:]}")
    return int(told.stdout)


def _parity(vlm: VLM, folder: Path, known: Sequence[Known]) -> Fidelity:
    """Run the export on the CPU beside the model.

    Raises:
        SelfCheckError: they differ by more than rounding, or read a question differently.
    """
    exported = ExportedVLM.load(folder, "cpu", 1)
    for text in (*_QUESTIONS, "  two\nlines ", "é中 {x} <b>"):
        if exported.question_ids(text) != vlm.question_ids(text):
            raise SelfCheckError(f"the export of {vlm.path} makes other tokens of {text!r}")
    for each in known:
        if exported.text(each.answer.tolist()) != vlm.text(each.answer.tolist()):
            raise SelfCheckError(f"the export of {vlm.path} spells answers in another way")
    found = [check.difference(exported, each) for each in known]
    allowed = TOLERANCES[vlm.layout.cache_dtype]
    made = Fidelity(
        cache=max(each.cache for each in found),
        variation=max(each.variation for each in found),
        same_tokens=sum(len(k.answer) for k, each in zip(known, found, strict=True) if each.same),
        tokens=sum(len(each.answer) for each in known),
    )
    if not (made.cache <= allowed.cache and made.variation <= allowed.variation):
        raise SelfCheckError(
            f"the export of {vlm.path} does not compute what the checkpoint does: a token's cache "
            f"differs by {made.cache:.2g} of a usual one, a distribution by {made.variation:.2g}"
        )
    return made
