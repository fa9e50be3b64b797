"""Whether a model answers from its rebuilt cache as `transformers` answers with the whole prompt.

Every model is checked when it is loaded, on a few inputs: the stock forward over all that the
processor makes, against the constant prefix, the cache that was extracted, un-rotated, rotated and
rebuilt, and the question. A model that differs from what its layout says would answer wrongly in
silence, so it is refused with its figures. What was found is kept, so that a second start is quick.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import signature, unwrap
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch
from torch import Tensor

from projector.models import attention, output
from projector.models import cache as kv
from projector.models.cache import LayerCache
from projector.models.foreign import in_words
from protos import layout, rotation, state
from protos.errors import ModelError, SelfCheckError
from protos.process.files import write_file

if TYPE_CHECKING:
    from projector.models.frozen import FrozenModel

GREEDY = 4
"""Tokens that each answer is followed for."""


@dataclass(frozen=True)
class Tolerance:
    """How far two computations of the same answer may be apart.

    Attributes:
        variation: total variation between two distributions over the vocabulary.
        logit: largest difference of a logit, in standard deviations of the logits.
        cache: largest difference of a token's keys or values in a layer, of a usual token's.
        rotation: largest difference of a layer's un-rotated keys that another position makes,
            relative.
    """

    variation: float
    logit: float
    cache: float
    rotation: float


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(variation=0.001, logit=0.005, cache=0.005, rotation=0.005),
    "float16": Tolerance(variation=0.02, logit=0.05, cache=0.1, rotation=0.02),
    "bfloat16": Tolerance(variation=0.15, logit=0.4, cache=0.3, rotation=0.1),
}
"""By the type that a model runs in. Products are summed in another order: that much is rounding."""

_LIBRARIES = ("transformers", "tokenizers", "torch", "torchvision", "numpy", "pillow")
_MASKED = -1e30  # a logit below it is of a token that the model rules out


@dataclass(frozen=True)
class Witness:
    """One input of a check.

    Attributes:
        name: for the message.
        about: name of the picture or text; witnesses of the same question tell them apart.
        inputs: what the stock forward is given, one row.
        layers: the rebuilt cache of the picture or text behind the constant prefix.
        question: ids that follow it.
        whole: last hidden state `[1, E]` of the model's other arm, which sees or reads it itself.
    """

    name: str
    about: str
    inputs: Mapping[str, Tensor]
    layers: Sequence[LayerCache]
    question: Sequence[int]
    whole: Callable[[], Tensor]


@dataclass(frozen=True)
class Figures:
    """What a check found, the worst over all witnesses.

    Attributes:
        dtype: the type that the model runs in.
        variation: total variation of a token's distribution, the first's or a later one's.
        logit: largest difference of a logit, in standard deviations of the logits.
        cache: largest difference of a token's keys or values in a layer, of a usual token's.
        rotation: largest difference of a layer's un-rotated keys that another position makes.
        greedy: greedy tokens that are the stock forward's too.
        tokens: of so many.
        apart: total variation that another picture or text makes; where it is 0, wrong caches
            could not have been told from right ones.
        worst: name of the witness that differs most.
    """

    dtype: str
    variation: float
    logit: float
    cache: float
    rotation: float
    greedy: int
    tokens: int
    apart: float
    worst: str

    @property
    def good(self) -> bool:
        """Whether they are within what rounding explains (NaN is not)."""
        allowed = TOLERANCES[self.dtype]
        return (
            self.variation <= allowed.variation
            and self.logit <= allowed.logit
            and self.cache <= allowed.cache
            and self.rotation <= allowed.rotation
        )

    @property
    def telling(self) -> bool:
        """Whether another picture's cache would have been told from the right one."""
        return self.apart > TOLERANCES[self.dtype].variation

    def __str__(self) -> str:
        allowed = TOLERANCES[self.dtype]
        return (
            f"distributions of the first tokens differ by {self.variation:.2g} (total variation; "
            f"rounding in {self.dtype} explains {allowed.variation:g}), logits by {self.logit:.2g} "
            f"standard deviations ({allowed.logit:g}), a token's cache by {self.cache:.2g} of a "
            f"usual one ({allowed.cache:g}), un-rotated keys by {self.rotation:.2g} of themselves "
            f"({allowed.rotation:g}), {self.greedy} of {self.tokens} greedy tokens are the same; "
            f"worst: {self.worst}"
        )


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
    file = _place(model) if kept else None
    found = _read(file, dtype)
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
    held = known or _write(file, found)
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
    from projector.models.frozen import Generation, padded

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


# -- what was found before -------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """Where what was found is kept: under XDG_CACHE_HOME, or `~/.cache`; None without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor a passwd entry
        return None
    return base / "neural-bridge" / "self-checks"


def _place(model: FrozenModel) -> Path | None:
    """The file for this model on this device with this code."""
    folder = cache_folder()
    if folder is None:
        return None
    device = model.device
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    about = [
        model.layout.fingerprint,
        [(name, _version(name)) for name in _LIBRARIES],
        platform.python_version(),
        (device.type, processor),
        model.decoder.config._attn_implementation,
        asdict(TOLERANCES[model.layout.cache_dtype]),
        _code(model),
    ]
    return folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _code(model: FrozenModel) -> str:
    """Digest of the code that a check runs: ours, and every forward of the model's modules.

    A version number does not change while somebody works on the code.
    """
    modules = {__name__, *(cls.__module__ for cls in type(model).__mro__[:-1])}
    modules |= {holder.__name__ for holder in (kv, layout, rotation, state, attention, output)}
    digest = hashlib.sha256()
    for module in sorted(modules & set(sys.modules)):
        for name, value in sorted(vars(sys.modules[module]).items()):
            if isinstance(value, type) and value.__module__ in modules:
                for inner, method in sorted(vars(value).items()):
                    _digest_code(f"{name}.{inner}", method, digest)
            elif getattr(value, "__module__", None) in modules:
                _digest_code(name, value, digest)
    classes = {type(module) for module in model.model.modules()}
    for cls in sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)):
        _digest_code(cls.__qualname__, cls.forward, digest)
    return digest.hexdigest()


def _digest_code(name: str, value: Any, digest: Any) -> None:
    value = getattr(value, "__func__", value)  # of a class method
    value = getattr(value, "fget", value)  # of a property
    code = value if isinstance(value, types.CodeType) else None
    if code is None and callable(value):
        code = getattr(unwrap(value), "__code__", None)
    if code is None:
        return
    digest.update(f"{name} {code.co_names}".encode() + code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _digest_code(name, constant, digest)
        else:
            whole = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            digest.update(repr(whole).encode())


def _read(file: Path | None, dtype: str) -> Figures | None:
    """What is kept there for just this check, if it is our own, whole and good."""
    try:
        if file is None or not file.is_file():  # reading a pipe would wait
            return None
        with file.open() as stream:
            if os.fstat(stream.fileno()).st_uid != os.geteuid():  # somebody else's word
                return None
            plain = json.loads(stream.read(_MOST_CHARACTERS))
        if plain.pop("key") != file.stem:  # a result of another model under this one's name
            return None
        found = Figures(**plain)
        whole = {n: type(v) for n, v in plain.items()} == {n: _TYPES[n] for n in _TYPES}
        return found if whole and found.dtype == dtype and found.good else None
    except _UNREADABLE:  # absent, damaged, or of another version
        return None


_MOST_CHARACTERS = 4096
_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError)


_TYPES = {
    **{"dtype": str, "worst": str, "greedy": int, "tokens": int},
    **dict.fromkeys(("variation", "logit", "cache", "rotation", "apart"), float),
}


def _write(file: Path | None, found: Figures) -> bool:
    """Keep it, whole or not at all; a disk that takes nothing costs the next start its time."""
    if file is None:
        return False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps({**asdict(found), "key": file.stem}).encode(), mode=0o600)
    except OSError:
        return False
    return True
