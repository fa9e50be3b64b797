"""Whether a model answers from its rebuilt cache as `transformers` answers with the whole prompt.

Every model is checked when it is loaded, on a few inputs: the stock forward over all that the
processor makes, against the constant prefix, the cache that was extracted, un-rotated, rotated and
rebuilt, and the question. A model that differs from what its layout says would answer wrongly in
silence, so it is refused with its figures. What was found is kept, so that a second start is quick.
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
"""Tokens that each answer is followed for."""
_MASKED = -1e30  # a logit below it is of a token that the model rules out


def require(model: FrozenModel, witnesses: Callable[[], Iterable[Witness]], kept: bool) -> Figures:
    """Check a model, unless it is known to be good here.

    Args:
        model: just loaded.
        witnesses: what to check it on.
        kept: whether what an earlier check found may be used, and is kept: the files that the
            layout names the digests of are what was loaded.

    Raises:
        SelfCheckError: it answers differently from its cache.
        ModelError: its stock forward cannot run what its own processor makes.
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
            f"does with the whole prompt: {found}. Its answers would be wrong in silence, so it is "
            "not used; take a model of another family, or dtype float32 if it runs in another"
        )
    held = known or write_record(file, found)
    level = "info" if found.telling else "warning"
    said |= {"telling": found.telling, "known": known, "kept": held}
    _say(level, "self_check_passed", said, _passed(model, found, known))
    return found


def _say(level: str, event: str, said: Mapping[str, Any], sentence: str) -> None:
    """To the process's log; where no process has set one up, in plain words to Python's own."""
    if structlog.is_configured():
        getattr(structlog.get_logger(component="self_check"), level)(event, **said)
    elif sentence:
        getattr(logging.getLogger(__name__), level)(sentence)


def _passed(model: FrozenModel, found: Figures, known: bool) -> str:
    """What a command line says of it; nothing where an earlier start has said it."""
    name = model.layout.model_id
    if not found.telling:
        return (
            f"{name} answers alike whatever it is shown: whether its cache is read rightly cannot "
            "be told from its answers"
        )
    if known:
        return ""
    return f"checked: {name} answers from its own cache as `transformers` does with the prompt"


@torch.inference_mode()
def measure(model: FrozenModel, witnesses: Iterable[Witness]) -> Figures:
    """Run every witness both ways.

    Raises:
        ModelError: the stock forward cannot run what the model's own processor makes.
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
    """Total variation of two distributions, and the largest difference of their logits `[V]`.

    The difference is in standard deviations of the second's logits. Tokens that both rule out do
    not count; one that only one of them does makes the difference infinite, as NaN does.
    """
    ruled_out = its <= _MASKED
    if not torch.equal(ruled_out, mine <= _MASKED):
        return 1.0, float("inf")
    mine, its = mine[~ruled_out].double(), its[~ruled_out].double()
    variation = float((mine.softmax(-1) - its.softmax(-1)).abs().sum() / 2)
    logit = float((mine - its).abs().max() / its.std())
    return (variation, logit) if math.isfinite(variation + logit) else (1.0, float("inf"))


def _caches_apart(mine: Sequence[LayerCache], its: Sequence[LayerCache]) -> float:
    """Largest difference of a token's keys or values in a layer, in norms of the median token.

    It shows a wrong cache also where the layers above it, or small logits, hide it in answers.
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
    """Logits of the first tokens, and the greedy ones, from the rebuilt cache."""
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
    """Logits of the first token by the arm that sees or reads for itself."""
    return model.logits(witness.whole())[0].float()


def _stock(
    model: FrozenModel, witness: Witness, chosen: Sequence[int]
) -> tuple[list[Tensor], list[LayerCache]]:
    """Logits of the stock model over the whole prompt, then behind each token but the last.

    And the cache that it made of the prompt.
    """
    stock = model.model
    inputs = {name: value.to(model.device) for name, value in witness.inputs.items()}
    for name, value in inputs.items():
        if value.is_floating_point():
            inputs[name] = value.to(model.decoder.dtype)
    # logits of every token of a prompt over a large vocabulary can take more room than the weights
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
