"""Labels of the yard for task heads, and the folders that heads and maps are trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from projector.heads.labels import read_labels
from projector.training.dataset import Dataset
from reference.export_yard import export, export_sequences
from reference.yard import Scenes, list_questions, sample_scenes, sample_sequence
from reference.yard.labels import (
    CANDIDATES,
    NOW,
    SCENES,
    frame_labels,
    picture_labels,
    tracks,
)
from reference.yard.sequence import CLEAR


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes("train", 0, 2000)


def test_labels_say_what_the_questions_say(scenes: Scenes) -> None:
    for index in range(200):
        known = {q.text: q.answer for q in list_questions(scenes, index)}
        labels = picture_labels(scenes, index)
        assert labels["fire"] == known["is there a fire ?"]
        assert labels.get("count") == known.get("how many vehicles are there ?")
        hazard = labels["scene"].split(",")[0]
        burning = {"fire": known["is there a fire ?"], "smoke": known["is there smoke ?"]}
        assert hazard.split(" and ") == ([k for k, v in burning.items() if v == "yes"] or ["calm"])


def test_all_twenty_scenes_occur_and_none_prevails(scenes: Scenes) -> None:
    found = Counter(picture_labels(scenes, index)["scene"] for index in range(len(scenes)))
    assert set(found) == set(SCENES) and len(SCENES) == 20
    assert found.most_common(1)[0][1] < 0.2 * len(scenes)


def test_frames_are_labelled_as_pictures_unless_something_is_half_hidden() -> None:
    left_out = 0
    for number in range(60):
        frames = sample_sequence("train", number, NOW, 1)
        labels, seen = frame_labels(frames, 0), picture_labels(frames.seen(), 0)
        assert labels.items() <= seen.items()
        left_out += len(seen) - len(labels)
    assert 0 < left_out < 60


def test_a_track_is_one_object_seen_before_and_now_and_half_of_them_moved() -> None:
    moved, labels = Counter[bool](), Counter[int]()
    for number in range(150):
        sequence = sample_sequence("validation", number, 0, NOW + 1)
        for sample in tracks(sequence):
            there = np.stack([sequence.drawn.x[NOW], sequence.drawn.y[NOW]], axis=1)
            slot = np.abs(there / 144 - sample.mark).sum(axis=1).argmin()
            first = np.array([sequence.drawn.x[0, slot], sequence.drawn.y[0, slot]]) / 144
            np.testing.assert_allclose(sample.places[0, sample.label], first.clip(0, 1), atol=1e-6)
            assert sample.places.shape == (2, CANDIDATES, 2)
            assert sequence.share[NOW, slot] >= CLEAR and sample.moving == sequence.moving[slot]
            moved[sample.moving] += 1
            labels[sample.label] += 1
    assert 40 < moved[True] == pytest.approx(moved[False], rel=0.15)
    assert set(labels) == set(range(CANDIDATES))


def test_an_exported_folder_is_what_heads_and_maps_read(tmp_path: Path) -> None:
    export(tmp_path / "stills", "test", 5, 20, 3)
    export_sequences(tmp_path / "sequences", "test", 0, 6, 3)
    stills, sequences = Dataset(tmp_path / "stills"), Dataset(tmp_path / "sequences")
    assert len(stills) == 20 and len(sequences) == 18
    scenes = sample_scenes("test", 5, 20)
    for task in ("fire", "scene"):
        found = read_labels(stills, task)
        assert found.pictures.tolist() == list(range(20)) and not found.objects
        assert list(found.labels) == [picture_labels(scenes, i)[task] for i in range(20)]
    assert len(stills.asked(0)) == 3
    found = read_labels(sequences, "track")
    assert found.objects == CANDIDATES and set(found.kinds) == {"moved", "still"}
    assert len(set(found.clusters.tolist())) == 6
    for picture, before in zip(found.pictures, found.before, strict=True):
        names = [sequences.files[i].name for i in (*before, picture)]
        assert len({name[:-9] for name in names}) == 1 and names == sorted(names)
    assert all(sequences.asked(i) for i in range(18))
