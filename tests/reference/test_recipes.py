"""Every recipe builds, saves and loads as the model that it says, and can be taught."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from projector.models.vlm import VLM
from reference import __main__ as everything
from reference import train_vlm, zoo
from reference.lessons import Batch, Tokens, cell_labels, collate
from reference.trainee import Trainee
from reference.yard import COLOURS, KINDS, PICTURE_PX, VOCABULARY, Scenes, render, sample_scenes

COMMITTED = Path(zoo.__file__).parent / "models"
NAMES = sorted(zoo.RECIPES)
EDGES = [name for name in NAMES if name.startswith("edge-")]
SHAPES = {  # image tokens, numbers of state per token, RoPE base
    "cloud": ((6, 6), 4096, 500_000),
    "edge-a": ((6, 6), 512, 10_000),
    "edge-b": ((8, 8), 384, 50_000),
    "edge-c": ((6, 6), 448, 10_000),
}


class FewPictures:
    """16 pictures of any split, rendered in memory."""

    def __init__(self, split: str, count: int = 16, folder: Path | None = None) -> None:
        self.scenes = sample_scenes(split, 0, 16)
        self.pixels = render(self.scenes)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Scenes, int]:
        return self.pixels[index], self.scenes, index


@pytest.fixture(scope="module")
def pictures() -> FewPictures:
    return FewPictures("train")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VLM]:
    """Every recipe, untrained, as `VLM.load` reads it back from its checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    for name, recipe in zoo.RECIPES.items():
        torch.manual_seed(recipe.seed)
        zoo.save(*recipe.build(), folder / name)
    return {name: VLM.load(folder / name) for name in NAMES}


def make_trainee(name: str) -> Trainee:
    recipe = zoo.RECIPES[name]
    torch.manual_seed(recipe.seed)
    model, processor = recipe.build()
    return Trainee(model, Tokens(processor, model.config.image_token_id), recipe)


def make_batch(trainee: Trainee, pictures: Any, count: int, questions: int) -> Batch:
    grid = trainee.recipe.grid
    return collate(
        pictures,
        list(range(count)),
        trainee.tokens,
        grid,
        questions=questions,
        seed=1,
        lossy_rng=None,
    )[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_recipe_loads_with_the_layout_that_its_docstring_promises(
    name: str, loaded: dict[str, VLM]
) -> None:
    layout, recipe = loaded[name].layout, zoo.RECIPES[name]
    grid, state_dim, theta = SHAPES[name]
    assert layout.grid == recipe.grid == grid
    assert (layout.state_dim, layout.rope.theta) == (state_dim, theta)
    promised = str(recipe.build.__doc__)
    assert f"state {state_dim} = 2 * {layout.layers} layers * {layout.kv_heads} heads" in promised
    assert f"{grid[0]}x{grid[1]} image tokens" in promised


def test_every_edge_fits_a_small_device(loaded: dict[str, VLM]) -> None:
    for name in EDGES:
        assert sum(p.numel() for p in loaded[name].model.parameters()) <= 1_200_000, name


def test_edge_b_shares_neither_class_nor_grid_nor_words_with_edge_a(loaded: dict[str, VLM]) -> None:
    a, b = loaded["edge-a"], loaded["edge-b"]
    assert type(a.model) is not type(b.model)
    for part in ("vision_config", "text_config"):
        assert getattr(a.model.config, part).model_type != getattr(b.model.config, part).model_type
    assert a.layout.tokens != b.layout.tokens
    assert a.layout.rope.theta != b.layout.rope.theta
    assert a.prefix_ids != b.prefix_ids
    for other in ("edge-a", "cloud"):
        assert b.processor.tokenizer.get_vocab() != loaded[other].processor.tokenizer.get_vocab()
        assert b.processor.chat_template != loaded[other].processor.chat_template


def test_edge_c_is_edge_a_s_class_at_another_width(loaded: dict[str, VLM]) -> None:
    a, c = loaded["edge-a"], loaded["edge-c"]
    assert type(a.model) is type(c.model)
    assert a.layout.grid == c.layout.grid
    assert a.layout.state_dim != c.layout.state_dim
    assert zoo.RECIPES["edge-a"].seed != zoo.RECIPES["edge-c"].seed


@pytest.mark.parametrize("name", ["edge-a", "cloud"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_committed_checkpoint_is_what_its_recipe_builds(
    name: str, file: str, loaded: dict[str, VLM]
) -> None:
    built, committed = ((path / file).read_text() for path in (loaded[name].path, COMMITTED / name))
    if file.endswith(".json"):
        assert json.loads(built) == json.loads(committed)
    else:
        assert built == committed


@pytest.mark.parametrize("name", EDGES)
def test_states_hold_the_keys_as_projected_before_rotation(
    name: str, loaded: dict[str, VLM], pictures: FewPictures
) -> None:
    vlm = loaded[name]
    projected: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.k_proj.register_forward_hook(lambda _m, _i, out: projected.append(out))
        for layer in vlm.decoder.layers
    ]
    shown = [Image.fromarray(pictures[index][0]) for index in range(2)]
    states = vlm.states(vlm.prefill(shown))
    for hook in hooks:
        hook.remove()
    for index, state in enumerate(states):
        assert state.grid == vlm.layout.grid
        for layer, keys in enumerate(projected):
            wanted = keys[index, vlm.positions].unflatten(-1, (vlm.layout.kv_heads, -1))
            np.testing.assert_allclose(state.keys[layer], wanted.transpose(0, 1), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_processor_makes_the_pixels_that_training_makes(
    name: str, loaded: dict[str, VLM], pictures: FewPictures
) -> None:
    batch = make_batch(make_trainee(name), pictures, 3, 1)
    shown = [[Image.fromarray(pictures[index][0])] for index in range(3)]
    made = loaded[name].processor.image_processor(images=shown, return_tensors="pt")
    pixels = made["pixel_values"].reshape(batch.pixels.shape)
    torch.testing.assert_close(pixels, batch.pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EDGES)
def test_questions_are_one_token_a_word_and_answers_read_back(
    name: str, loaded: dict[str, VLM]
) -> None:
    """The lessons count back from the cue to find the token of each word."""
    vlm = loaded[name]
    tokens = Tokens(vlm.processor, vlm.model.config.image_token_id)
    text = "is there a car to the left of the truck ?"
    ids = tokens.question(text)
    assert ids == vlm.question_ids(text)
    assert vlm.text(ids[-1 - len(text.split()) : -1]) == text
    for word in VOCABULARY:
        assert len(tokens.answer(word)) == 2, word
        assert vlm.text(tokens.answer(word)) == word
    assert tokens.prefix[: len(vlm.prefix_ids)] == vlm.prefix_ids
    assert tokens.image_positions == vlm.positions.tolist()


def test_edge_b_spells_words_that_it_does_not_know(loaded: dict[str, VLM]) -> None:
    vlm = loaded["edge-b"]
    ids = vlm.processor.tokenizer(" zebra-red", add_special_tokens=False)["input_ids"]
    assert len(ids) == len("zebra-red")
    assert vlm.text(ids) == "zebra-red"


@pytest.mark.parametrize("grid", [(6, 6), (8, 8), (4, 6)])
def test_a_cell_s_labels_are_of_the_objects_whose_centres_fall_into_it(grid: zoo.Grid) -> None:
    scenes = sample_scenes("validation", 0, 64)
    labels = cell_labels(scenes, np.arange(64), grid)
    rows, columns = grid
    for index in range(64):
        cells: dict[int, list[int]] = {}
        for slot in range(int(scenes.n_objects[index])):
            row = int(scenes.y[index, slot] // (PICTURE_PX / rows))
            column = int(scenes.x[index, slot] // (PICTURE_PX / columns))
            cells.setdefault(row * columns + column, []).append(slot)
        for cell in range(rows * columns):
            slots = cells.get(cell, [])
            assert labels["count"][index, cell] == len(slots)
            assert [labels["cell"][index, slot] for slot in slots] == [cell] * len(slots)
            kinds = {int(scenes.kind[index, slot]) for slot in slots}
            colours = {int(scenes.colour[index, slot]) for slot in slots} - {-1}
            assert set(np.nonzero(labels["kind"][index, cell])[0]) == kinds
            assert set(np.nonzero(labels["colour"][index, cell])[0]) == colours
            if len(slots) == 1:
                centre = (
                    labels["offset"][index, cell] + 0.5 + (cell % columns, cell // columns)
                ) * (
                    PICTURE_PX / columns,
                    PICTURE_PX / rows,
                )
                wanted = (scenes.x[index, slots[0]], scenes.y[index, slots[0]])
                np.testing.assert_allclose(centre, wanted, atol=1e-3)
        assert (labels["cell"][index, int(scenes.n_objects[index]) :] == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGES)
def test_a_few_steps_on_one_batch_lower_every_loss(name: str, pictures: FewPictures) -> None:
    trainee = make_trainee(name)
    grid = trainee.recipe.grid
    batch = make_batch(trainee, pictures, 4, 4)
    assert trainee.image_tokens(batch.pixels).shape[:2] == (4, grid[0] * grid[1])
    heads = len(KINDS) + len(COLOURS) + 5 + grid[0] + grid[1]
    assert trainee.reader(trainee.image_tokens(batch.pixels)).shape[-1] == heads
    optimiser = torch.optim.AdamW(trainee.parameters(), lr=2e-3)
    seen = []
    for _ in range(12):
        answers, reading, looking, _right = trainee(batch)
        blind = trainee.blind_loss(batch)
        seen.append(torch.stack([answers, reading, looking, blind]).detach())
        optimiser.zero_grad()
        (answers + reading + looking + blind).backward()
        optimiser.step()
    answers_fell, reading_fell, looking_fell, blind_fell = (seen[-1] / seen[0]).tolist()
    assert answers_fell < 0.7 and blind_fell < 0.7
    assert reading_fell < 0.8
    assert looking_fell < 1.0


@pytest.mark.parametrize("name", EDGES)
def test_labels_of_words_point_at_the_cells_that_hold_what_they_name(
    name: str, pictures: FewPictures
) -> None:
    trainee = make_trainee(name)
    batch = make_batch(trainee, pictures, 8, 6)
    naming = batch.words.sum(-1) > 0
    assert naming.any()
    picture, question, place = naming.nonzero(as_tuple=True)
    spelled = {trainee.tokens.answer(word)[0]: index for index, word in enumerate(KINDS)}
    checked = 0
    for b, q, s in zip(picture.tolist(), question.tolist(), place.tolist(), strict=True):
        kind = spelled.get(int(batch.question_ids[b, q, s]))
        if kind not in (None, KINDS.index("person")):  # a worker is a person too
            cells = (batch.words[b, q, s] > 0).nonzero()[:, 0]
            assert (batch.cells["kind"][b, cells, kind] == 1).all()
            checked += 1
    assert checked >= 10


@pytest.mark.slow
def test_training_resumes_where_it_stopped_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_vlm, "Pictures", FewPictures)
    monkeypatch.setattr(train_vlm, "evaluate", lambda *_args, **_kwargs: {"all": 0.0})
    monkeypatch.setattr(train_vlm, "_rate", lambda *_stages: 0.5)  # it depends on `steps`

    def run(folder: str, steps: int) -> Path:
        args = argparse.Namespace(
            steps=steps,
            reading_steps=2,
            batch=4,
            questions=2,
            pictures=16,
            evaluate_every=200,
            threads=torch.get_num_threads(),
            seed=None,
            pool=tmp_path / "pool",
            work=tmp_path / folder / "work",
            out=tmp_path / folder / "out",
        )
        train_vlm.train("edge-b", args)
        return args.out / "edge-b"

    whole = run("whole", 4)
    run("halves", 2)
    halves = run("halves", 4)
    one, two = (VLM.load(path) for path in (whole, halves))
    for (name, first), second in zip(
        one.model.state_dict().items(), two.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6, msg=name)
    facts = json.loads((halves / "training.json").read_text())
    assert (facts["steps"], facts["seed"]) == (4, zoo.RECIPES["edge-b"].seed)


def test_everything_is_trained_before_the_map_that_needs_it() -> None:
    order = [step[:2] for step in everything.steps("cpu")]
    trained = [step[1] for step in order if step[0] == "reference.train_vlm"]
    assert sorted(trained) == NAMES
    bundles = [step[1] for step in order if step[0] == "reference.recipe"]
    assert bundles == ["edge-a", "edge-b", "edge-c"]
    for name in bundles:
        bundle = order.index(("reference.recipe", name))
        for needed in (name, "cloud"):
            assert order.index(("reference.train_vlm", needed)) < bundle
