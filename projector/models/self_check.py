"""Checks that a model answers from its rebuilt cache as transformers answers from the whole prompt.

Every model is checked when it is loaded, on a few inputs. The stock forward gets the whole prompt
from the processor. Our arm gets the constant prefix, the extracted cache (un-rotated, rotated and
rebuilt) and the question. A model that differs from its layout would give wrong answers without any
error, so it is refused with its figures. Results are kept, so that a second start is quick.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from inspect import signature
from itertools import combinations
from typing import Any

import structlog
import torch
from torch import Tensor

from projector.models import cache as kv
from projector.models.cache import LayerCache
from projector.models.foreign import in_words
from projector.models.frozen import FrozenModel, Generation, padded
from projector.models.self_check_record import place, read_record, write_record
from projector.models.witness import TOLERANCES, Figures, Witness
from protos.errors import ModelError, SelfCheckError

GREEDY = 4
"""Tokens of each answer that are compared."""
_MASKED = -1e30  # the model rules out tokens with a lower logit


def require(model: FrozenModel, witnesses: Callable[[], Iterable[Witness]], kept: bool) -> Figures:
    """Check a model, unless an earlier check of it on this machine is kept.

    Args:
        model: just loaded.
        witnesses: inputs to check it on.
        kept: whether results may be read from disk and written to it. Only true if exactly the
            files digested in the layout were loaded.

    Raises:
        SelfCheckError: its answers from its cache differ.
        ModelError: its stock forward cannot run the output of its own processor.
    """
    dtype = model.layout.cache_dtype
    file = place(model) if kept else None
    found = read_record(file, dtype)
    known = found is not None
    if found is None:
        found = measure(model, witnesses())
    said = {**asdict(found), "model": model.layout.model_id, "device": str(model.device)}
    if not found.good:
        _say("error", "self_check_failed", said, "")
        raise SelfCheckError(
            f"{model.layout.model_id} answers differently from its own cache than `transformers` "
            f"does with the whole prompt: {found}. Its answers would be wrong without any error, "
            "so it is not used; take a model of another family, or float32 if another dtype is set"
        )
    held = known or write_record(file, found)
    level = "info" if found.telling else "warning"
    said |= {"telling": found.telling, "known": known, "kept": held}
    _say(level, "self_check_passed", said, _passed(model, found, known))
    return found


def _say(level: str, event: str, said: Mapping[str, Any], sentence: str) -> None:
    """Log to the process's log; if none is set up, a plain sentence to Python's logging."""
    if structlog.is_configured():
        getattr(structlog.get_logger(component="self_check"), level)(event, **said)
    elif sentence:
        getattr(logging.getLogger(__name__), level)(sentence)


def _passed(model: FrozenModel, found: Figures, known: bool) -> str:
    """The sentence for a command line; empty if an earlier start has said it."""
    name = model.layout.model_id
    if not found.telling:
        return (
            f"{name} gives the same answers whatever it is shown, so they cannot tell whether its "
            "cache is read correctly"
        )
    if known:
        return ""
    return f"checked: {name} answers from its own cache as `transformers` does with the prompt"


@torch.inference_mode()
def measure(model: FrozenModel, witnesses: Iterable[Witness]) -> Figures:
    """Run every witness through both arms.

    Raises:
        ModelError: the stock forward cannot run the output of the model's own processor.
    """
    allowed = TOLERANCES[model.layout.cache_dtype]
    largest = {"variation": 0.0, "logit": 0.0, "cache": 0.0}
    worst = (0.0, "none")
    same = tokens = 0
    firsts: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for witness in witnesses:
        ours, chosen = _ours(model, witness)
        stock, held = _stock(model, witness, chosen)
        found = [("cache", _caches_apart(witness.layers, held))]
        for mine, its in (*zip(ours, stock, strict=True), (_seen(model, witness), stock[0])):
            found += zip(("variation", "logit"), apart(mine, its), strict=True)
        for figure, value in found:
            largest[figure] = max(largest[figure], value)
            worst = max(worst, (value / getattr(allowed, figure), witness.name))
        same += sum(int(its.argmax()) == token for its, token in zip(stock, chosen, strict=True))
        tokens += len(chosen)
        firsts.setdefault(tuple(witness.question), {})[witness.about] = stock[0]
    pairs = [pair for rows in firsts.values() for pair in combinations(rows.values(), 2)]
    return Figures(
        dtype=model.layout.cache_dtype,
        **largest,
        rotation=model.rotation_error,
        greedy=same,
        tokens=tokens,
        apart=max((apart(*pair)[0] for pair in pairs), default=0.0),
        worst=worst[1],
    )


def apart(mine: Tensor, its: Tensor) -> tuple[float, float]:
    """Total variation of two distributions, and largest difference of their logits, `[V]` each.

    The difference is in standard deviations of the second logits. A token that both rule out does
    not count; a token that only one rules out, and NaN, make the difference infinite.
    """
    ruled_out = its <= _MASKED
    if not torch.equal(ruled_out, mine <= _MASKED):
        return 1.0, float("inf")
    mine, its = mine[~ruled_out].double(), its[~ruled_out].double()
    variation = float((mine.softmax(-1) - its.softmax(-1)).abs().sum() / 2)
    logit = float((mine - its).abs().max() / its.std())
    return (variation, logit) if math.isfinite(variation + logit) else (1.0, float("inf"))


def _caches_apart(mine: Sequence[LayerCache], its: Sequence[LayerCache]) -> float:
    """Largest difference of one token's keys or values in a layer, relative to the median norm.

    It reveals a wrong cache even if higher layers, or small logits, hide it in the answers.
    """
    worst = 0.0
    for layer, other in zip(mine, its, strict=True):
        for ours, theirs in zip(layer, other, strict=True):
            theirs = theirs[:, :, : ours.shape[2]].float()
            if theirs.shape != ours.shape:
                return math.inf
            difference = (ours.float() - theirs).norm(dim=(1, 3)).max()
            usual = theirs.norm(dim=(1, 3)).median().clamp(min=torch.finfo(torch.float32).tiny)
            worst = max(worst, float(difference / usual))
    return worst


def _ours(model: FrozenModel, witness: Witness) -> tuple[list[Tensor], list[int]]:
    """Logits of the first tokens, and the greedy tokens, from the rebuilt cache."""
    held = witness.layers[0][0].shape[2]
    cache = kv.new_cache(witness.layers)
    generation = Generation(model, cache, held, [len(witness.question)])
    last = generation.forward(padded([witness.question], model.device))[:, -1]
    logits: list[Tensor] = []
    chosen: list[int] = []
    for index in range(GREEDY):
        logits.append(model.logits(last)[0].float())
        chosen.append(int(logits[-1].argmax()))
        if index + 1 < GREEDY:
            token = torch.tensor([chosen[-1]], device=model.device)
            last = generation.step(token, index)
    return logits, chosen


def _seen(model: FrozenModel, witness: Witness) -> Tensor:
    """Logits of the first token when the model sees or reads the input itself."""
    return model.logits(witness.whole())[0].float()


def _stock(
    model: FrozenModel, witness: Witness, chosen: Sequence[int]
) -> tuple[list[Tensor], list[LayerCache]]:
    """The stock model's logits after the whole prompt, then after each token but the last.

    Also returns its cache of the prompt.
    """
    stock = model.model
    inputs = {name: value.to(model.device) for name, value in witness.inputs.items()}
    for name, value in inputs.items():
        if value.is_floating_point():
            inputs[name] = value.to(model.decoder.dtype)
    # logits for every token of a prompt can take more memory than the weights
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(stock.forward).parameters else {}
    try:
        out = stock(**inputs, use_cache=True, **last)
        held = kv.read_cache(out.past_key_values)
        logits = [out.logits[0, -1].float()]
        length = inputs["input_ids"].shape[1]
        for index, token in enumerate(chosen[:-1]):
            ones = torch.ones(1, length + index + 1, dtype=torch.long, device=model.device)
            out = stock(
                input_ids=torch.tensor([[token]], device=model.device),
                attention_mask=ones,
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            logits.append(out.logits[0, -1].float())
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"the model of {model.path} cannot run what its own processor makes: {in_words(error)}"
        ) from error
    return logits, held
