"""Questions about a scene, each with a one-word answer that a person could give from the picture.

First every question that can be asked without ambiguity is listed. Then some are drawn with the
weights of `assets/question_weights.json` (made by `balance.py`), which even out the answers of each
sort of question, so that guessing without the picture does badly.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from random import Random

from reference.yard.scene import ASSETS, COLOURS, GROUPS, KINDS, PICTURE_PX, Scenes

NUMBERS = ("zero", "one", "two", "three", "four")
QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
PLURALS = {kind: f"{kind}s" for kind in KINDS if kind not in ("person", "fire", "smoke")} | {
    "bus": "buses",
    "wrench": "wrenches",
}
ANSWERS = ("yes", "no", *NUMBERS, *COLOURS, "small", "large", *QUADRANTS, *KINDS)
_TEMPLATE_WORDS = (
    "? a above are burning closest colour corner fire how in is large left many near of or people"
    " person small smoke something the there things to what where"
)
VOCABULARY = tuple(
    sorted({*ANSWERS, *GROUPS, *PLURALS.values(), *_TEMPLATE_WORDS.split()})
)  # fmt: skip
WEIGHTS_FILE = ASSETS / "question_weights.json"

MIDLINE_PX = 8.0  # a centre this close to a midline is in no quadrant
NEAR_PX, FAR_PX = 45.0, 65.0  # a person nearer than NEAR_PX is near, one farther than FAR_PX is not
ASIDE_PX = 14.0  # least difference for left of, above
CLOSEST_RATIO = 0.65  # distance of the nearest over that of the second nearest, at most

_MIDDLE = PICTURE_PX / 2
_LOOKALIKE = {"red": "fire", "yellow": "fire", "green": "tree", "white": "smoke"}


@dataclass(frozen=True)
class Question:
    """One question; `about` lists the object slots that the answer depends on."""

    kind: str  # "hazard", "counting" or "scene"
    subkind: str
    text: str
    answer: str
    about: tuple[int, ...]


@dataclass(frozen=True)
class _Object:
    slot: int
    kind: str
    colour: str  # "" if not tinted
    large: bool
    x: float
    y: float

    def distance(self, other: _Object) -> float:
        return math.hypot(self.x - other.x, self.y - other.y)


def ask(scenes: Scenes, index: int, count: int, seed: int) -> list[Question]:
    """Up to `count` distinct questions about picture `index` of `scenes` (fewer if it has no more).

    The same scene, count and seed give the same questions. On average about 25 % are about hazards,
    20 % about counts and 55 % about the scene.
    """
    rng = Random(f"{scenes.split} {scenes.index[index]} {seed}")
    cells: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in list_questions(scenes, index):
        cells[question.subkind, question.answer].append(question)
    chosen: list[Question] = []
    while cells and len(chosen) < count:
        # Weighted draws without replacement (Efraimidis and Spirakis, 2006), one from each cell.
        keys = {c: math.log(1.0 - rng.random()) / draw_weight(*c) for c in cells}
        for cell in sorted(keys, key=lambda c: -keys[c])[: count - len(chosen)]:
            candidates = cells[cell]
            chosen.append(candidates.pop(rng.randrange(len(candidates))))
            if not candidates:
                del cells[cell]
    return chosen


def draw_weight(subkind: str, answer: str) -> float:
    """Weight by which a question of that sort with that answer is drawn."""
    return _weights().get((subkind, answer), 1.0)


def list_questions(scenes: Scenes, index: int) -> list[Question]:
    """Every question that can be asked about picture `index` without ambiguity."""
    objects = _objects(scenes, index)
    by_kind: dict[str, list[_Object]] = defaultdict(list)
    for thing in objects:
        by_kind[thing.kind].append(thing)
    single = {
        kind: things[0]
        for kind, things in by_kind.items()
        if len(things) == 1 and not (kind == "person" and "worker" in by_kind)
    }
    return [
        *_hazards(by_kind),
        *_counts(objects, by_kind),
        *_looks(objects, by_kind, single),
        *_presence(by_kind),
        *_places(objects, single),
        *_relations(objects, single),
    ]


def true_answer(scenes: Scenes, index: int, text: str) -> str | None:
    """The answer to a question by the labels of picture `index`; None if it cannot be asked."""
    found = (q.answer for q in list_questions(scenes, index) if q.text == text)
    return next(found, None)


def _objects(scenes: Scenes, index: int) -> list[_Object]:
    count = int(scenes.n_objects[index])
    columns = (scenes.kind, scenes.colour, scenes.large, scenes.x, scenes.y)
    rows = zip(*(column[index, :count].tolist() for column in columns), strict=True)
    return [
        _Object(slot, KINDS[kind], COLOURS[colour] if colour >= 0 else "", large, x, y)
        for slot, (kind, colour, large, x, y) in enumerate(rows)
    ]


def _slots(things: list[_Object]) -> tuple[int, ...]:
    return tuple(thing.slot for thing in things)


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def _hazards(by_kind: dict[str, list[_Object]]) -> Iterator[Question]:
    fire, smoke = by_kind.get("fire", []), by_kind.get("smoke", [])
    people = [*by_kind.get("person", []), *by_kind.get("worker", [])]
    for subkind, text, things in (
        ("fire", "is there a fire ?", fire),
        ("smoke", "is there smoke ?", smoke),
        ("burning", "is something burning ?", fire + smoke),
    ):
        yield Question("hazard", subkind, text, _yes_no(bool(things)), _slots(things))
    if fire and people:
        distances = [fire[0].distance(person) for person in people]
        near = [p for p, d in zip(people, distances, strict=True) if d <= NEAR_PX]
        if near or min(distances) > FAR_PX:
            about = _slots(fire + (near or people))
            answer = _yes_no(bool(near))
            yield Question("hazard", "near_fire", "is a person near the fire ?", answer, about)


def _counts(objects: list[_Object], by_kind: dict[str, list[_Object]]) -> Iterator[Question]:
    counted = [
        (f"count_{group}", group, [t for t in objects if t.kind in kinds])
        for group, kinds in GROUPS.items()
    ]
    counted += [("count_kind", p, by_kind.get(kind, [])) for kind, p in PLURALS.items()]
    counted += [
        ("count_colour", f"{colour} things", [t for t in objects if t.colour == colour])
        for colour in COLOURS
        if _LOOKALIKE.get(colour) not in by_kind
    ]
    for subkind, plural, things in counted:
        if len(things) < len(NUMBERS):
            text = f"how many {plural} are there ?"
            yield Question("counting", subkind, text, NUMBERS[len(things)], _slots(things))


def _looks(
    objects: list[_Object], by_kind: dict[str, list[_Object]], single: dict[str, _Object]
) -> Iterator[Question]:
    for kind, thing in single.items():
        if thing.colour:
            text = f"what colour is the {kind} ?"
            yield Question("scene", "colour", text, thing.colour, (thing.slot,))
        answer = "large" if thing.large else "small"
        yield Question("scene", "size", f"is the {kind} small or large ?", answer, (thing.slot,))
    for colour in COLOURS:
        things = [t for t in objects if t.colour == colour]
        if len(things) == 1 and _LOOKALIKE.get(colour) not in by_kind:
            text = f"what is {colour} ?"
            yield Question("scene", "what_is_colour", text, things[0].kind, _slots(things))


def _presence(by_kind: dict[str, list[_Object]]) -> Iterator[Question]:
    for kind in KINDS:
        if kind in ("fire", "smoke") or (kind == "person" and "worker" in by_kind):
            continue
        things = by_kind.get(kind, [])
        text = f"is there a {kind} ?"
        yield Question("scene", "exists", text, _yes_no(bool(things)), _slots(things))


def _places(objects: list[_Object], single: dict[str, _Object]) -> Iterator[Question]:
    for kind, thing in single.items():
        aside = min(abs(thing.x - _MIDDLE), abs(thing.y - _MIDDLE))
        if aside >= MIDLINE_PX:
            place = QUADRANTS[2 * (thing.y > _MIDDLE) + (thing.x > _MIDDLE)]
            yield Question("scene", "where", f"where is the {kind} ?", place, (thing.slot,))
    for number, quadrant in enumerate(QUADRANTS):
        inwards_x, inwards_y = (-1, 1)[number % 2], (-1, 1)[number // 2]
        depths = [
            (min(inwards_x * (t.x - _MIDDLE), inwards_y * (t.y - _MIDDLE)), t) for t in objects
        ]
        inside = [(depth, t) for depth, t in depths if depth > -MIDLINE_PX]
        if len(inside) == 1 and inside[0][0] >= MIDLINE_PX:
            text = f"what is in the {quadrant} corner ?"
            yield Question("scene", "corner", text, inside[0][1].kind, (inside[0][1].slot,))


def _relations(objects: list[_Object], single: dict[str, _Object]) -> Iterator[Question]:
    for kind, thing in single.items():
        others = sorted((thing.distance(t), t.slot, t) for t in objects if t is not thing)
        if len(others) > 1 and others[0][0] <= CLOSEST_RATIO * others[1][0]:
            nearest = others[0][2]
            text = f"what is closest to the {kind} ?"
            yield Question("scene", "closest", text, nearest.kind, (thing.slot, nearest.slot))
    for one, other in permutations(single.values(), 2):
        about = (one.slot, other.slot)
        for subkind, words, gap in (
            ("left_of", "left of", other.x - one.x),
            ("above", "above", other.y - one.y),
        ):
            if abs(gap) >= ASIDE_PX:
                text = f"is the {one.kind} {words} the {other.kind} ?"
                yield Question("scene", subkind, text, _yes_no(gap > 0), about)


@cache
def _weights() -> dict[tuple[str, str], float]:
    table: dict[str, dict[str, float]] = json.loads(WEIGHTS_FILE.read_text(encoding="utf-8"))
    return {(s, a): weight for s, answers in table.items() for a, weight in answers.items()}
