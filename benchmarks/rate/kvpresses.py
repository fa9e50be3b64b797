"""kvpress's scores of image tokens: a script that `build/rivals/bin/python` runs.

`python benchmarks/rate/kvpresses.py MODEL IN.npz OUT.npz FIRST TOKENS WINDOW`. It imports kvpress
(0.5.5) and nothing of ours. IN holds `inputs_embeds [n, T, E]`, the decoder's input, so kvpress's
transformers need not know the vision tower. The image has TOKENS tokens from FIRST on; SnapKV
observes the last WINDOW tokens of the prompt.

kvpress prunes each head on its own, but a frame keeps a token in all heads or in none. So every
head of every layer ranks the tokens by the press's own `score`; a token's score is its mean rank.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from kvpress import ExpectedAttentionPress, KeyDiffPress, KnormPress, SnapKVPress
from transformers import AutoModelForImageTextToText, DynamicCache

BATCH = 32


def main(path: str, given: str, out: str, first: int, tokens: int, window: int) -> None:
    """Write `[n, TOKENS]` by press."""
    torch.set_num_threads(1)
    presses: dict[str, Any] = {
        "SnapKV": SnapKVPress(window_size=window),
        "ExpectedAttention": ExpectedAttentionPress(n_sink=min(4, first)),
        "KeyDiff": KeyDiffPress(),
        "Knorm": KnormPress(),
    }
    # Only the decoder runs; a tower of another layout in this version may stay untrained.
    model = AutoModelForImageTextToText.from_pretrained(
        path, local_files_only=True, dtype=torch.float32, ignore_mismatched_sizes=True
    ).eval()
    base = model.model
    text = getattr(base, "text_model", None) or base.language_model
    noted: dict[str, list[torch.Tensor]] = {name: [] for name in presses}

    def note(module: Any, arguments: Any, kwargs: Any, output: Any) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else arguments[0]
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        for name, press in presses.items():
            score = press.score(module, hidden, layer.keys, layer.values, None, kwargs)
            image = score[:, :, first : first + tokens]
            noted[name].append(image.argsort(dim=-1).argsort(dim=-1).float().mean(dim=1))

    for layer in text.layers:
        layer.self_attn.rotary_emb = text.rotary_emb
        layer.self_attn.register_forward_hook(note, with_kwargs=True)
    with np.load(given) as arrays:
        embeds = torch.from_numpy(arrays["inputs_embeds"])
    found: dict[str, list[torch.Tensor]] = {name: [] for name in presses}
    with torch.inference_mode():
        for part in embeds.split(BATCH):
            text(inputs_embeds=part, past_key_values=DynamicCache(), use_cache=True)
            for name, layers in noted.items():
                found[name].append(torch.stack(layers).mean(dim=0))
                layers.clear()
    arrays_out: dict[str, Any] = {name: torch.cat(each).numpy() for name, each in found.items()}
    np.savez(out, **arrays_out)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:7]))  # type: ignore[arg-type]
