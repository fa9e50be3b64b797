"""The text-only wrapper, against `transformers`' own one-shot generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, Split
from transformers import PreTrainedTokenizerFast

from projector.models import cache as kv
from projector.models.lm import LM
from projector.models.tokens import Reader, Tokens, align, fresh
from protos import rotation
from protos.errors import (
    ContextError,
    ModelError,
    QuestionError,
    QuestionTooLongError,
    UnsupportedModelError,
)
from protos.layout import KVLayout
from protos.state import KVState
from tests.fakes.tiny_models import tiny_gemma3, tiny_llava, tiny_lm

TEXTS = ("the red car is left of a blue truck .", "one dog", "a tree below the scene : yes .")
QUESTIONS = ("what is left of the truck ?", "how many dog ?", "where is it ?")
NEW_TOKENS = 8
GAP = 1e-3


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LM]:
    folder = tmp_path_factory.mktemp("lms")
    return {"llama": LM.load(tiny_lm(folder)), "gemma3": LM.load(tiny_gemma3(folder))}


@pytest.fixture(params=["llama", "gemma3"])
def lm(request: pytest.FixtureRequest, lms: dict[str, LM]) -> LM:
    return lms[request.param]


def assert_like_generate(lm: LM, ids: list[int], answer: list[int]) -> None:
    """Equal to one-shot `generate` over all ids, up to the first token that was a near tie."""
    out = lm.model.generate(
        torch.tensor([ids]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=3,
    )
    for index, token in enumerate(out.sequences[0, len(ids) :].tolist()):
        top = out.logits[index][0].topk(2).values
        if float(top[0] - top[1]) <= GAP or token in lm.eos_ids:
            return
        assert answer[index] == token, (index, answer, out.sequences)


def test_a_cache_that_was_un_rotated_and_rotated_continues_exactly_like_the_model(lm: LM) -> None:
    rows = [lm.tokens(text).ids for text in TEXTS]
    for state, row, text in zip(lm.states(rows), rows, QUESTIONS, strict=True):
        keys, values = kv.from_states([state], lm.layout, lm.positions[: len(row)])
        question = lm.question_ids(text)
        (answer,) = lm.answer(lm.scene_cache(keys, values), [question], NEW_TOKENS)
        assert_like_generate(lm, [*lm.prefix_ids, *row, *question], answer)


def test_the_model_that_reads_the_texts_answers_like_generate(lm: LM) -> None:
    rows = [lm.tokens(text).ids for text in TEXTS]
    questions = [lm.question_ids(text) for text in QUESTIONS]
    answers = lm.answer_texts(rows, questions, NEW_TOKENS)
    for row, question, answer in zip(rows, questions, answers, strict=True):
        assert_like_generate(lm, [*lm.prefix_ids, *row, *question], answer)


def test_un_rotated_keys_are_what_was_there_before_the_rotation(lm: LM) -> None:
    """An independent witness: the output of `k_norm` where there is one, else of `k_proj`."""
    seen: list[torch.Tensor] = []
    hooks = [
        getattr(layer.self_attn, "k_norm", layer.self_attn.k_proj).register_forward_hook(
            lambda _m, _i, out: seen.append(out)
        )
        for layer in lm.decoder.layers
    ]
    row = lm.tokens(TEXTS[0]).ids
    try:
        (state,) = lm.states([row])
    finally:
        for hook in hooks:
            hook.remove()
    heads, dim = lm.layout.kv_heads, lm.layout.head_dim
    for layer, found in enumerate(seen):
        plain = found[0] if found.ndim == 4 else found[0].view(-1, heads, dim).transpose(0, 1)
        want = plain[:, len(lm.prefix_ids) :].numpy()
        np.testing.assert_allclose(state.keys[layer], want, atol=2e-5)


def test_a_flat_state_survives_the_way_through_numpy(lm: LM) -> None:
    row = lm.tokens(TEXTS[2]).ids
    (state,) = lm.states([row])
    rotated = rotation.rotate(state.keys, lm.layout.rotation, lm.positions[: len(row)])
    native = torch.stack([key[0, :, len(lm.prefix_ids) :] for key, _ in lm.context([row])])
    np.testing.assert_allclose(rotated, native.numpy(), atol=2e-5)
    back = KVState.from_flat(state.flat(), lm.layout, state.positions)
    np.testing.assert_array_equal(back.keys, state.keys)


def test_texts_of_uneven_lengths_do_not_see_each_others_padding(lm: LM) -> None:
    rows = [lm.tokens(text).ids for text in TEXTS]
    for row, together in zip(rows, lm.states(rows), strict=True):
        (alone,) = lm.states([row])
        np.testing.assert_allclose(alone.flat(), together.flat(), atol=1e-5)


def test_gemmas_layout_says_what_it_needs_and_survives_json(lms: dict[str, LM]) -> None:
    layout = lms["gemma3"].layout
    thetas = {rope.theta for rope in layout.rotation.specs}  # type: ignore[union-attr]
    assert thetas == {1e6, 1e4} and layout.layer_ropes == (0, 1, 0)
    assert layout.windows == (400, 0, 400) and layout.window == 400 and layout.qk_norm
    assert KVLayout.from_json(layout.to_json()) == layout
    plain = lms["llama"].layout.to_json()
    assert not any(name in plain for name in ("more_ropes", "layer_ropes", "windows", "qk_norm"))
    assert lms["gemma3"].prefix_ids == [1] and lms["llama"].prefix_ids == []


def test_a_window_that_a_text_would_outgrow_is_refused(tmp_path: Path) -> None:
    path = tiny_gemma3(tmp_path, sliding_window=300)
    with pytest.raises(ContextError, match="see 300"):
        LM.load(path)
    lm = LM.load(path, text_tokens=40)
    row = lm.tokens("a" * 40).ids
    (state,) = lm.states([row])
    scene = lm.scene_cache(*kv.from_states([state], lm.layout, lm.positions[: len(row)]))
    question = lm.question_ids("a" * 200)
    assert len(lm.answer(scene, [question], 4)) == 1
    with pytest.raises(ContextError, match="sliding windows"):
        lm.answer(scene, [question], 59)


def test_positions_past_the_models_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="512 positions"):
        LM.load(tiny_lm(tmp_path), text_tokens=300)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("a <eos> b", "reserved"),
        ("a " * 200, "1 to 128 fit|at most"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(lm: LM, text: str, said: str) -> None:
    with pytest.raises(ContextError, match=said):
        lm.tokens(text)


def test_a_text_of_a_hundred_thousand_tokens_is_refused_without_reading_it(lm: LM) -> None:
    with pytest.raises(ContextError, match="characters"):
        lm.tokens("a " * 100_000)


def test_bad_questions_are_refused(lm: LM) -> None:
    with pytest.raises(QuestionError, match="empty"):
        lm.question_ids(" ")
    with pytest.raises(QuestionError, match="reserved"):
        lm.question_ids("<bos>")
    for size in (300, 100_000):
        with pytest.raises(QuestionTooLongError):
            lm.question_ids("a " * size)


def test_a_sign_without_a_token_is_refused_not_misread(lm: LM) -> None:
    with pytest.raises(ContextError, match="no token for '\u732b'"):
        lm.tokens("a \u732b")


def test_checkpoints_that_are_no_language_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config.json"):
        LM.load(tmp_path)
    with pytest.raises(UnsupportedModelError, match="reads more than text"):
        LM.load(tiny_llava(tmp_path))


def test_each_target_token_takes_the_source_token_that_covers_its_end() -> None:
    words = Tokens([0, 1, 2], np.array([3, 7, 9]))  # "the cat sat"-like
    letters = Tokens(list(range(9)), np.arange(1, 10))
    assert align(words, letters).tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert align(letters, words).tolist() == [2, 6, 8]
    short = Tokens([0], np.array([5]))
    assert align(short, letters).tolist() == [0] * 9


def test_a_character_in_pieces_stands_for_its_last_piece() -> None:
    """Tokenizers of bytes split what is not ASCII: only the last piece has read all of it."""
    byte = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    byte.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bytes_of = Reader.of(PreTrainedTokenizerFast(tokenizer_object=byte), "bytes", 64)
    letters = Tokenizer(models.WordLevel({c: i for i, c in enumerate("猫üK?")}, unk_token="?"))
    letters.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    letter_of = Reader.of(
        PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?"), "letters", 64
    )
    with pytest.raises(ContextError, match="no token for 'X'"):
        letter_of.read("KX")
    text = "Kü猫K"
    mine, theirs = bytes_of.read(text), letter_of.read(text)
    assert mine.ends.tolist() == [1, 2, 2, 3, 3, 3, 4] and theirs.ends.tolist() == [1, 2, 3, 4]
    assert align(mine, theirs).tolist() == [0, 2, 5, 6]
    assert fresh(align(mine, theirs)).all()
    back = align(theirs, mine)
    assert back.tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert fresh(back).tolist() == [True, True, False, True, False, False, True]
