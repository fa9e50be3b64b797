"""The picture point gives what the model that sees the picture says."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from projector.models.vlm import VLM
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files


@pytest.fixture(scope="module")
def model(files: Files) -> VLM:
    return VLM.load(files.model)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_picture_point_gives_the_answer_of_the_model_that_sees_the_picture(
    client: stage.Client, model: VLM, kind: str
) -> None:
    answers = set()
    for seed in range(3):
        file = stage.picture_file(seed, kind)
        answer = client.answer(client.picture(file, number=90 + seed))
        seen = Image.open(io.BytesIO(file))
        ids = model.answer_pictures([seen], [model.question_ids(stage.QUESTION)], 6)[0]
        assert answer.text == model.text(ids)
        answers.add(answer.text)
    assert len(answers) > 1


def test_a_picture_is_turned_upright_by_the_service(client: stage.Client) -> None:
    upright = Image.open(io.BytesIO(stage.picture_file(7))).crop((0, 0, 48, 30))
    exif = Image.Exif()
    exif[0x0112] = 3
    answers = []
    for number, (picture, how) in enumerate(
        [(upright, {}), (upright.rotate(180), {"exif": exif}), (upright.rotate(180), {})], start=130
    ):
        file = io.BytesIO()
        picture.save(file, "PNG", **how)
        sent = client.picture(file.getvalue(), number=number, question="")
        client.infer(sent)
        answers.append(
            [client.ask(number, f"what is {place} ?")[-1].answer.text for place in range(6)]
        )
    assert answers[0] == answers[1] != answers[2]
