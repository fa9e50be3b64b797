"""Training batches of the reference VLMs: pictures, questions, each image token's labels."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reference.pictures import Pictures, lossy
from reference.yard import COLOURS, GROUPS, KINDS, PICTURE_PX, Question, Scenes, ask
from reference.yard.questions import PLURALS, QUADRANTS
from reference.zoo import Grid


@dataclass
class Batch:
    """One training batch: B pictures, Q questions each, padded to S tokens a question."""

    pixels: Tensor
    """[B, 3, H, W] in -1..1"""
    question_ids: Tensor
    """[B, Q, S]"""
    labels: Tensor
    """[B, Q, S]: the next token where it belongs to the answer, else -100"""
    cue: Tensor
    """[B, Q]: index in S of the last token before the answer"""
    about: Tensor
    """[B, Q, N]: share of the question's objects in each image token's cell"""
    answered: Tensor
    """[B, Q, N]: the same for the objects that are the answer, if it is an object"""
    words: Tensor
    """[B, Q, S, N]: the same for each word that names objects of the picture; zeros elsewhere"""
    cells: dict[str, Tensor]
    """Labels of each image token, as `cell_labels` names them."""


def cell_labels(scenes: Scenes, indices: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
    """What each of the N image tokens shows, by the centres that fall into its cell.

    Args:
        scenes: a block of scenes.
        indices: [B] places in the block.
        grid: rows and columns of the image tokens, N in all.

    Returns:
        `kind` [B, N, kinds], `colour` [B, N, colours], `large` [B, N, 2] multi-hot; `offset`
        [B, N, 2] of the last object in -0.5..0.5 of a cell; `count` [B, N]; `cell` [B, 6] of each
        object slot (-1 where empty).
    """
    rows, columns = grid
    batch, tokens = len(indices), rows * columns
    x, y = scenes.x[indices], scenes.y[indices]
    present = np.arange(x.shape[1])[None] < scenes.n_objects[indices][:, None]
    column = np.clip((x / PICTURE_PX * columns).astype(int), 0, columns - 1)
    row = np.clip((y / PICTURE_PX * rows).astype(int), 0, rows - 1)
    cell = np.where(present, row * columns + column, -1)
    out = {
        "kind": np.zeros((batch, tokens, len(KINDS)), np.float32),
        "colour": np.zeros((batch, tokens, len(COLOURS)), np.float32),
        "large": np.zeros((batch, tokens, 2), np.float32),
        "offset": np.zeros((batch, tokens, 2), np.float32),
        "count": np.zeros((batch, tokens), np.float32),
    }
    picture, slot = np.nonzero(present)
    where = cell[picture, slot]
    out["kind"][picture, where, scenes.kind[indices][picture, slot]] = 1
    colour = scenes.colour[indices][picture, slot]
    tinted = colour >= 0
    out["colour"][picture[tinted], where[tinted], colour[tinted]] = 1
    out["large"][picture, where, scenes.large[indices][picture, slot].astype(int)] = 1
    out["offset"][picture, where, 0] = (
        x[picture, slot] / PICTURE_PX * columns - where % columns - 0.5
    )
    out["offset"][picture, where, 1] = y[picture, slot] / PICTURE_PX * rows - where // columns - 0.5
    np.add.at(out["count"], (picture, where), 1)
    out["cell"] = cell
    return out


def named_slots(scenes: Scenes, place: int, *, corners: bool = False) -> dict[str, list[int]]:
    """Every word that names objects of a picture (kind, plural, group, colour), with their slots.

    Args:
        scenes: a block of scenes.
        place: the picture's place in it.
        corners: whether "top-left" and the other corners name the objects there.
    """
    found: dict[str, list[int]] = {}
    for slot in range(int(scenes.n_objects[place])):
        kind, colour = KINDS[scenes.kind[place, slot]], int(scenes.colour[place, slot])
        words = {kind, PLURALS.get(kind, kind)}
        words |= {group for group, kinds in GROUPS.items() if kind in kinds}
        if kind == "worker":
            words.add("person")
        if kind in ("fire", "smoke"):
            words.add("burning")
        if colour >= 0:
            words.add(COLOURS[colour])
        if corners:
            x, y = scenes.x[place, slot], scenes.y[place, slot]
            words.add(QUADRANTS[2 * int(y > PICTURE_PX / 2) + int(x > PICTURE_PX / 2)])
        for word in words:
            found.setdefault(word, []).append(slot)
    return found


class Tokens:
    """A processor's tokens around a picture, from its chat template, once per text."""

    def __init__(self, processor: Any, image_token_id: int) -> None:
        """Finds the fixed tokens before and of the picture.

        Args:
            processor: the model's processor.
            image_token_id: the id that stands for image content.
        """
        self._processor, self._image = processor, image_token_id
        self._known: dict[str, list[int]] = {}
        ids = self._render("")
        last = len(ids) - 1 - ids[::-1].index(image_token_id)
        self.prefix = ids[: last + 1]
        self.image_positions = [i for i, t in enumerate(self.prefix) if t == image_token_id]
        self.eos = processor.tokenizer.eos_token_id

    def _render(self, text: str) -> list[int]:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        picture = Image.new("RGB", (PICTURE_PX, PICTURE_PX))
        return list(
            self._processor(images=[picture], text=prompt, return_tensors=None)["input_ids"][0]
        )

    def question(self, text: str) -> list[int]:
        """The tokens that follow the picture: question and cue."""
        if text not in self._known:
            self._known[text] = self._render(text)[len(self.prefix) :]
        return self._known[text]

    def answer(self, text: str) -> list[int]:
        """An answer's tokens, end of sequence included."""
        key = "\0" + text
        if key not in self._known:
            ids = self._processor.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
            self._known[key] = [*ids, self.eos]
        return self._known[key]


def collate(
    pictures: Pictures,
    indices: list[int],
    tokens: Tokens,
    grid: Grid,
    *,
    questions: int,
    seed: int,
    lossy_rng: random.Random | None,
    finely: bool = False,
) -> tuple[Batch, list[list[Question]]]:
    """Assembles one batch.

    Args:
        pictures: pictures of a split.
        indices: which of them.
        tokens: the model's tokens.
        grid: the model's image tokens.
        questions: Q, questions per picture.
        seed: decides the questions of each picture.
        lossy_rng: draws picture codecs; None leaves the pictures as they are.
        finely: also label the objects that a corner's name and an answer stand for.

    Returns:
        The batch and its questions.
    """
    pixels, asked, cells, named = [], [], [], []
    for index in indices:
        picture, scenes, place = pictures[index]
        pixels.append(lossy(picture, lossy_rng) if lossy_rng else picture)
        some = ask(scenes, place, questions, seed)
        asked.append((some * questions)[:questions])
        cells.append(cell_labels(scenes, np.array([place]), grid))
        named.append(named_slots(scenes, place, corners=finely))
    cell = {key: np.concatenate([c[key] for c in cells]) for key in cells[0]}
    batch, grid_tokens = len(indices), len(tokens.image_positions)
    rows = [[(tokens.question(q.text), tokens.answer(q.answer)) for q in qs] for qs in asked]
    longest = max(len(q) + len(a) - 1 for row in rows for q, a in row)
    longest = -(-longest // 4) * 4
    ids = torch.full((batch, questions, longest), tokens.eos)
    labels = torch.full((batch, questions, longest), -100)
    cue = torch.zeros((batch, questions), dtype=torch.long)
    about = torch.zeros((batch, questions, grid_tokens))
    answered = torch.zeros((batch, questions, grid_tokens))
    words = torch.zeros((batch, questions, longest, grid_tokens))
    for b, row in enumerate(rows):
        for k, (question, answer) in enumerate(row):
            sequence = question + answer[:-1]
            ids[b, k, : len(sequence)] = torch.tensor(sequence)
            labels[b, k, len(question) - 1 : len(sequence)] = torch.tensor(answer)
            cue[b, k] = len(question) - 1
            slots = list(asked[b][k].about)
            for slot in slots:
                about[b, k, cell["cell"][b, slot]] += 1 / len(slots)
            if finely:  # "closest to the ladder": looks at both, answers with one
                slots = [s for s in slots if s in named[b].get(asked[b][k].answer, slots)]
            for slot in slots:
                answered[b, k, cell["cell"][b, slot]] += 1 / len(slots)
            spelled = asked[b][k].text.split()
            first = len(question) - 1 - len(spelled)  # one token a word, then the cue
            for at, word in enumerate(spelled if first >= 0 else []):
                for slot in named[b].get(word, []):
                    words[b, k, first + at, cell["cell"][b, slot]] += 1 / len(named[b][word])
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    tensors = {key: torch.from_numpy(value) for key, value in cell.items() if key != "cell"}
    return Batch(stacked, ids, labels, cue, about, answered, words, tensors), asked
