"""The model wrapper, against `transformers`' own one-shot generate and eager attention."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cloud_server.engine.batch import RunningBatch
from projector.models import attention as attention_module
from projector.models import cache as kv
from projector.models.rope import rope_of
from projector.models.supported import refuse_unsupported
from projector.models.vlm import VLM
from protos import rotation
from protos.errors import (
    ModelError,
    PictureError,
    QuestionError,
    QuestionTooLongError,
    SelfCheckError,
    UnsupportedModelError,
)
from protos.state import KVState
from tests.cloud_server.engine_bench import rows_of
from tests.fakes.tiny_models import picture, tiny_idefics3, tiny_llava

QUESTIONS = ("what is left of the car ?", "where ?", "how many red crate in the yard")
NEW_TOKENS = 8
GAP = 1e-3


def reference(vlm: VLM, image: Image.Image, question: str) -> tuple[list[int], list[float]]:
    """Answer tokens and top-two logit gaps of one-shot `generate` with the picture."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = vlm.processor(text=[prompt], images=[[image]], return_tensors="pt")
    out = vlm.model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=3,
    )
    tops = [logits[0].topk(2).values for logits in out.logits]
    ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, [float(top[0] - top[1]) for top in tops]


def assert_same(vlm: VLM, answer: list[int], truth: tuple[list[int], list[float]]) -> None:
    """Equal up to the first token that was a near tie."""
    for index, (token, gap) in enumerate(zip(*truth, strict=True)):
        if gap <= GAP or token in vlm.eos_ids:
            return
        assert answer[index] == token, (index, answer, truth)


@pytest.mark.quick(2)
def test_a_rebuilt_cache_continues_exactly_like_the_original_model(vlm: VLM) -> None:
    pictures = [picture(seed) for seed in range(3)]
    states = vlm.states(vlm.prefill(pictures))
    keys, values = kv.from_states(states, vlm.layout, vlm.positions)
    answers = vlm.answer(
        vlm.scene_cache(keys, values), [vlm.question_ids(q) for q in QUESTIONS], NEW_TOKENS
    )
    for image, question, answer in zip(pictures, QUESTIONS, answers, strict=True):
        assert_same(vlm, answer, reference(vlm, image, question))


@pytest.mark.quick(3)
def test_the_native_arm_answers_like_generate_in_a_batch_of_uneven_questions(vlm: VLM) -> None:
    pictures = [picture(seed) for seed in range(3)]
    ids = [vlm.question_ids(q) for q in QUESTIONS]
    answers = vlm.answer_pictures(pictures, ids, NEW_TOKENS)
    for image, question, answer in zip(pictures, QUESTIONS, answers, strict=True):
        assert_same(vlm, answer, reference(vlm, image, question))


def test_the_first_tokens_distribution_is_the_one_that_the_answer_starts_from(vlm: VLM) -> None:
    ids = [vlm.question_ids(question) for question in QUESTIONS]
    layers = vlm.prefill([picture(seed) for seed in range(len(ids))]).layers()
    chances = vlm.first_token(layers, ids)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-5)
    for answer, row in zip(vlm.answer(layers, ids, 1), chances, strict=True):
        assert [int(row.argmax())] == answer or int(row.argmax()) in vlm.eos_ids


def test_a_flat_state_survives_the_way_through_numpy(vlm: VLM) -> None:
    (state,) = vlm.states(vlm.prefill([picture(4)]))
    back = KVState.from_flat(state.flat(), vlm.layout, state.positions, state.attention)
    rotated = rotation.rotate(back.keys, vlm.layout.rotation, vlm.positions)
    prefilled = vlm.prefill([picture(4)])
    native = torch.stack(prefilled.keys)[:, 0, :, prefilled.prefix_tokens :].numpy()
    np.testing.assert_allclose(rotated, native, atol=2e-5)


def test_un_rotated_keys_are_what_the_key_projection_produced(vlm: VLM) -> None:
    """An independent witness: the output of `k_norm` where there is one, else of `k_proj`."""
    seen: list[torch.Tensor] = []
    hooks = [
        getattr(layer.self_attn, "k_norm", layer.self_attn.k_proj).register_forward_hook(
            lambda _m, _i, out: seen.append(out)
        )
        for layer in vlm.decoder.layers
    ]
    try:
        prefilled = vlm.prefill([picture(5)])
    finally:
        for hook in hooks:
            hook.remove()
    (state,) = vlm.states(prefilled)
    start, layout = prefilled.prefix_tokens, vlm.layout
    for index, projected in enumerate(seen):
        heads = projected[0]
        if heads.ndim == 2:
            heads = heads.view(-1, layout.kv_heads, layout.head_dim).transpose(0, 1)
        np.testing.assert_allclose(
            state.keys[index], heads[:, start : start + layout.tokens].numpy(), atol=2e-5
        )


def test_a_pictures_cache_does_not_depend_on_the_question(vlm: VLM) -> None:
    plain = vlm.prefill([picture(6)], attention=False)
    for question in QUESTIONS:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = vlm.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = vlm.processor(text=[prompt], images=[[picture(6)]], return_tensors="pt")
        with torch.inference_mode():
            cache = vlm.model(**inputs, use_cache=True).past_key_values
        for (key, value), mine, yours in zip(
            kv.read_cache(cache), plain.keys, plain.values, strict=True
        ):
            end = mine.shape[2]
            torch.testing.assert_close(key[:, :, :end], mine, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(value[:, :, :end], yours, atol=1e-5, rtol=1e-5)


def test_received_attention_is_what_eager_attention_gives(vlm: VLM) -> None:
    """Column sums of the full weights, self excluded, over the queries that see the token."""
    got = vlm.prefill([picture(7), picture(8)]).attention
    assert got is not None
    config = vlm.decoder.config
    before = config._attn_implementation
    cue = vlm.processor.tokenizer.convert_tokens_to_ids("assistant")
    ids = vlm.prefix_ids + [vlm.prompt.image_id] * vlm.image_tokens + vlm.prompt.cue
    assert cue in vlm.prompt.cue
    pixels = vlm.pixels.of_pictures([picture(7), picture(8)])
    image = (torch.tensor([ids, ids]) == vlm.prompt.image_id).long()
    marks = {"token_type_ids": image} if vlm.model.config.model_type == "gemma3" else {}
    try:
        config._attn_implementation = "eager"
        with torch.inference_mode():
            out = vlm.model(
                input_ids=torch.tensor([ids, ids]), output_attentions=True, **pixels, **marks
            ).attentions
    finally:
        config._attn_implementation = before
    mean = torch.stack(out).double().mean(dim=(0, 2)).numpy()  # layers and heads
    start, tokens = len(vlm.prefix_ids), vlm.image_tokens
    both_ways = range(start, start + tokens) if marks else range(0)
    for row in range(2):
        share = np.empty(tokens)
        for t, place in enumerate(range(start, start + tokens)):
            queries = {*range(place + 1, len(ids)), *both_ways} - {place}
            share[t] = sum(mean[row, q, place] for q in queries) / len(queries)
        np.testing.assert_allclose(got[row].numpy(), share / share.sum(), rtol=1e-4)


@pytest.mark.slow
def test_attention_is_measured_for_a_decoder_that_only_runs_eagerly(tmp_path: Path) -> None:
    path = tiny_llava(tmp_path)
    usual = VLM.load(path)
    config = usual.decoder.config
    config._attn_implementation = "eager"
    eager = VLM.of(usual.model, usual.processor, path)
    assert not eager._measures_fused
    got = eager.prefill([picture(1)]).attention
    config._attn_implementation = "neural_bridge"
    want = usual.prefill([picture(1)]).attention
    assert got is not None and want is not None
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_attention_is_measured_without_more_logits_than_allowed(
    vlms: dict[str, VLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = vlms["llava-qwen2"]
    want = vlm.prefill([picture(1), picture(2)]).attention
    largest = 0
    softmax = torch.Tensor.softmax

    def seen(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, self.numel())
        return softmax(self, *args, **kwargs)

    monkeypatch.setattr(attention_module, "_MOST_LOGITS", 1000)
    monkeypatch.setattr(torch.Tensor, "softmax", seen)
    got = vlm.prefill([picture(1), picture(2)]).attention
    assert got is not None and want is not None and 0 < largest <= 1000
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_attention_is_measured_under_any_fused_implementation(tmp_path: Path) -> None:
    """One that is no SDPA and returns no weights, as FlashAttention."""
    calls = 0

    def fused(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("made_up_fused", fused)
    AttentionMaskInterface.register("made_up_fused", sdpa_mask)
    path = tiny_llava(tmp_path)
    usual = VLM.load(path)
    want = usual.prefill([picture(1)]).attention
    usual.decoder.config._attn_implementation = "made_up_fused"
    vlm = VLM.of(usual.model, usual.processor, path)
    calls = 0
    got = vlm.prefill([picture(1)]).attention
    assert vlm._measures_fused and calls == vlm.layout.layers
    assert got is not None and want is not None
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_capped_logits_are_measured_as_the_eager_decoder_computes_them() -> None:
    generator = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(1, 4, 7, 8, generator=generator)
    key = torch.randn(1, 2, 7, 8, generator=generator)
    received = attention_module.Received(start=2, tokens=3)
    received.take(query, key, 0.5, 2.0)
    logits = 2 * torch.tanh(query @ key.repeat_interleave(2, dim=1).mT * 0.5 / 2)
    weights = logits.masked_fill(torch.ones(7, 7).triu(1) > 0, -torch.inf).softmax(-1).mean(1)[0]
    share = torch.stack([weights[t + 1 :, t].mean() for t in (2, 3, 4)])
    torch.testing.assert_close(received.shares()[0], share / share.sum())


@pytest.mark.quick(3)
def test_a_running_batch_that_rows_join_and_leave_answers_like_generate(vlm: VLM) -> None:
    """The engine's masks: a group of uneven questions, one that leaves, one that joins later."""
    pictures = [picture(seed) for seed in range(3)]
    layers = vlm.prefill(pictures, attention=False).layers()
    contexts = rows_of(layers)
    limits = (NEW_TOKENS, 2, NEW_TOKENS)
    batch: RunningBatch[int] = RunningBatch(vlm)
    rows = batch.join(
        contexts[:2], [vlm.question_ids(q) for q in QUESTIONS[:2]], [0, 1], limits[:2]
    )
    batch.leave()
    batch.step()
    rows += batch.join(contexts[2:], [vlm.question_ids(QUESTIONS[2])], [2], limits[2:])
    while batch.rows:
        batch.leave()
        if batch.rows:
            batch.step()
    for row, limit in zip(rows, limits, strict=True):
        ids, gaps = reference(vlm, pictures[row.owner], QUESTIONS[row.owner])
        assert_same(vlm, row.tokens, (ids[:limit], gaps[:limit]))


def test_answering_does_not_write_to_the_scene_it_is_given(vlm: VLM) -> None:
    layers = vlm.prefill([picture(0)]).layers()
    before = [(key.clone(), value.clone()) for key, value in layers]
    question = [vlm.question_ids(QUESTIONS[0])]
    first = vlm.answer(layers, question, NEW_TOKENS)
    assert vlm.answer(layers, question, NEW_TOKENS) == first
    for (key, value), (old_key, old_value) in zip(layers, before, strict=True):
        assert torch.equal(key, old_key) and torch.equal(value, old_value)


def test_tokens_are_reported_as_they_come_and_the_limit_holds(vlm: VLM) -> None:
    layers = vlm.prefill([picture(0), picture(1)]).layers()
    ids = [vlm.question_ids(q) for q in QUESTIONS[:2]]
    seen: list[tuple[int, int, int]] = []
    answers = vlm.answer(layers, ids, 3, on_token=lambda *event: seen.append(event))
    assert all(len(answer) <= 3 for answer in answers)
    for row, answer in enumerate(answers):
        assert [(row, i, token) for i, token in enumerate(answer)] == [
            event for event in seen if event[0] == row
        ]


def test_the_end_token_ends_an_answer_and_is_not_part_of_it(vlm: VLM) -> None:
    layers = vlm.prefill([picture(0)]).layers()
    question = [vlm.question_ids(QUESTIONS[0])]
    (whole,) = vlm.answer(layers, question, 4)
    usual = vlm.eos_ids
    try:
        vlm.eos_ids = frozenset({whole[2]})
        (short,) = vlm.answer(layers, question, 4)
    finally:
        vlm.eos_ids = usual
    assert short == whole[: whole.index(whole[2])]


def test_another_scene_gives_another_cache(vlm: VLM) -> None:
    first, second = vlm.states(vlm.prefill([picture(0), picture(1)]))
    assert np.abs(first.flat() - second.flat()).max() > 0.1


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_blank_question_is_refused(vlm: VLM, text: str) -> None:
    with pytest.raises(QuestionError, match="empty"):
        vlm.question_ids(text)


@pytest.mark.parametrize("text", ["{image} what ?", "where <eos>"])
def test_a_question_cannot_smuggle_in_reserved_tokens(vlm: VLM, text: str) -> None:
    for image in (vlm.processor.image_token, vlm.prompt.image_text):
        with pytest.raises(QuestionError, match="reserved"):
            vlm.question_ids(text.format(image=image))


@pytest.mark.parametrize("text", ["what " * 300, "a" * 100_000])
def test_a_question_that_is_too_long_is_refused(vlm: VLM, text: str) -> None:
    with pytest.raises(QuestionTooLongError):
        vlm.question_ids(text)


def test_an_empty_list_and_a_non_picture_are_refused(vlm: VLM) -> None:
    with pytest.raises(PictureError):
        vlm.prefill([])
    with pytest.raises(PictureError):
        vlm.prefill([None])  # type: ignore[list-item]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_picture_mode_and_shape_is_taken(vlm: VLM, mode: str) -> None:
    odd = picture(2, 50).resize((90, 31)).convert(mode)
    assert vlm.prefill([odd, picture(3)]).keys[0].shape[0] == 2


def test_a_folder_that_is_no_checkpoint_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config.json"):
        VLM.load(tmp_path)


@pytest.mark.parametrize("break_it", ["config", "processor", "weights", "a tensor", "template"])
def test_a_broken_checkpoint_is_a_model_error(tmp_path: Path, break_it: str) -> None:
    path = tiny_llava(tmp_path)
    if break_it == "config":
        (path / "config.json").write_text("{not json")
    elif break_it == "processor":
        (path / "tokenizer.json").unlink()
    elif break_it == "weights":
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif break_it == "a tensor":  # transformers would fill it in at random
        tensors = load_file(path / "model.safetensors")
        del tensors[next(name for name in tensors if name.endswith("lm_head.weight"))]
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    else:
        (path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError):
        VLM.load(path)


def test_a_processor_that_splits_pictures_is_refused(tmp_path: Path) -> None:
    path = tiny_idefics3(tmp_path)
    change_processor(path, do_image_splitting=True, size={"longest_edge": 128})
    with pytest.raises(UnsupportedModelError, match="splitting"):
        VLM.load(path)


def test_a_processor_that_does_not_fit_its_model_is_refused_when_loading(tmp_path: Path) -> None:
    path = tiny_idefics3(tmp_path)
    change_processor(path, max_image_size={"longest_edge": 128}, size={"longest_edge": 128})
    with pytest.raises(ModelError, match="its own processor"):
        VLM.load(path)


def change_processor(path: Path, **settings: Any) -> None:
    (file,) = [f for f in path.glob("*processor_config.json") if "splitting" in f.read_text()]
    plain = json.loads(file.read_text())
    plain.get("image_processor", plain).update(settings)
    file.write_text(json.dumps(plain))


def test_the_fingerprint_follows_the_weights_and_not_the_folder(tmp_path: Path) -> None:
    first = VLM.load(tiny_llava(tmp_path / "a")).layout
    same = VLM.load(tiny_llava(tmp_path / "b")).layout
    other = VLM.load(tiny_llava(tmp_path / "c", seed=9)).layout
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_half_precision_is_another_layout_and_still_answers(tmp_path: Path) -> None:
    path = tiny_llava(tmp_path)
    vlm = VLM.load(path, dtype="bfloat16")
    assert vlm.layout.cache_dtype == "bfloat16"
    assert vlm.layout.fingerprint != VLM.load(path).layout.fingerprint
    prefilled = vlm.prefill([picture(0)])
    keys, values = kv.from_states(vlm.states(prefilled), vlm.layout, vlm.positions)
    scene = vlm.scene_cache(keys, values)
    assert scene[0][0].dtype == torch.bfloat16
    native = torch.stack([k[:, :, prefilled.prefix_tokens :] for k in prefilled.keys]).float()
    assert (native - keys).abs().max() < 0.02 * native.abs().max()
    assert len(vlm.answer(scene, [vlm.question_ids("where ?")], 4)) == 1


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
         "original_max_position_embeddings": 64},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_scaled_rope_is_undone_with_the_models_own_frequencies(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    vlm = VLM.load(tiny_llava(tmp_path, rope_parameters=rope))
    assert vlm.layout.rope.scaling == rope["rope_type"]
    test_un_rotated_keys_are_what_the_key_projection_produced(vlm)
    test_a_rebuilt_cache_continues_exactly_like_the_original_model(vlm)


def _config(kind: str, text: dict[str, Any] | None = None, **over: Any) -> Any:
    """A stand-in configuration: only what `refuse_unsupported` looks at."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    inner = SimpleNamespace(**{"max_position_embeddings": 512, **sizes, **(text or {})})
    return SimpleNamespace(model_type=kind, get_text_config=lambda decoder: inner, **over)


MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (_config("made-up", {"rope_parameters": {"mrope_section": [1, 2, 3]}}), "multimodal RoPE"),
        (_config("paligemma"), "bidirectional"),
        (_config("made-up", {"use_bidirectional_attention": True}), "bidirectional"),
        (_config("made-up", is_encoder_decoder=True), "encoder-decoder"),
        (_config("made-up", {"cross_attention_layers": [3]}), "cross-attention"),
        (_config("made-up", {"kv_lora_rank": 64}), "MLA"),
        (_config("made-up", {"layer_types": ["linear_attention"]}), "linear attention"),
        (
            _config("made-up", {"layer_types": ["sliding_attention"], "sliding_window": 64}),
            "sliding windows",
        ),
        (_config("made-up", {"sliding_window": 64}), "sliding windows"),
        (_config("made-up", {"no_rope_layers": [1, 0]}), "without RoPE"),
        (_config("llava", {"model_type": "cohere2", **MIXED}), "without RoPE.*full_attention"),
        (_config("llava", {"model_type": "exaone4", **MIXED}), "without RoPE.*full_attention"),
        (_config("made-up", {"num_kv_shared_layers": 2}), "share"),
        (_config("made-up", {"rope_parameters": {"rope_type": "dynamic"}}), "dynamic"),
        (_config("made-up", {"num_attention_heads": None}), "without attention heads"),
        (_config("made-up", {"layer_types": ["made_up_attention"]}), "layers of type made_up"),
        (_config("made-up", {"layer_types": ["chunked_attention"]}), "in chunks"),
    ],
)
def test_what_a_layout_cannot_say_is_refused_by_name(config: Any, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        refuse_unsupported(config)


@pytest.mark.parametrize(
    "text",
    [
        {"sliding_window": None},
        {"sliding_window": 64, "use_sliding_window": False},
        {"sliding_window": 4096},
        {"layer_types": ["full_attention"] * 2, "sliding_window": 64},
        MIXED,
    ],
)
def test_a_window_that_is_off_or_never_reached_is_not_refused(text: dict[str, Any]) -> None:
    refuse_unsupported(_config("made-up", text))


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "cohere2", "layer_types": ["sliding_attention"] * 2, "sliding_window": 512},
        {"model_type": "exaone4", "layer_types": ["full_attention"] * 2, "sliding_window": None},
    ],
)
def test_a_family_with_bare_layers_is_taken_where_all_its_layers_rotate(
    text: dict[str, Any],
) -> None:
    refuse_unsupported(_config("llava", text))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("paligemma", "bidirectional"),
        ("qwen2_vl", "multimodal RoPE"),
        ("qwen2_5_vl", "multimodal RoPE"),
        ("qwen3_vl", "multimodal RoPE"),
        ("gemma3", "sliding windows"),
        ("kimi_vl", "MLA"),
        ("qwen3_5", "multimodal RoPE|linear attention"),
        ("mllama", "cross-attention"),
        ("florence2", "encoder-decoder"),
    ],
)
def test_real_families_are_refused_by_name_from_their_default_config(kind: str, named: str) -> None:
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    with pytest.raises(UnsupportedModelError, match=named):
        refuse_unsupported(CONFIG_MAPPING[kind]())


@pytest.mark.parametrize("family", ["glm", "cohere", "phi", "deepseek_v2"])
def test_rope_is_measured_not_assumed(family: str) -> None:
    """GLM and Cohere pair neighbours, Phi turns part of a head; unknown rotations are refused."""
    from transformers import CONFIG_MAPPING, AutoModel

    partial = {"partial_rotary_factor": 0.5} if family == "phi" else {}
    config = CONFIG_MAPPING[family](
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, **partial,
    )  # fmt: skip
    if family == "glm":
        config.head_dim = 32
    decoder = AutoModel.from_config(config)
    model = SimpleNamespace(get_decoder=lambda: decoder, config=config)
    config.get_text_config = lambda decoder: config
    if family == "deepseek_v2":
        with pytest.raises(UnsupportedModelError):
            rope_of(model)
        return
    spec = rope_of(model)
    assert spec.interleaved == (family in ("glm", "cohere"))
    assert spec.rotary_dim == {"glm": 16, "cohere": 32, "phi": 16}[family]


ROOMY: dict[str, Any] = {"sliding_window": 512}  # no window is reached
NARROW: dict[str, Any] = {"head_dim": 16}
WHOLE: dict[str, Any] = {"num_key_value_heads": 4}  # families without grouped queries
FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "cohere": {},
    "cohere2": ROOMY,  # three sliding layers: the fourth would be one without RoPE
    "diffllama": {},  # eager
    "ernie4_5": {},
    "falcon": WHOLE | {"multi_query": False},  # calls SDPA by itself
    "gemma": NARROW,
    "glm": NARROW,
    "glm4": NARROW,
    "gpt_neox": WHOLE,
    "gpt_oss": ROOMY,  # eager: attention sinks
    "granite": {},
    "helium": NARROW,
    "mistral": ROOMY,
    "mixtral": ROOMY,
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "phi": {},
    "phi3": ROOMY,
    "qwen3": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": ROOMY,
    "vaultgemma": ROOMY | NARROW,  # eager: capped logits
}


@pytest.mark.quick(4)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_rope_decoders_of_transformers_are_taken_and_continue_exactly(
    family: str, tmp_path: Path
) -> None:
    from transformers import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    vlm = VLM.load(tiny_llava(tmp_path, text=family, **FAMILIES[family]))
    assert (
        vlm.layout.layers == 3
        and vlm.layout.state_dim == vlm.states(vlm.prefill([picture(0)]))[0].flat().shape[-1]
    )
    test_a_rebuilt_cache_continues_exactly_like_the_original_model(vlm)
    test_received_attention_is_what_eager_attention_gives(vlm)


def test_keys_that_are_normalised_after_their_rotation_are_refused(tmp_path: Path) -> None:
    """HunYuan does that: such keys cannot be moved to other positions, and no config tells it."""
    path = tiny_llava(tmp_path, text="hunyuan_v1_dense", **NARROW)
    with pytest.raises(SelfCheckError, match="un-rotated keys by"):
        VLM.load(path)


@pytest.mark.parametrize(
    ("family", "over"),
    [
        ("cohere2", ROOMY | {"num_hidden_layers": 4}),
        ("smollm3", {"num_hidden_layers": 4}),
        ("falcon", WHOLE | {"multi_query": False, "alibi": True}),
    ],
)
def test_a_layer_without_rope_is_found_by_its_keys_even_if_its_config_says_nothing(
    family: str, over: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.models.vlm.refuse_unsupported", lambda config: None)
    path = tiny_llava(tmp_path, text=family, **over)
    with pytest.raises(UnsupportedModelError, match="layer . of .* does not rotate its keys"):
        VLM.load(path)
