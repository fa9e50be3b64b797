"""Crops in the engine: which part a question needs, and the answer from scene and part."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from msgspec import structs
from PIL import Image

from cloud_server.engine import crop
from cloud_server.engine.jobs import Failed, Job, PartWanted
from projector.models import cache as kv
from projector.models.vlm import VLM
from protos.crop import Box
from protos.errors import UnknownSceneError
from protos.points import PICTURE_POINT
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.engine_bench import Bench

WHOLE = [0, 0, 1000, 1000]


def _file(picture: Image.Image) -> bytes:
    blob = io.BytesIO()
    picture.save(blob, "PNG")
    return blob.getvalue()


def _noise(seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8))


def _crop(bench: Bench, id: int, about: int, file: bytes, box: Sequence[int]) -> Job:
    asked = bench.ask(id, about)
    owner = f"{about:016x}"  # the request that brought the scene
    return structs.replace(
        asked, request_id=owner, point=PICTURE_POINT, body=file, box=list(box), hold=0
    )


def test_a_crop_of_the_whole_picture_answers_as_the_picture_and_leaves_the_scene(
    bench: Bench,
) -> None:
    file = _file(_noise())
    bench.engine.submit(bench.job(1))
    bench.engine.submit(structs.replace(bench.job(2), point=PICTURE_POINT, kept=b"", body=file))
    _until(bench, 2)
    bench.engine.submit(_crop(bench, 3, 1, file, WHOLE))
    _until(bench, 3)
    bench.engine.submit(bench.ask(4, about=1))
    _until(bench, 4)
    said = {id: answer.text for id, answer in bench.answers().items()}
    assert said[3] == said[2] != said[1]
    assert said[4] == said[1]


def test_only_the_tokens_inside_are_the_pictures(bench: Bench) -> None:
    model = bench.engine._model
    grid = model.layout.grid
    bench.engine.submit(bench.job(1, question=""))
    bench.drain()
    scene = bench.engine._scenes.get(("s", 1))
    before = [part.clone() for part in bench.engine._scenes.read(scene)]
    shape = (before[0].shape[0], 1, *before[0].shape[1:])
    keys, values = torch.randn(shape), torch.randn(shape)
    given = keys.clone(), values.clone()
    box = Box(0, 0, 500, 500)

    class Work:
        job, scene = _crop(bench, 2, 1, b"", [0, 0, 500, 500]), bench.engine._scenes.get(("s", 1))

    crop.put_into_scenes(grid, bench.engine._scenes, [Work()], keys, values)  # type: ignore[list-item]
    seen = crop.inside(box, grid)
    assert seen.sum() == len(seen) / 4
    for made, canvas, held in zip((keys, values), given, before, strict=True):
        assert torch.equal(made[:, 0][:, :, seen], canvas[:, 0][:, :, seen])
        assert torch.equal(made[:, 0][:, :, ~seen], held[:, :, ~seen])


def test_the_part_wanted_is_where_the_questions_last_token_looks(
    files: Files, bench: Bench
) -> None:
    bench.engine.submit(bench.job(1, question=""))
    bench.drain()
    bench.engine.submit(structs.replace(bench.ask(2, about=1), look=1.0, most_share=0.5))
    bench.drain()
    (said,) = [event for event in bench.said if isinstance(event, PartWanted)]
    assert not bench.answers()
    # the same from the weights that eager attention returns
    vlm = VLM.load(files.model)
    keys, values = bench.engine._scenes.read(bench.engine._scenes.get(("s", 1)))
    layers = vlm.scene_cache(keys[:, None], values[:, None])
    held = layers[0][0].shape[2]
    ids = torch.tensor([vlm.question_ids(stage.QUESTION)])
    with torch.inference_mode(), vlm.eager():
        out = vlm.decoder(
            input_ids=ids,
            past_key_values=kv.new_cache(layers),
            position_ids=torch.arange(held, held + ids.shape[1])[None],
            output_attentions=True,
        )
    last = sum(each[0, :, -1].mean(dim=0) for each in out.attentions)
    weights = last[len(vlm.prefix_ids) : held].reshape(vlm.layout.grid).numpy()
    rows, columns = weights.shape
    high, wide = -(-rows // 2), -(-columns // 2)
    places = {
        (top, left): weights[top : top + high, left : left + wide].sum()
        for top in range(rows - high + 1)
        for left in range(columns - wide + 1)
    }
    top, left = max(places, key=lambda place: places[place])
    assert said.box == [
        round(1000 * left / columns),
        round(1000 * top / rows),
        round(1000 * (left + wide) / columns),
        round(1000 * (top + high) / rows),
    ]
    assert said.attention == pytest.approx(places[top, left] / weights.sum(), rel=1e-4)


def test_the_smallest_window_that_holds_enough_is_taken() -> None:
    weights = np.full((6, 6), 0.01)
    weights[1, 4] = 1.0
    assert crop.smallest(weights, 0.7, 1.0)[0] == Box(667, 167, 833, 333)
    box, held = crop.smallest(weights, 0.81, 1.0)
    assert box.right - box.left == pytest.approx(667, abs=1)  # 4 of 6 cells
    assert held == pytest.approx((1.0 + 15 * 0.01) / weights.sum())
    box, held = crop.smallest(weights, 0.99, 0.5)  # not enough in half of it: the best half
    assert (box.right - box.left, box.bottom - box.top) == (500, 500) and held < 0.99
    wide = np.ones((2, 8))
    assert crop.smallest(wide, 1.0, 1.0)[0] == Box(0, 0, 1000, 1000)


def test_a_crop_of_a_lost_scene_and_one_that_is_no_picture_fail_alone(bench: Bench) -> None:
    bench.engine.submit(bench.job(1))
    _until(bench, 1)
    bench.engine.submit(_crop(bench, 2, 77, _file(_noise()), WHOLE))
    bench.engine.submit(_crop(bench, 3, 1, b"no picture at all", WHOLE))
    while sum(isinstance(event, Failed) for event in bench.said) < 2:
        bench.engine.step()
    codes = {event.job: event.code for event in bench.said if isinstance(event, Failed)}
    assert codes == {2: UnknownSceneError.code, 3: 103}
    bench.engine.submit(bench.ask(4, about=1))
    _until(bench, 4)


def test_the_canvas_has_the_crop_at_its_place_and_stays_within_its_bound() -> None:
    red = Image.new("RGB", (20, 10), (200, 0, 0))
    red.putpixel((0, 0), (0, 200, 0))
    made = crop.on_canvas(red, Box(500, 0, 1000, 500), 4096)
    assert made.size == (40, 20)
    assert made.getpixel((20, 0)) == (0, 200, 0) and made.getpixel((39, 9)) == (200, 0, 0)
    assert made.getpixel((0, 19)) == (199, 1, 0)  # the mean
    assert crop.on_canvas(red, Box(0, 0, 1, 1), 512).size == (512, 256)


def _until(bench: Bench, id: int) -> None:
    """Step until a job is answered; pictures are read in a thread of their own."""
    while id not in bench.answers():
        assert not any(isinstance(event, Failed) and event.job == id for event in bench.said)
        bench.engine.step()
