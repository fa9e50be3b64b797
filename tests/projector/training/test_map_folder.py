"""What a map was trained on is known by its bytes."""

from __future__ import annotations

from pathlib import Path

from projector.report import validate_words
from projector.training.dataset import Dataset
from projector.training.map_folder import seen_of
from tests.fakes.tiny_models import picture


def test_what_a_map_has_seen_is_known_by_its_bytes_whatever_it_is_called(
    made: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    picture(3).save(held / "another-name.png")
    picture(500).save(held / "000.png")
    assert seen_of(made, Dataset(held), 2) == 1
    assert seen_of(made / "map.safetensors", Dataset(held), 1) == 0, "000.png comes first"
    assert seen_of(tmp_path, Dataset(held), 2) is None
    assert "not known" in str(validate_words.seen({"pictures": 2, "seen_in_training": None}))
    assert validate_words.seen({"pictures": 2, "seen_in_training": 0}) is None
