"""SHA-256 digests of a checkpoint's weights, tokenizer and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protos.errors import ModelError

_SETTINGS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
_NO_SETTINGS = {
    "generation_config.json",  # how answers are sampled
    "training.json",  # how reference models were trained
    "edge_confidence.json",  # how far its own answers can be trusted
    *("adapter_model.json", "trainer_state.json", "all_results.json", "train_results.json"),
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)


def weights_digest(path: Path) -> str:
    """SHA-256 hex over every safetensors file of a checkpoint, in name order.

    Raises:
        ModelError: the folder holds no safetensors file.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path} holds no .safetensors file: it is not a usable checkpoint")
    return _files_digest(files)


def tokenizer_digest(path: Path) -> str:
    """SHA-256 hex over the files that shape the prompt: tokenizer, template, processor."""
    return _files_digest([Path(path) / n for n in _TOKENIZER_FILES if (Path(path) / n).is_file()])


def settings_digest(path: Path, prompt: Any) -> str:
    """SHA-256 hex over every setting that affects the cache or the prompt before it.

    Whole files are digested: which of their fields affect a cache is the library's business. A
    field that does not affect it costs a bundle's re-export at worst.

    Args:
        path: a checkpoint folder.
        prompt: what was learnt of the model's prompt, JSON-serialisable.
    """
    folder = Path(path)
    found = {file for pattern in _SETTINGS for file in folder.glob(pattern)}
    found |= set(folder.glob("additional_chat_templates/*.jinja"))
    files = sorted(file for file in found if file.is_file() and file.name not in _NO_SETTINGS)
    told = json.dumps(prompt, sort_keys=True)
    return hashlib.sha256(f"{_files_digest(files)}\0{told}".encode()).hexdigest()


def _files_digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
