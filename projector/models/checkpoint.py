"""Checks a checkpoint's folder, then loads it with transformers.

Every refusal names the file, what is wrong with it and what to do. Order of the calls:
`check_files` (finds what would hang or mislead a library: pipes, folders, broken links, broken
JSON, missing weights), `read_config`, `read_processor` or `read_tokenizer`, `read_weights`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from projector.models.foreign import foreign, lacking, plain_file
from protos.errors import ModelError, UnsupportedModelError

DTYPES = ("float32", "bfloat16", "float16")
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
COPY = "copy the checkpoint again, or save it again with `save_pretrained`"
"""What to do about a damaged file."""

_JSON = (
    CONFIG,
    INDEX,
    "added_tokens.json",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
_TEXT = ("merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.", "spiece.model", "tekken.json")
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_COUNTS = re.compile(r"(^|_)(layers?|depth|blocks?)$")
_SETTINGS_OF_PICTURES = ("processor_config.json", "preprocessor_config.json")
_MOST_SIDE = 1 << 15
_MAY_BE_INFINITE = {CONFIG}  # some write "no limit" as Infinity
_MOST_BYTES = 1 << 28
_MOST_TEMPLATE_BYTES = 1 << 20
_FEWEST_LAYERS_REFUSED = 256
_MOST_PER_BYTE = 4  # parameters per byte of weights; packed in four bits it is two
_ROOM = 1 << 26  # numbers that are not in the weights, such as position tables


def check_files(folder: Path) -> None:
    """Refuse files that would hang or mislead a library, or whose fault we can name better.

    Raises:
        ModelError: not a folder; a file is a folder, a pipe or unreadable; a file is not JSON or
            holds NaN; the weights are missing, truncated or in another folder.
    """
    with foreign(folder, "give a checkpoint's folder"):
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder: give a checkpoint's folder")
        names = sorted(entry.name for entry in folder.iterdir())
    if CONFIG not in names:
        raise ModelError(f"{folder} holds no {CONFIG}: it is not a checkpoint folder")
    _check_each(folder, names)
    _check_weights(folder, names)


def _check_each(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if name in _JSON:
            read_json(folder / name)
        elif name in _TEXT:
            template = name.endswith(".jinja")
            plain_file(folder / name, COPY, most=_MOST_TEMPLATE_BYTES if template else _MOST_BYTES)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file.

    Raises:
        ModelError: it cannot be read, is too large, is not a JSON object, or holds NaN.
    """
    plain_file(file, COPY, most=_MOST_BYTES)

    def constant(name: str) -> float:
        if name == "NaN" or file.name not in _MAY_BE_INFINITE:
            raise ModelError(f"{file}: it holds {name}, which is no number; {COPY}")
        return float(name.replace("Infinity", "inf"))

    with foreign(file, COPY):
        plain = json.loads(file.read_bytes().decode("utf-8"), parse_constant=constant)
    if not isinstance(plain, dict):
        raise ModelError(f"{file}: it must hold a JSON object; {COPY}")
    return plain


def _check_weights(folder: Path, names: list[str]) -> None:
    """Check that each weights file is whole, and that the index names no other file."""
    held = [name for name in names if name.endswith(".safetensors")]
    if not held and INDEX not in names:
        raise ModelError(
            f"{folder} holds no .safetensors file: it is not a usable checkpoint (weights in "
            "another format, such as pytorch_model.bin, are not read: save them again with "
            "`save_pretrained`)"
        )
    for name in held:
        plain_file(folder / name, COPY)
        with foreign(folder / name, COPY), safe_open(str(folder / name), "np") as opened:
            opened.keys()
    if "model.safetensors" in held:
        return
    if INDEX not in names:
        raise ModelError(
            f"{folder} holds {held[0]}, but neither model.safetensors nor {INDEX}, which lists "
            f"the parts of the weights; {COPY}"
        )
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{folder / INDEX}: it lacks the field 'weight_map'; {COPY}")
    for name, place in places.items():
        if place not in held:
            raise ModelError(
                f"{folder / INDEX}: it puts the tensor {name} in the file {place!r}, which the "
                f"folder does not hold; {COPY}"
            )


def _tensors(folder: Path) -> int:
    """Number of tensors in the weights."""
    found = 0
    for file in sorted(folder.glob("*.safetensors")):
        with foreign(file, COPY), safe_open(str(file), "np") as opened:
            found += len(opened.keys())
    return found


# ------------------------------------------------------------------ the configuration


def read_config(folder: Path) -> Any:
    """Check a checkpoint's files and read its configuration.

    Raises:
        ModelError: as `check_files`; or the configuration is invalid or has impossible values.
        UnsupportedModelError: transformers does not know the model type.
    """
    check_files(folder)
    file = folder / CONFIG
    plain = read_json(file)
    kind = plain.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelError(f"{file}: it names no 'model_type'; {COPY}")
    if kind not in CONFIG_MAPPING:
        own = " (it brings code of its own, which is never run)" if "auto_map" in plain else ""
        raise UnsupportedModelError(
            f"{file}: transformers {transformers.__version__} knows no model type '{kind}'{own}; "
            "use a newer transformers, or another model"
        )
    _check_counts(plain, file, _tensors(folder))
    with foreign(file, COPY):
        return AutoConfig.from_pretrained(str(folder), **_LOCAL)


def sees_pictures(config: Any) -> bool:
    """Whether transformers has an image-text-to-text class for this configuration."""
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def reads_texts(config: Any) -> bool:
    """Whether transformers has a causal language-model class for this configuration."""
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _check_counts(plain: Any, file: Path, tensors: int) -> None:
    """Refuse more layers than the weights can hold: building them would never end."""
    most = max(tensors, _FEWEST_LAYERS_REFUSED)
    for name, value in _numbers(plain):
        if _COUNTS.search(name) and value > most:
            raise ModelError(
                f"{file}: it says {name} = {value}, but the weights hold {tensors} tensors; {COPY}"
            )


def _numbers(plain: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from _numbers(value, str(key))
    elif isinstance(plain, list):
        for value in plain:
            yield from _numbers(value, name)
    elif isinstance(plain, (int, float)) and not isinstance(plain, bool):
        yield name, plain


# ------------------------------------------------------------------ processor and tokenizer


def read_tokenizer(folder: Path) -> Any:
    """A checkpoint's tokenizer; its other files are not needed.

    Raises:
        ModelError: the tokenizer is missing or cannot be read.
    """
    _check_tokenizer_files(folder)
    with foreign(folder, COPY), _naming(folder, (_tokenizer_fault,)):
        return AutoTokenizer.from_pretrained(str(folder), **_LOCAL)


def read_processor(folder: Path) -> Any:
    """A checkpoint's processor: image processor, tokenizer and chat template.

    Raises:
        ModelError: one of them is missing or cannot be read.
    """
    _check_tokenizer_files(folder)
    if not settings_file(folder).is_file():
        raise ModelError(
            f"{folder} holds neither processor_config.json nor preprocessor_config.json: how "
            f"pictures are prepared is not known; {COPY}"
        )
    for name in _SETTINGS_OF_PICTURES:
        if (folder / name).is_file():
            _check_sizes(folder / name)
    _check_class(folder)
    with foreign(folder, COPY), _naming(folder, (_tokenizer_fault, _pictures_fault)):
        processor: Any = AutoProcessor  # its methods are untyped
        return processor.from_pretrained(str(folder), **_LOCAL)


def _check_class(folder: Path) -> None:
    """Refuse a processor class that this transformers lacks, or that needs a missing package."""
    for name in (*_SETTINGS_OF_PICTURES, "tokenizer_config.json"):
        file = folder / name
        named = read_json(file).get("processor_class") if file.is_file() else None
        if named is not None:
            break
    else:
        return
    cls = getattr(transformers, named, None) if isinstance(named, str) else None
    if cls is None:
        raise ModelError(
            f"{file}: transformers {transformers.__version__} has no processor class {named!r}; "
            "use a newer transformers, or another model"
        )
    takes_video = "video_processor" in inspect.signature(cls.__init__).parameters
    if takes_video and importlib.util.find_spec("torchvision") is None:
        raise ModelError(
            f"{file}: '{named}' also takes video, for which transformers needs the package "
            "torchvision: install the build of it that fits this torch"
        )


def _check_sizes(file: Path) -> None:
    """Refuse image sizes or token counts so large that one picture would fill the memory."""
    plain = read_json(file)
    images = plain.get("image_processor", plain)
    by_area = isinstance(images, dict) and "merge_size" in images  # its edges hold areas
    for name, value in _numbers(plain):
        area = "pixels" in name or (by_area and name.endswith("_edge"))
        if value > _MOST_SIDE and not area and not name.endswith(("_id", "_ids")):
            raise ModelError(
                f"{file}: it says {name} = {value:g}, at most {_MOST_SIDE} makes sense; {COPY}"
            )


def template_file(folder: Path) -> Path:
    """The file that holds a processor's chat template."""
    for name in ("chat_template.jinja", "chat_template.json", "processor_config.json"):
        file = folder / name
        if file.is_file() and (name.startswith("chat") or "chat_template" in read_json(file)):
            return file
    return folder / "tokenizer_config.json"


def _check_tokenizer_files(folder: Path) -> None:
    with foreign(folder, "give a folder with a tokenizer"):
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder: give one with a tokenizer")
        names = sorted(entry.name for entry in folder.iterdir())
    _check_each(folder, names)
    if not any(name.startswith(_TOKENIZERS) or name.endswith(".tiktoken") for name in names):
        raise ModelError(f"{folder} holds no tokenizer.json: it has no tokenizer; {COPY}")


@contextmanager
def _naming(folder: Path, faults: Sequence[Callable[[Path], None]]) -> Iterator[None]:
    """When a library fails on a folder, check its files one by one, so the error names the file."""
    try:
        yield
    except Exception as met:
        if lacking(met) is None:
            for fault in faults:
                fault(folder)
        raise


def _tokenizer_fault(folder: Path) -> None:
    file = folder / "tokenizer.json"
    if file.is_file():
        with foreign(file, COPY):
            Tokenizer.from_file(str(file))
            lacks = [name for name in ("model", "added_tokens") if name not in read_json(file)]
        if lacks:
            raise ModelError(f"{file}: it lacks the field '{lacks[0]}'; {COPY}")
    settings = folder / "tokenizer_config.json"
    with foreign(settings if settings.is_file() else folder, COPY):
        AutoTokenizer.from_pretrained(str(folder), **_LOCAL)


def _pictures_fault(folder: Path) -> None:
    parts: tuple[Any, ...] = (AutoImageProcessor, AutoProcessor)
    for auto in parts:
        with foreign(settings_file(folder), COPY):
            auto.from_pretrained(str(folder), **_LOCAL)


def settings_file(folder: Path) -> Path:
    """The file that holds a processor's image settings."""
    newer, older = (folder / name for name in _SETTINGS_OF_PICTURES)
    return older if older.is_file() else newer


# ------------------------------------------------------------------ the weights


def read_weights(folder: Path, auto: Any, dtype: str, device: str = "cpu") -> Any:
    """Load a checkpoint's model, all tensors, on its device, in evaluation mode.

    Args:
        folder: the checkpoint, already checked by `read_config`.
        auto: the transformers `Auto` class that builds it.
        dtype: one of `DTYPES`.
        device: a torch device.

    Raises:
        ModelError: unknown dtype; the weights do not fit the configuration or are incomplete; the
            device cannot be used.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}' is unknown; use float32, bfloat16 or float16")
    file = folder / CONFIG
    on = f"{folder} cannot be run on device '{device}'"
    with foreign(on, "give one that this torch build can use, such as cpu"):
        torch.zeros(1, device=device)
    with _silent():
        _check_size(folder, auto)
        with foreign(f"{file} and its weights", COPY):
            model, info = auto.from_pretrained(
                str(folder),
                **_LOCAL,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, held, said_so = mismatched[0]
        raise ModelError(
            f"{file} does not fit its weights: {len(mismatched)} tensors differ in shape, such as "
            f"{name}: the weights hold {list(held)}, the configuration says {list(said_so)}; {COPY}"
        )
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would leave it at random values
        raise ModelError(
            f"the weights of {folder} lack {len(missing)} tensors that {CONFIG} describes, such as "
            f"{missing[0]}; {COPY}"
        )
    _check_layers(file, model, info["unexpected_keys"])
    with foreign(on, "use another device, or a smaller model"):
        return model.to(device).eval()


@contextmanager
def first_runs(model: Any, folder: Path) -> Iterator[None]:
    """Wrap the first uses of a loaded model (its parts, prompt and cache) in typed errors.

    Raises:
        UnsupportedModelError: its class lacks a part that every decoder here needs.
        ModelError: it cannot be run on its device.
    """
    kind, device = model.config.model_type, model.device
    if device.type == "cpu":
        advice = "this class of models is not known to work: use another one"
        with foreign(f"{folder}: '{kind}'", advice, UnsupportedModelError, mixed=True):
            yield
    else:
        on = f"{folder} cannot be run on device '{device}'"
        with foreign(on, "try it on device cpu", mixed=True):
            yield


def _check_size(folder: Path, auto: Any) -> None:
    """Refuse a configuration with far more parameters than the weights hold.

    transformers allocates all of them before it compares shapes.
    """
    file = folder / CONFIG
    held = sum(part.stat().st_size for part in folder.glob("*.safetensors"))
    with foreign(file, COPY):
        config = AutoConfig.from_pretrained(str(folder), **_LOCAL)
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False)
        wanted = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    if wanted > _MOST_PER_BYTE * held + _ROOM:
        raise ModelError(
            f"{file}: it describes a model of {wanted} numbers, the weights have {held} bytes; "
            f"{COPY}"
        )


def _check_layers(file: Path, model: Any, unexpected: Iterable[str]) -> None:
    """Refuse weights with layers that the configuration omits: the model would be cut short."""
    lists = {
        tuple(name.split(".")[-2:]): len(module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    }
    for name in sorted(unexpected):
        parts = name.split(".")
        for at, part in enumerate(parts):
            held = lists.get(tuple(parts[max(0, at - 2) : at]))
            if held is not None and part.isdigit() and int(part) >= held:
                raise ModelError(
                    f"{file} does not fit its weights: it leaves out a layer that they hold "
                    f"({name}); {COPY}"
                )


@contextmanager
def _silent() -> Iterator[None]:
    """Silence reports on standard error; the exception says what matters."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
