"""Sequences: one camera, few things moving, labels that hold for what can be made out."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from reference.yard import KINDS, Scenes, list_questions, render, sample_scenes, sample_sequence
from reference.yard.sequence import CLEAR, GONE

FRAMES = 120


@pytest.mark.parametrize("split", ["train", "shifted"])
def test_a_frame_is_the_same_in_any_batch(split: str) -> None:
    together = sample_sequence(split, 7, 0, 40)
    alone = sample_sequence(split, 7, 33, 1)
    np.testing.assert_array_equal(render(together.drawn[33:34]), render(alone.drawn))
    assert together.ask(33, 6, 1) == alone.ask(0, 6, 1)
    np.testing.assert_array_equal(together.moving, alone.moving)


def test_every_frame_has_its_own_noise_and_nothing_but_noise_light_and_movers_changes() -> None:
    frames = sample_sequence("validation", 3, 0, FRAMES).drawn
    assert len(set(frames.noise_seed.tolist())) == FRAMES
    assert len(set(frames.index.tolist())) == FRAMES
    for name in ("kind", "colour", "size_px", "angle", "mirror", "ground", "ground_x", "fog"):
        values = getattr(frames, name)
        np.testing.assert_array_equal(values, np.broadcast_to(values[0], values.shape))
    still = sample_sequence("validation", 3, 0, 2)
    noisy, clean = render(still.drawn).astype(int), render(still.drawn, noise=False).astype(int)
    assert np.abs(noisy[0] - noisy[1]).mean() > np.abs(clean[0] - clean[1]).mean()


def test_movers_move_smoothly_and_the_rest_stand_still() -> None:
    moved = np.zeros(4, dtype=int)
    for number in range(60):
        found = sample_sequence("test", number, 0, FRAMES)
        places = np.stack([found.drawn.x, found.drawn.y]).astype(np.float64)
        steps = np.hypot(*np.diff(places, axis=1))
        assert not steps[:, ~found.moving].any()
        assert steps.max() < 12
        bends = np.hypot(*np.diff(places, n=2, axis=1))
        assert bends.max() < 3  # no jump, no kink
        assert (np.ptp(places, axis=1)[:, found.moving].max(axis=0) > 10).all()
        moved[found.moving.sum()] += 1
    assert moved[1:].sum() > 50 and moved[2:].sum() > 15


def test_light_drifts_slowly() -> None:
    frames = sample_sequence("test", 5, 0, 900).drawn
    for name, least, most in (("brightness", 0.05, 0.004), ("warmth", 0.03, 0.001)):
        values = getattr(frames, name)
        assert np.ptp(values) > least
        assert np.abs(np.diff(values)).max() < most


def test_objects_leave_come_back_and_pass_in_front_of_others() -> None:
    left = back = hidden = 0
    for number in range(40):
        found = sample_sequence("train", number, 0, 400)
        gone = found.share[:, found.moving] < GONE
        left += int(gone.any(axis=0).sum())
        back += int((gone[:-1] & ~gone[1:]).any(axis=0).sum())
        there = np.arange(6) < found.drawn.n_objects[:, None]
        hidden += int((there & ~found.moving & (found.share < CLEAR)).any())
    assert left > 15 and back > 15 and hidden > 3


def visible(before: np.ndarray, after: np.ndarray) -> int:
    return int((np.abs(before.astype(int) - after.astype(int)).max(axis=2) > 12).sum())


@pytest.mark.slow
def test_what_is_labelled_shows_in_the_picture_and_what_is_gone_does_not() -> None:
    for number in range(12):
        found = sample_sequence("validation", number, 0, FRAMES)
        for frame in (30, 60, 90):
            rows = slice(frame, frame + 1)
            whole = render(found.drawn[rows], noise=False)[0]
            for slot in range(int(found.drawn.n_objects[frame])):
                other = sample_sequence("validation", number, frame, 1).drawn
                other.size_px[0, slot] = 0.5  # shrinks the object away
                changed = visible(whole, render(other, noise=False)[0])
                share = found.share[frame, slot]
                if share >= CLEAR:
                    assert changed >= 60, KINDS[found.drawn.kind[frame, slot]]
                if share == 0 and found.moving[slot]:
                    assert changed < 120


def test_an_object_keeps_its_identity_while_it_is_seen() -> None:
    found = sample_sequence("test", 11, 0, 300)
    seen, slots = found.seen(), found.identities()
    for frame in range(0, 300, 7):
        count = int(seen.n_objects[frame])
        assert (slots[frame, :count] >= 0).all() and (slots[frame, count:] == -1).all()
        chosen = slots[frame, :count]
        for name in ("kind", "colour", "x", "y"):
            np.testing.assert_array_equal(
                getattr(seen, name)[frame, :count], getattr(found.drawn, name)[frame, chosen]
            )
        assert set(chosen) == set(np.flatnonzero(found.share[frame] >= CLEAR))


def test_nothing_is_asked_that_hangs_on_a_half_hidden_object() -> None:
    asked = dropped = 0
    for number in range(40):
        found = sample_sequence("test", number, 40, 1)
        clear, most = found.seen(CLEAR), found.seen(GONE)
        for question in found.ask(0, 6, 0):
            asked += 1
            both = [
                next(q.answer for q in list_questions(scenes, 0) if q.text == question.text)
                for scenes in (clear, most)
            ]
            assert both == [question.answer] * 2
        known = {q.text: q.answer for q in list_questions(clear, 0)}
        listed = {q.text: q.answer for q in found.listed(0)}
        assert listed.items() <= known.items()
        dropped += len(known) - len(listed)
    assert asked > 200 and dropped > 0


def test_a_frame_with_next_to_nothing_in_it_can_be_asked_about() -> None:
    for number in range(200):
        found = sample_sequence("train", number, 0, 1)
        found.share[0, 1:] = 0
        assert "is there a fire ?" in {q.text for q in found.listed(0)}
        assert len(found.ask(0, 4, 0)) == 4


def test_no_sequence_shares_its_scene_with_a_still() -> None:
    stills: Scenes = sample_scenes("test", 0, 2048)
    first = [sample_sequence("test", n, 0, 1).drawn for n in range(300)]
    seeds = {int(s.noise_seed[0]) for s in first}
    assert len(seeds) == 300 and not seeds & set(stills.noise_seed.tolist())


def test_impossible_ranges_are_refused() -> None:
    for number, start, count in ((-1, 0, 1), (0, -1, 1), (0, 0, 0), (1 << 24, 0, 1)):
        with pytest.raises(ValueError, match="expected number"):
            sample_sequence("train", number, start, count)
    with pytest.raises(ValueError, match="unknown split"):
        sample_sequence("dev", 0, 0, 1)


def test_the_sequences_are_frozen() -> None:
    """Another digest is another task: what was measured would have to be measured anew."""
    digest = hashlib.sha256()
    for number in range(4):
        frames = sample_sequence("test", number, 0, 200).drawn
        placed = np.stack([frames.x, frames.y]).round(1).astype(np.float32)
        digest.update((placed + np.float32(0)).tobytes())
    assert digest.hexdigest() == "b82a2a706ffca3ca456792bb877ee6a0b5dc93af571004c7a0da199c40fa0e81"
