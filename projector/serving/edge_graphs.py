"""Traces a vision-language model into two ONNX graphs: vision tower and decoder.

The vision graph gives what the model puts in the image tokens' places. The decoder graph runs any
number of tokens behind any cache: it is prefill and decode step at once, so weights exist once.
"""

from __future__ import annotations

import io
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from projector.models import cache as kv
from projector.models.decoder import attention_mask
from projector.models.foreign import foreign
from projector.models.vlm import VLM
from protos.errors import UnsupportedModelError

OPSET = 18
DECODER_INPUTS = ("embeds", "positions", "seen", "past")
DECODER_OUTPUTS = ("logits", "attention", "new")
_AXES = {
    "embeds": {1: "tokens"},
    "positions": {0: "tokens"},
    "seen": {0: "tokens", 1: "context"},
    "past": {4: "held"},
    "attention": {0: "tokens", 1: "context"},
    "new": {4: "tokens"},
}
_IN_PLACE: Mapping[Any, Callable[..., Any]] = {
    Tensor.__ior__: operator.or_,
    Tensor.__iand__: operator.and_,
}
"""Operators without an ONNX form, and the same without the writing in place."""


class _Reached(Exception):
    """The decoder was called; what it was given is all that is needed."""


class _Exportable(TorchFunctionMode):
    """Makes calls exportable that the exporter turns into a wrong graph, or into none."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if function is torch.full and named.get("dtype") is None:  # it would become float
            value = named.get("fill_value", args[1] if len(args) > 1 else 0.0)
            if not isinstance(value, Tensor):
                named["dtype"] = torch.tensor(value).dtype
        return _IN_PLACE.get(function, function)(*args, **named)


class Vision(torch.nn.Module):
    """Pixels to the image tokens' embeddings `[N, E]`, float32."""

    def __init__(self, vlm: VLM, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.vlm, self.inputs = vlm.model, vlm, inputs

    def forward(self, *pixels: Tensor) -> Tensor:
        """Run the model up to its decoder."""
        vlm = self.vlm
        ids = vlm.prefix_ids + [vlm.prompt.image_id] * vlm.image_tokens
        given: list[Tensor] = []

        def note(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
            given.append(named["inputs_embeds"])
            raise _Reached

        marks = {name: torch.tensor([row]) for name, (row, _) in vlm.prompt.marks.items()}
        cast = {
            name: value.to(vlm.decoder.dtype) if value.is_floating_point() else value
            for name, value in zip(self.inputs, pixels, strict=True)
        }
        hook = vlm.decoder.register_forward_pre_hook(note, with_kwargs=True)
        try:
            vlm.model.base_model(
                input_ids=torch.tensor([ids]),
                past_key_values=kv.new_cache(),
                use_cache=True,
                **cast,
                **marks,
            )
        except _Reached:
            pass
        finally:
            hook.remove()
        return given[0][0, len(vlm.prefix_ids) :].float()


class Decoder(torch.nn.Module):
    """Tokens behind a cache: logits of the last `[V]`, attention, and what the cache gains.

    Attention is the weights `[T, S]`, mean over heads, summed over layers. Everything that goes in
    or comes out is float32 whatever the model runs in.
    """

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.model, self.vlm = vlm.model, vlm

    def forward(
        self, embeds: Tensor, positions: Tensor, seen: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the decoder.

        Args:
            embeds: `[1, T, E]`.
            positions: `[T]`.
            seen: bool `[T, S]`, true where a token sees another; S is the cache and the tokens.
            past: `[layers, 2, 1, kv_heads, P, head_dim]`, keys rotated.

        Returns:
            Logits `[V]`, attention `[T, S]`, and `[layers, 2, 1, kv_heads, T, head_dim]`.
        """
        decoder, count = self.vlm.decoder, embeds.shape[1]
        held = past.to(decoder.dtype)
        cache = kv.new_cache([(layer[0], layer[1]) for layer in held])
        out = decoder(
            inputs_embeds=embeds.to(decoder.dtype),
            attention_mask=attention_mask(decoder, seen[None, None]),
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        )
        new = [
            torch.stack((keys[:, :, -count:], values[:, :, -count:]))
            for keys, values in kv.read_cache(cache)
        ]
        weights = torch.stack([each.float().mean(dim=1)[0] for each in out.attentions]).sum(dim=0)
        logits = self.vlm.logits(out.last_hidden_state[:, -1])[0]
        return logits.float(), weights, torch.stack(new).float()


def vision_graph(vlm: VLM, pixels: Mapping[str, Tensor]) -> bytes:
    """The vision tower as ONNX; `pixels` are the inputs of one picture."""
    names = tuple(pixels)
    return _exported(Vision(vlm, names), tuple(pixels.values()), names, ("embeds",), {})


def decoder_graph(vlm: VLM) -> bytes:
    """The decoder as ONNX, for any number of tokens behind any cache."""
    layout = vlm.layout
    width = vlm.decoder.get_input_embeddings()(torch.tensor([0], device=vlm.device)).shape[-1]
    count, held = 5, 7
    sample = (
        torch.randn(1, count, width, generator=torch.Generator().manual_seed(0)),
        torch.arange(held, held + count),
        torch.ones(count, held + count, dtype=torch.bool).tril(held),
        torch.zeros(layout.layers, 2, 1, layout.kv_heads, held, layout.head_dim),
    )
    return _exported(Decoder(vlm), sample, DECODER_INPUTS, DECODER_OUTPUTS, _AXES)


def _exported(
    module: Vision | Decoder,
    sample: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    axes: Mapping[str, dict[int, str]],
) -> bytes:
    stream = io.BytesIO()
    kind = module.vlm.model.config.model_type
    advice = "run the checkpoint with torch, or use a model of another family"
    with (
        foreign(f"'{kind}' cannot be exported", advice, UnsupportedModelError),
        warnings.catch_warnings(),
        torch.no_grad(),
        _Exportable(),
    ):
        warnings.simplefilter("ignore")  # of tracing; the graph is compared afterwards
        torch.onnx.export(
            module.eval(),
            sample,
            stream,  # type: ignore[arg-type]  # the stub allows paths only
            dynamo=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
        )
    return stream.getvalue()
