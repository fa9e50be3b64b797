"""Logits must be those of the model's own forward, wherever they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cloud_server.engine.batch import RunningBatch
from projector.models.lm import LM
from projector.models.output import Output
from projector.models.packed import Packed
from projector.models.vlm import VLM
from tests.cloud_server.engine_bench import rows_of
from tests.fakes.tiny_models import tiny_lm

MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
SCALED: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 8.0},
    "granitemoe": {"logits_scaling": 8.0} | MOE,
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 512},
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 16, "sliding_window": 512},
    "gemma3_text": {"final_logit_softcapping": 3.0, "head_dim": 16, "sliding_window": 512},
    "nanochat": {},
}
PLAIN: dict[str, dict[str, Any]] = {"llama": {}, "qwen3": {}, "mixtral": MOE, "starcoder2": {}}
SIZES = {
    **{"vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
}


def made(family: str) -> Any:
    torch.manual_seed(0)
    over = (SCALED | PLAIN)[family]
    config = CONFIG_MAPPING[family](**SIZES | over)
    return AutoModelForCausalLM.from_config(config).eval()


def stock(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states and logits of the model's own forward."""
    noted: list[torch.Tensor] = []
    hook = model.get_decoder().register_forward_hook(
        lambda _m, _i, out: noted.append(out.last_hidden_state)
    )
    logits = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    return noted[0], logits


@pytest.mark.parametrize("family", [*SCALED, *PLAIN])
@torch.no_grad()
def test_logits_are_those_of_the_models_own_forward(family: str) -> None:
    model, ids = made(family), torch.arange(4, 30).view(2, 13)
    hidden, want = stock(model, ids)
    output = Output(model)
    torch.testing.assert_close(output(hidden), want, rtol=0, atol=0)
    torch.testing.assert_close(output(hidden[:, -1]), want[:, -1], rtol=1e-6, atol=1e-6)
    raw = model.get_output_embeddings()(hidden)
    assert (float((raw - want).abs().max()) > 0.1) == (family in SCALED)  # the test can fail
    some = torch.tensor([7, 3, 39])
    torch.testing.assert_close(output.of(some)(hidden), want[..., some], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output(hidden), want, rtol=0, atol=0)  # `of` changed nothing


@pytest.mark.parametrize("family", ["granite", "gemma2"])
def test_gradients_are_those_of_the_scaled_logits(family: str) -> None:
    model = made(family)
    hidden = torch.randn(3, 64, requires_grad=True)
    (got,) = torch.autograd.grad(Output(model)(hidden).log_softmax(-1)[:, 5].sum(), hidden)
    raw = model.get_output_embeddings()(hidden)
    by_hand = raw / 8.0 if family == "granite" else 3.0 * torch.tanh(raw / 3.0)
    (want,) = torch.autograd.grad(by_hand.log_softmax(-1)[:, 5].sum(), hidden)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=["granite", "cohere", "gemma2"])
def scaled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LM:
    folder: Path = tmp_path_factory.mktemp("scaled")
    return LM.load(tiny_lm(folder, request.param, **SCALED[request.param]))


@torch.no_grad()
def test_guards_and_losses_see_the_distribution_that_the_model_answers_with(scaled: LM) -> None:
    """The guard's confidence, and what KL, cross-entropy and Fisher weights are made of."""
    text, question = scaled.tokens("a red car is left of it .").ids, scaled.question_ids("what ?")
    ids = [*scaled.prefix_ids, *text, *question]
    want = scaled.model(input_ids=torch.tensor([[*ids, 7]])).logits[0, len(ids) - 1 :]
    layers = scaled.context([text])
    chances = scaled.first_token(layers, [question])
    np.testing.assert_allclose(chances[0], want[0].softmax(-1).numpy(), atol=1e-5)
    packed = Packed.of([[(question, [7, 8])]])
    torch.testing.assert_close(packed.logits(scaled, layers), want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_cap_that_ties_tokens_gives_the_services_answer_the_models_own_choice(
    tmp_path: Path,
) -> None:
    """With logits far past the cap, tanh rounds many to the same number; the first of them wins."""
    lm = LM.load(tiny_lm(tmp_path, "gemma2", **SCALED["gemma2"]))
    lm.model.get_output_embeddings().weight.mul_(200)
    lm = LM.of(lm.model, lm.tokenizer, lm.path)
    text, question = lm.tokens("a red car").ids, lm.question_ids("what ?")
    ids = torch.tensor([[*lm.prefix_ids, *text, *question]])
    own = lm.model(input_ids=ids).logits[0, -1]
    assert int((own == own.max()).sum()) > 1
    [row] = RunningBatch[int](lm).join(rows_of(lm.context([text])), [question], [0], [1])
    assert row.tokens == [int(own.argmax())] or int(own.argmax()) in lm.eos_ids


def test_a_visual_model_answers_by_its_own_output_path_too(vlms: dict[str, VLM]) -> None:
    for vlm in vlms.values():
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            hidden, want = stock(vlm.model, ids)
            torch.testing.assert_close(vlm.logits(hidden), want, rtol=0, atol=0)
