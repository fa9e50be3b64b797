"""The models that a command runs, loaded from their checkpoints (torch is imported here, late)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from projector.commands.settings import Settings
from projector.models.foreign import importing
from projector.report import tables
from projector.training import preflight
from protos.layout import KVLayout

if TYPE_CHECKING:
    from projector.models.lm import LM
    from projector.models.vlm import VLM
    from projector.training.dataset import Dataset

    Model = VLM | LM


def open_models(args: argparse.Namespace, data: Dataset) -> tuple[Model, Model]:
    """Load both models, to read pictures or texts as the folder holds them."""
    from projector.training.dataset import Texts

    return open_pair(args, isinstance(data, Texts))


def open_pair(args: argparse.Namespace, texts: bool) -> tuple[Model, Model]:
    """Load both models, to read texts or pictures."""
    preflight.models(args)
    with importing("running a model"):
        import torch
        from transformers.utils import logging

        from projector.models.lm import LM
        from projector.models.vlm import VLM
        from projector.training import distributed

    logging.disable_progress_bar()
    tables.threads(args.threads, torch.set_num_threads)
    with tables.doing(f"loading {args.source} and {args.target}"):
        device = distributed.device(args.device)
        models: list[Model] = []
        for path in (args.source, args.target):
            if texts:
                models.append(LM.load(path, device, text_tokens=args.text_tokens))
            else:
                models.append(VLM.load(path, device))
        return models[0], models[1]


def open_vlm(model: Path, chosen: Settings, dtype: str) -> VLM:
    """Load one vision-language model."""
    with importing("running a model"):
        import torch
        from transformers.utils import logging

        from projector.models.vlm import VLM
    quiet: Callable[[], None] = logging.disable_progress_bar
    quiet()
    tables.threads(chosen.threads, torch.set_num_threads)
    with tables.doing(f"loading {model}"):
        return VLM.load(model, device=chosen.device, dtype=dtype)


def live_layout(
    model: Path, device: str, dtype: str, threads: int, text_tokens: int = 0
) -> KVLayout:
    """The layout of a checkpoint as loaded here; a text-only model gets `text_tokens` tokens."""
    with importing("a model's layout"):
        import torch
        from transformers.utils import logging

        from projector.models.lm import LM, TEXT_TOKENS, reads_only_texts
        from projector.models.vlm import VLM
    quiet: Callable[[], None] = logging.disable_progress_bar
    quiet()  # `tables.doing` shows progress instead, on terminals only
    tables.threads(threads, torch.set_num_threads)
    with tables.doing(f"loading {model}"):
        if text_tokens or reads_only_texts(model):
            return LM.load(model, device, dtype, text_tokens or TEXT_TOKENS).layout
        return VLM.load(model, device=device, dtype=dtype).layout
