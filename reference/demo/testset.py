"""The pictures and questions of a run, with the true answers.

Pictures come from the same `yard://` source that the agent opens, true answers from its scenes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from edge_agent.sources import open_source
from projector.codec.answers import same_answer
from reference.yard import Scenes, list_questions, sample_scenes


@dataclass(frozen=True)
class Asked:
    """One question about one picture."""

    picture: int
    text: str
    kind: str
    truth: str


@dataclass
class TestSet:
    """The first `count` pictures of a split, with the questions that the source itself asks.

    Attributes:
        split: split of the yard.
        pictures: RGB, in order.
        names: names of the captures, as the agent reports them.
        asked: every question, grouped by picture.
    """

    __test__ = False  # not a test class, whatever pytest thinks of the name

    split: str
    pictures: list[Image.Image]
    names: list[str]
    asked: list[Asked]
    scenes: Scenes = field(repr=False)
    _answers: dict[int, dict[str, tuple[str, str]]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, split: str, count: int, questions: int) -> TestSet:
        """Render the pictures and note the true answers.

        Args:
            split: "validation", "test" or "shifted".
            count: number of pictures.
            questions: questions about each.

        Raises:
            SourceError: the source refuses the split or the count.
            RuntimeError: a question of the source has no answer in its scene.
        """
        uri = source_uri(split, count, questions)
        captures = list(open_source(uri))
        pictures = [c.picture for c in captures if c.picture is not None]
        if len(pictures) != len(captures):
            raise RuntimeError(f"{uri}: a capture brings no picture")
        made = cls(
            split, pictures, [c.name for c in captures], [], sample_scenes(split, 0, len(captures))
        )
        for index, capture in enumerate(captures):
            known = made._known(index)
            for text in capture.questions:
                if text not in known:
                    raise RuntimeError(f"{capture.name}: {text!r} has no answer in its scene")
                kind, truth = known[text]
                made.asked.append(Asked(index, text, kind, truth))
        return made

    def _known(self, picture: int) -> dict[str, tuple[str, str]]:
        if picture not in self._answers:
            questions = list_questions(self.scenes, picture)
            self._answers[picture] = {q.text: (q.kind, q.answer) for q in questions}
        return self._answers[picture]

    def truth_in(self, picture: int, text: str) -> str | None:
        """The true answer to `text` asked about `picture`; None if the scene gives none."""
        found = self._known(picture).get(text)
        return found[1] if found else None

    def others(self) -> list[int]:
        """For every question, the next picture (wrapping around) in which it has an answer.

        So the control "another picture's cache" is only asked what its picture can answer. If no
        other picture answers a question, it is the very next one.
        """
        count = len(self.pictures)
        chosen = []
        for asked in self.asked:
            steps = ((asked.picture + step) % count for step in range(1, count))
            fitting = (j for j in steps if self.truth_in(j, asked.text) is not None)
            chosen.append(next(fitting, (asked.picture + 1) % count))
        return chosen

    def right(self, answers: list[str]) -> list[bool]:
        """Which of the answers, one per question, are right."""
        return [same_answer(a, q.truth) for a, q in zip(answers, self.asked, strict=True)]

    @property
    def clusters(self) -> list[int]:
        """The picture of every question, for intervals."""
        return [q.picture for q in self.asked]


def source_uri(split: str, count: int, questions: int) -> str:
    """The `yard://` address of the first `count` pictures of a split."""
    return f"yard://{split}?count={count}&questions={questions}"
