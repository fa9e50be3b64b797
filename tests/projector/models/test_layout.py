"""What changes a cache or the prompt before it changes the fingerprint; old bundles still fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projector.bundle.load import Bundle
from projector.bundle.write import write_bundle
from projector.models import template
from projector.models.digests import settings_digest
from projector.models.frozen import FrozenModel
from projector.models.lm import LM
from projector.models.vlm import VLM
from protos.errors import BridgeError, BundleLayoutError, ModelError
from protos.layout import KVLayout
from tests.fakes.tiny_models import (
    LLAVA_TEMPLATE,
    picture,
    tiny_gemma3,
    tiny_gemma3_vlm,
    tiny_idefics3,
    tiny_llava,
)

ROOT = Path(__file__).resolve().parents[3]
MODELS = {
    "llava": (VLM, tiny_llava),
    "idefics3": (VLM, tiny_idefics3),
    "gemma3": (VLM, tiny_gemma3_vlm),
    "lm-gemma3": (LM, tiny_gemma3),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {n: build(tmp_path_factory.mktemp(n)) for n, (_, build) in MODELS.items()}


def leaves(plain: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in some JSON."""
    inner = (
        plain.items()
        if isinstance(plain, dict)
        else enumerate(plain)
        if type(plain) is list
        else ()
    )
    found = False
    for key, value in inner:
        found = True
        yield from leaves(value, (*at, key))
    if not found and at:
        yield at


def changed(plain: Any, at: tuple[Any, ...]) -> Any:
    """The same JSON with another value at a place."""
    made = json.loads(json.dumps(plain))
    inner = made
    for key in at[:-1]:
        inner = inner[key]
    old = inner[at[-1]]
    if isinstance(old, bool) or old is None:
        inner[at[-1]] = not old
    elif isinstance(old, int | float):
        inner[at[-1]] = old + 1
    elif isinstance(old, str):
        inner[at[-1]] = old + "x"
    else:
        inner[at[-1]] = ["x"]
    return made


@pytest.mark.parametrize("name", MODELS)
def test_every_value_of_every_file_that_a_cache_may_depend_on_is_in_the_fingerprint(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each field of each configuration, of the tokenizer and of the processor; the template."""
    whole = shutil.copytree(folders[name], tmp_path / name)
    before = settings_digest(whole, [])
    seen = {before}
    files = [f for f in sorted(whole.iterdir()) if f.suffix in (".json", ".jinja")]
    for file in files:
        text = file.read_text()
        if file.suffix == ".json":
            plain = json.loads(text)
            variants = [json.dumps(changed(plain, at)) for at in leaves(plain)]
        else:
            variants = [text + "x", text.replace("assistant", "model")]
        for variant in variants[:400]:  # a tokenizer's words are many
            file.write_text(variant)
            seen.add(settings_digest(whole, []))
        file.write_text(text)
        own = len(variants[:400])
        if file.name == "generation_config.json":  # how answers are sampled
            assert settings_digest(whole, []) == before and len(seen) == 1
        else:
            assert len(seen) == 1 + own, file.name
        seen = {before}
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= {f.name for f in files}
    assert settings_digest(whole, [1]) != before  # the prompt's ids


def behaviour(model: FrozenModel) -> list[np.ndarray]:
    """The constant prefix and the cache of one input."""
    parts = [part.numpy() for layer in model.constant_prefix() for part in layer]
    if isinstance(model, VLM):
        return [*parts, model.states(model.prefill([picture(3)]))[0].flat()]
    assert isinstance(model, LM)
    return [*parts, model.states([[5, 6, 7, 8, 9]])[0].flat()]


def edit(file: str, at: tuple[Any, ...], value: Any) -> tuple[str, Callable[[Path], None]]:
    def apply(folder: Path) -> None:
        path = folder / file
        plain = json.loads(path.read_text())
        inner = plain
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = value
        path.write_text(json.dumps(plain))

    return f"{file}:{'.'.join(map(str, at))}", apply


def _template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("user:", "user: show"))


BLIND_ONCE = [
    edit("config.json", ("text_config", "hidden_act"), "gelu"),
    edit("config.json", ("text_config", "rms_norm_eps"), 0.5),
    edit("config.json", ("text_config", "attention_bias"), False),
    edit("config.json", ("vision_config", "hidden_act"), "relu"),
    edit("config.json", ("vision_config", "layer_norm_eps"), 0.5),
    edit("config.json", ("vision_feature_layer",), 0),
    edit("config.json", ("projector_hidden_act",), "relu"),
    edit("config.json", ("text_config", "rope_parameters", "rope_theta"), 500.0),
    edit("processor_config.json", ("image_processor", "image_mean"), [0.1, 0.2, 0.3]),
    edit("processor_config.json", ("image_processor", "do_normalize"), False),
    edit("processor_config.json", ("image_processor", "resample"), 0),
    ("chat_template.jinja", _template),
    edit("generation_config.json", ("temperature",), 0.5),
    edit("tokenizer_config.json", ("model_max_length",), 77),
]


@pytest.mark.quick(3)
@pytest.mark.parametrize(("about", "apply"), BLIND_ONCE, ids=[about for about, _ in BLIND_ONCE])
def test_a_change_changes_the_fingerprint_or_neither_cache_nor_prefix(
    about: str, apply: Callable[[Path], None], folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each change for itself, with the same weights, on the loaded model."""
    usual = VLM.load(folders["llava"])
    folder = shutil.copytree(folders["llava"], tmp_path / "changed")
    apply(folder)
    try:
        other = VLM.load(folder)
    except BridgeError:
        return  # refused is no wrong answer
    same = usual.prefix_ids == other.prefix_ids and all(
        a.shape == b.shape and np.array_equal(a, b)
        for a, b in zip(behaviour(usual), behaviour(other), strict=True)
    )
    assert same or usual.layout.fingerprint != other.layout.fingerprint
    if about.startswith("config.json:text_config.hidden_act"):  # the test can fail
        assert not same and usual.layout.fingerprints[-1] == other.layout.fingerprints[-1]


def test_copying_a_checkpoint_or_adding_notes_to_it_keeps_its_fingerprint(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["llava"], tmp_path / "copy")
    (folder / "README.md").write_text("notes")
    assert VLM.load(folder).layout == VLM.load(folders["llava"]).layout


DATED = {
    "written": "{{ strftime_now('%d %b %Y') }}",
    "by default": (
        "{% if not today is defined %}{% set today = strftime_now('%Y') %}{% endif %}{{ today }}"
    ),
    "morning": "{% if strftime_now('%H') | int < 12 %}morning{% endif %}",
    "sunday": "{% if strftime_now('%a') == 'Sun' %}rest{% endif %}",
    "microseconds": "{{ strftime_now('%f') }}",
    "behind JSON": "{{ ['é'] | tojson(ensure_ascii=False) }}{{ strftime_now('%d') }}",
    "refused in one year": (
        "{% if strftime_now('%Y') == '2023' %}{{ raise_exception('too early') }}{% endif %}"
        "{{ strftime_now('%Y') }}"
    ),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("how", DATED)
def test_a_template_that_depends_on_the_clock_is_refused_with_what_to_do(
    how: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["llava"], tmp_path / "dated")
    (folder / "chat_template.jinja").write_text(
        LLAVA_TEMPLATE.replace("user:", f"user: {DATED[how]}", 1)
    )
    with pytest.raises(ModelError, match=r"chat_template\.jinja.*strftime_now.*fixed"):
        VLM.load(folder)


def test_a_template_that_draws_at_random_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["llava"], tmp_path / "drawn")
    drawn = "user: {{ ['one', 'two'] | random }}"
    (folder / "chat_template.jinja").write_text(LLAVA_TEMPLATE.replace("user:", drawn, 1))
    with pytest.raises(ModelError, match="at random"):
        VLM.load(folder)


def test_a_template_that_looks_at_the_clock_and_writes_nothing_of_it_is_taken(
    tmp_path: Path,
) -> None:
    quiet = LLAVA_TEMPLATE + "{% set today = strftime_now('%Y') %}"
    template.rehearse(quiet, tmp_path / "chat_template.jinja", {})


# -- versions --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(folders: dict[str, Path]) -> KVLayout:
    return VLM.load(folders["llava"]).layout


def test_a_live_layout_is_of_version_two_and_survives_json(live: KVLayout) -> None:
    new, old = live.versions
    assert new == live and len(live.settings_digest) == 64
    assert old.settings_digest == "" and "settings_digest" not in old.to_json()
    assert KVLayout.from_json(live.to_json()) == live and KVLayout.from_json(old.to_json()) == old
    assert old.versions == (old,) and live.fingerprints == (live.fingerprint, old.fingerprint)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["edge-a", "edge-b", "edge-c"])
def test_reference_bundles_of_version_one_still_fit_their_live_models(name: str) -> None:
    source = VLM.load(ROOT / "reference" / "models" / name).layout
    target = VLM.load(ROOT / "reference" / "models" / "cloud").layout
    bundle = Bundle.load(ROOT / "reference" / "bundles" / f"{name}-cloud", source, target)
    assert bundle.info.source == source.versions[-1] != source
    assert bundle.info.target == target.versions[-1] != target


def test_a_bundle_of_version_two_is_for_models_of_the_same_settings_alone(
    bundle_parts: dict[str, Any], tmp_path: Path
) -> None:
    source, target = bundle_parts["source"], bundle_parts["target"]
    assert source.settings_digest and target.settings_digest
    write_bundle(tmp_path, **bundle_parts)
    Bundle.load(tmp_path, source, target)
    for side in ("source", "target"):
        layouts = {"source": source, "target": target}
        layouts[side] = replace(layouts[side], settings_digest="f" * 64)
        with pytest.raises(BundleLayoutError, match="differ in settings_digest"):
            Bundle.load(tmp_path, **layouts)
        layouts[side] = replace(layouts[side], settings_digest="")  # an agent of before
        with pytest.raises(BundleLayoutError):
            Bundle.load(tmp_path, **layouts)


def test_two_dtypes_of_one_model_share_their_settings(folders: dict[str, Path]) -> None:
    half = VLM.load(folders["llava"], dtype="bfloat16").layout
    full = VLM.load(folders["llava"]).layout
    assert half.settings_digest == full.settings_digest and half.fingerprint != full.fingerprint
