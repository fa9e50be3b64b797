"""A model that differs from what is believed of it must be refused when it is loaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor

from projector.models import cache as kv
from projector.models import rope, self_check, self_check_record
from projector.models.frozen import FrozenModel
from projector.models.lm import LM
from projector.models.output import Output
from projector.models.prompt import Prompt
from projector.models.rope import rope_of
from projector.models.self_check_record import cache_folder
from projector.models.vlm import VLM
from projector.models.witness import TOLERANCES, Figures
from protos.errors import ModelError, SelfCheckError
from tests.fakes.tiny_models import (
    tiny_gemma3,
    tiny_gemma3_vlm,
    tiny_idefics3,
    tiny_internvl,
    tiny_llava,
    tiny_lm,
    tiny_ovis2,
    tiny_smolvlm,
)

LOAD = {
    "idefics3": (VLM, tiny_idefics3),
    "smolvlm": (VLM, tiny_smolvlm),
    "internvl": (VLM, tiny_internvl),
    "llava": (VLM, tiny_llava),
    "ovis2": (VLM, tiny_ovis2),
    "gemma3": (VLM, tiny_gemma3_vlm),
    "lm-llama": (LM, tiny_lm),
    "lm-gemma3": (LM, tiny_gemma3),
    "lm-granite": (LM, lambda d: tiny_lm(d, "granite", logits_scaling=8.0)),
    "lm-cohere": (LM, lambda d: tiny_lm(d, "cohere", logit_scale=0.25)),
    "lm-gemma2": (
        LM,
        lambda d: tiny_lm(d, "gemma2", final_logit_softcapping=3.0, sliding_window=512),
    ),
}
PICTURES = [name for name, (cls, _) in LOAD.items() if cls is VLM]
SCALED = ["lm-granite", "lm-cohere", "lm-gemma2"]


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone; returns where self-checks go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cache_folder()
    assert folder is not None and folder.is_relative_to(tmp_path)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            made[name] = LOAD[name][1](tmp_path_factory.mktemp(name))
        return made[name]

    return build


@pytest.fixture
def load(folders: Callable[[str], Path], fresh_cache: Path) -> Callable[..., FrozenModel]:
    def loaded(name: str, **how: Any) -> FrozenModel:
        return LOAD[name][0].load(folders(name), **how)

    return loaded


@pytest.mark.quick(4)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", LOAD)
def test_every_family_is_checked_when_loaded_and_answers_as_its_stock_forward(
    name: str, dtype: str, load: Callable[..., FrozenModel]
) -> None:
    found = load(name, dtype=dtype).checked
    assert found is not None and found.good and found.dtype == dtype
    if dtype == "float32":
        assert found.telling and found.greedy == found.tokens >= 16
        assert (
            max(found.variation, found.logit, found.cache, found.rotation) < 1e-4
        )  # far from the limits


def _causal_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token types dropped, as once: a picture's tokens do not see the later ones."""
    monkeypatch.setattr(Prompt, "_learn_marks", lambda self, blank, asked: None)


def _plain_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens around a picture read by their own embeddings, as once."""
    monkeypatch.setattr(VLM, "_learn_embeddings", lambda self: None)


def _raw_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits by the head alone, as once."""
    monkeypatch.setattr(Output, "_adds_nothing", lambda self: True)


def _wrong_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequencies of a slightly larger base."""
    right = rope_of

    def wrong(model: Any, kind: str | None = None) -> Any:
        spec = right(model, kind)
        pairs = len(spec.inv_freq)
        slower = tuple(f * 1.2 ** (-i / pairs) for i, f in enumerate(spec.inv_freq))
        return replace(spec, inv_freq=slower)

    monkeypatch.setattr(rope, "rope_of", wrong)


def _late_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys rotated back at the place after their own."""
    right = kv.from_states
    monkeypatch.setattr(kv, "from_states", lambda states, layout, at: right(states, layout, at + 1))


def _no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant prefix of zeros."""
    right = FrozenModel.constant_prefix
    monkeypatch.setattr(
        FrozenModel, "constant_prefix", lambda self: [(k * 0, v * 0) for k, v in right(self)]
    )


def _swapped_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of two neighbouring tokens exchanged in one layer."""
    right = kv.to_states

    def wrong(keys: Tensor, values: Tensor, *rest: Any) -> Any:
        values = values.clone()
        values[1, :, :, [0, 1]] = values[1, :, :, [1, 0]]
        return right(keys, values, *rest)

    monkeypatch.setattr(kv, "to_states", wrong)


BREAKS: list[tuple[Callable[[pytest.MonkeyPatch], None], list[str]]] = [
    (_causal_pictures, ["gemma3"]),
    (_plain_frame, ["ovis2"]),
    (_raw_head, SCALED),
    (_wrong_base, list(LOAD)),
    (_late_positions, list(LOAD)),
    (_no_prefix, [*PICTURES, "lm-gemma3", *SCALED]),  # Llama's tokenizer puts nothing before
    (_swapped_tokens, list(LOAD)),
]


@pytest.mark.quick(4)
@pytest.mark.parametrize(
    ("break_it", "name"), [(break_it, name) for break_it, names in BREAKS for name in names]
)
def test_a_model_that_is_read_wrongly_is_refused_with_its_figures(
    break_it: Callable[[pytest.MonkeyPatch], None],
    name: str,
    load: Callable[..., FrozenModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where an earlier check of the same files has passed: other code ran then."""
    load(name)
    break_it(monkeypatch)
    with pytest.raises(SelfCheckError, match=r"total variation.*greedy tokens are the same"):
        load(name)


@pytest.mark.slow
def test_a_library_that_computes_something_else_is_found_out(
    load: Callable[..., FrozenModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed under our feet after a check was kept, as by an upgrade of the same version."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3Model

    load("gemma3")
    right = Gemma3Model.forward

    def forward(self: Any, *args: Any, token_type_ids: Any = None, **kwargs: Any) -> Any:
        once = kwargs.get("input_ids") is not None and len(kwargs["input_ids"][0]) > 20
        types = token_type_ids if once and kwargs.get("pixel_values") is not None else None
        if types is not None:  # the last of the picture's tokens no longer one of them
            types = types * (types.cumsum(-1) < types.sum())
        return right(self, *args, token_type_ids=types, **kwargs)

    monkeypatch.setattr(Gemma3Model, "forward", forward)
    monkeypatch.setattr(VLM, "_see", _without_types(VLM._see))
    with pytest.raises(SelfCheckError):
        load("gemma3")


def _without_types(see: Any) -> Any:
    def seen(self: VLM, *args: Any, **kwargs: Any) -> Any:
        marks, self.prompt.marks = self.prompt.marks, {}
        try:
            return see(self, *args, **kwargs)
        finally:
            self.prompt.marks = marks

    return seen


def test_a_model_whose_answers_are_random_is_refused(
    load: Callable[..., FrozenModel], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Ovis2 may draw its visual words."""
    path = tiny_ovis2(tmp_path / "random")
    plain = json.loads((path / "config.json").read_text())
    plain["vision_config"]["tokenize_function"] = "gumbel_argmax"
    (path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(SelfCheckError):
        VLM.load(path)


def test_a_weight_that_is_not_a_number_is_refused(tmp_path: Path, fresh_cache: Path) -> None:
    lm = LM.load(tiny_lm(tmp_path))
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[5, 5] = float("nan")
    with pytest.raises(SelfCheckError, match="inf standard"):
        LM.of(lm.model, lm.tokenizer, lm.path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every model that is measured."""
    names: list[str] = []
    measure = self_check.measure

    def noting(model: FrozenModel, witnesses: Any) -> Figures:
        names.append(model.layout.model_id)
        return measure(model, witnesses)

    monkeypatch.setattr(self_check, "measure", noting)
    return names


@pytest.mark.slow
def test_a_second_start_uses_what_the_first_found(
    load: Callable[..., FrozenModel], fresh_cache: Path, counted: list[str]
) -> None:
    first, second = load("llava"), load("llava")
    assert len(counted) == 1 and second.checked == first.checked
    load("llava", dtype="bfloat16")
    assert len(counted) == 2 and len(list(fresh_cache.iterdir())) == 2


def test_another_version_of_a_library_is_checked_anew(
    load: Callable[..., FrozenModel], counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load("lm-llama")
    monkeypatch.setattr(self_check_record, "_version", lambda library: "99")
    load("lm-llama")
    assert len(counted) == 2


def test_a_model_given_in_memory_is_always_checked(
    load: Callable[..., FrozenModel], counted: list[str]
) -> None:
    lm = load("lm-llama")
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(2)  # no longer what the folder holds
    LM.of(lm.model, lm.tokenizer, lm.path)
    assert len(counted) == 2


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"dtype": "float32"}', "bad", "types", "deep"]
)
def test_a_damaged_file_of_what_was_found_costs_a_check_and_no_more(
    damage: str, load: Callable[..., FrozenModel], fresh_cache: Path, counted: list[str]
) -> None:
    load("lm-llama")
    [file] = fresh_cache.iterdir()
    whole = json.loads(file.read_text())
    if damage == "bad":
        damage = json.dumps({**whole, "variation": 0.9})
    elif damage == "types":
        damage = json.dumps({**whole, "greedy": "24", "variation": 0})
    elif damage == "deep":
        damage = "[" * 4000
    file.write_text(damage)
    load("lm-llama")
    assert len(counted) == 2 and json.loads(file.read_text()) == whole


def test_what_another_user_or_another_models_check_wrote_is_not_believed(
    load: Callable[..., FrozenModel],
    fresh_cache: Path,
    counted: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load("lm-llama")
    [file] = fresh_cache.iterdir()
    right = file.read_text()
    load("llava")
    [other] = set(fresh_cache.iterdir()) - {file}
    os.replace(other, file)  # good figures, of another model
    load("lm-llama")
    assert len(counted) == 3 and file.read_text() == right
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    load("lm-llama")
    assert len(counted) == 4


def test_a_check_asks_the_stock_model_for_the_last_tokens_logits_alone(
    load: Callable[..., FrozenModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a whole prompt take 4 bytes times tokens times vocabulary."""
    lm = load("lm-llama")
    sizes: list[int] = []

    def note(_module: Any, _given: Any, _named: Any, out: Any) -> None:
        sizes.append(out.logits.shape[1])

    hook = lm.model.register_forward_hook(note, with_kwargs=True)
    self_check.measure(lm, lm.witnesses())
    hook.remove()
    assert sizes and set(sizes) == {1}


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_wrong_cache_that_answers_hardly_show_is_refused(
    dtype: str,
    load: Callable[..., FrozenModel],
    fresh_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A deep decoder of small weights: its layers add little to what it reads."""
    path = tiny_lm(tmp_path, num_hidden_layers=12, initializer_range=0.02)
    right = LM.load(path, dtype=dtype).checked
    assert right is not None and right.cache < TOLERANCES[dtype].cache / 3
    _swapped_tokens(monkeypatch)
    with pytest.raises(SelfCheckError, match="a token's cache by") as refused:
        LM.load(path, dtype=dtype)
    if dtype == "float32":  # by its answers it would have passed
        figures = [float(f) for f in re.findall(r"by ([0-9.e+-]+)", str(refused.value))]
        assert figures[0] < TOLERANCES[dtype].variation


@pytest.mark.quick(1)
@pytest.mark.parametrize("obstacle", ["a file", "read-only", "no home", "relative", "null device"])
def test_a_start_does_not_need_a_folder_for_what_was_found(
    obstacle: str,
    folders: Callable[[str], Path],
    tmp_path: Path,
    counted: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(there))
    if obstacle == "a file":
        there.write_text("no folder")
    elif obstacle == "read-only":

        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("os.replace", refuse)
    elif obstacle == "null device":
        monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "" if obstacle == "no home" else "not/absolute")

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
    for _ in range(2):
        lm = LM.load(folders("lm-llama"))
        assert lm.checked is not None and lm.checked.good
    assert len(counted) == 2


def test_a_refusal_is_never_kept(
    load: Callable[..., FrozenModel], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _raw_head(monkeypatch)
    for _ in range(2):
        with pytest.raises(SelfCheckError):
            load("lm-granite")
    assert not fresh_cache.exists() or not list(fresh_cache.iterdir())


def test_a_stock_forward_that_cannot_run_is_a_model_error(
    load: Callable[..., FrozenModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load("lm-llama")

    right = lm.model.forward

    def broken(**given: Any) -> Any:
        if "input_ids" in given:
            raise TypeError("needs four more tensors")
        return right(**given)

    monkeypatch.setattr(lm.model, "forward", broken)
    with pytest.raises(ModelError, match="needs four more tensors"):
        LM.of(lm.model, lm.tokenizer, lm.path)


def test_a_command_line_says_once_that_a_model_was_checked(
    load: Callable[..., FrozenModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="projector.models.self_check")
    name = load("lm-llama").layout.model_id
    assert caplog.messages == [
        f"checked: {name} answers from its own cache as `transformers` does with the prompt"
    ]
    caplog.clear()
    load("lm-llama")
    assert not caplog.messages


def test_the_log_of_a_process_says_what_every_start_found(
    load: Callable[..., FrozenModel],
) -> None:
    for known in (False, True):
        with structlog.testing.capture_logs() as lines:
            load("lm-llama")
        [line] = [line for line in lines if line["event"] == "self_check_passed"]
        assert line["known"] is known and line["greedy"] == 24 and line["variation"] < 0.001
