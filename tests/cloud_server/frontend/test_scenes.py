"""Held scenes: found by device, made again from their frames' bytes, bounded by tenant."""

from __future__ import annotations

import math

import pytest
from msgspec import structs

from cloud_server.engine.jobs import Job
from cloud_server.frontend.scenes import ENTRY_BYTES, MOST_LINKS, HeldScene, HeldScenes
from protos.neuralbridge.v1 import bridge_pb2 as pb

KEPT = bytes([1, 0, 0, 1])


def job(number: int, base: int = -1, session: str = "s", kept: bytes = KEPT, size: int = 30) -> Job:
    return Job(
        id=number + 1,
        session=session,
        frame_number=number,
        request_id=f"{session}-{number}",
        question="what ?",
        max_new_tokens=6,
        received_ns=0,
        bundle="b",
        point=1,
        kept=kept,
        body=bytes([number % 256]) * size,
        base=base,
        differences=int(base >= 0),
    )


def scene(job: Job, tenant: str = "acme", device: str = "gate-3") -> HeldScene:
    return HeldScene(
        tenant=tenant,
        device=device,
        session_id=job.session,
        frame_number=job.frame_number,
        scene_id=f"id-{job.session}-{job.frame_number}",
        bundle=job.bundle,
        bundle_id="pair",
        bundle_version="1",
        point="fine",
        kept=job.kept,
        grid=(2, 2),
        delta=False,
        payload_bytes=len(job.body),
        distortion=pb.DistortionReport(),
        moments_score=math.nan,
        risk_model=None,
        fallback="",
        warnings=(),
        accepted_at=float(job.frame_number),
    )


def held(most_bytes: int = 1 << 20, most_of: int = 64) -> HeldScenes:
    return HeldScenes(most_bytes, lambda *_: most_of)


def put(scenes: HeldScenes, made: Job, tenant: str = "acme", device: str = "gate-3") -> None:
    scenes.hold(scene(made, tenant, device), made)


def numbers(scenes: HeldScenes, tenant: str = "acme", device: str | None = None) -> list[int]:
    return [scene.frame_number for scene in scenes.of(tenant, device)]


def test_scenes_are_found_by_their_device_alone_the_newest_first() -> None:
    scenes = held()
    told: list[HeldScene] = []
    scenes.changed(told.append)
    for number, (tenant, device) in enumerate(
        [("acme", "gate-3"), ("acme", "yard"), ("other", "gate-3"), ("acme", "gate-3")]
    ):
        put(scenes, job(number), tenant, device)
    latest = scenes.latest("acme", "gate-3")
    assert latest is not None and latest.frame_number == 3
    assert numbers(scenes) == [3, 1, 0] and numbers(scenes, "acme", "yard") == [1]
    assert scenes.get("acme", "gate-3", "id-s-0") is not None
    assert scenes.get("other", "gate-3", "id-s-0") is None
    assert scenes.latest("acme", "nowhere") is None and numbers(scenes, "nobody") == []
    assert [scene.frame_number for scene in told] == [0, 1, 2, 3]


def test_a_delta_frames_scene_is_made_from_its_whole_chain_in_order() -> None:
    scenes = held(most_of=1)  # the bases are no scenes any more, their bytes are still needed
    put(scenes, job(0))
    put(scenes, job(1, base=0, kept=bytes([0, 1, 0, 0])))
    put(scenes, job(2, base=1, kept=bytes([0, 1, 0, 0])))
    assert numbers(scenes) == [2]
    made = scenes.frames(("s", 2))
    assert [again.frame_number for again in made] == [0, 1, 2]
    assert [again.body for again in made] == [job(n).body for n in range(3)]
    assert all(again.question == "" and again.id == 0 for again in made)
    latest = scenes.latest("acme", "gate-3")
    assert latest is not None and latest.rebuildable
    assert latest.kept == bytes([1, 1, 0, 1]), "all tokens known, not only those that changed"


@pytest.mark.parametrize("base", [7, MOST_LINKS - 1], ids=["base unknown", "chain too long"])
def test_a_scene_whose_chain_is_broken_or_too_long_says_so(base: int) -> None:
    scenes = held(most_of=1000)
    put(scenes, job(0))
    if base > 7:
        for number in range(1, base + 1):
            put(scenes, job(number, base=number - 1))
        last = scenes.latest("acme", "gate-3")
        assert last is not None and last.rebuildable and last.frame_number == base
        assert len(scenes.frames(("s", base))) == MOST_LINKS
    put(scenes, job(base + 1, base=base))
    put(scenes, job(base + 2, base=base + 1))
    for number in (base + 1, base + 2):
        found = scenes.get("acme", "gate-3", f"id-s-{number}")
        assert found is not None and not found.rebuildable
        assert scenes.frames(("s", number)) == []
    put(scenes, job(base + 3))
    assert len(scenes.frames(("s", base + 3))) == 1, "a key frame begins anew"


def test_memory_is_bounded_and_the_largest_tenant_loses_its_own_oldest() -> None:
    room = 10 * (ENTRY_BYTES + 38)
    scenes = held(most_bytes=room)
    for number in range(2):
        put(scenes, job(number, session="small"), "small")
    for number in range(50):
        put(scenes, job(number, session="big"), "big", device=f"d{number % 5}")
        assert scenes.bytes <= room
    assert numbers(scenes, "small") == [1, 0]
    assert numbers(scenes, "big") == list(range(49, 41, -1))
    assert scenes.bytes == scenes.bytes_of("small") + scenes.bytes_of("big")


def test_a_frame_larger_than_all_memory_is_not_held_and_nothing_is_left_of_it() -> None:
    scenes = held(most_bytes=1 << 14)
    put(scenes, job(0, size=1 << 15))
    assert (len(scenes), scenes.bytes, scenes.latest("acme", "gate-3")) == (0, 0, None)
    assert scenes.frames(("s", 0)) == []


def test_dropped_scenes_leave_no_memory_and_a_reused_number_is_the_newer_frame() -> None:
    scenes = held()
    for number in range(4):
        put(scenes, job(number, base=number - 1))
    other = structs.replace(job(1), request_id="other", body=b"new")
    put(scenes, other)
    assert scenes.owner(("s", 1)) == "other"
    assert [again.body for again in scenes.frames(("s", 1))] == [b"new"]
    assert [again.frame_number for again in scenes.frames(("s", 3))] == [0, 1, 2, 3]
    assert b"new" not in [again.body for again in scenes.frames(("s", 3))]
    put(scenes, job(9, session="t"), "acme", "yard")
    scenes.forget(lambda tenant, device: (tenant, device) == ("acme", "gate-3"))
    assert numbers(scenes) == [9]
    scenes.forget_bundle("b")
    assert (len(scenes), scenes.bytes, scenes._links, scenes._devices) == (0, 0, {}, {})


def test_the_same_frame_accepted_twice_keeps_its_id() -> None:
    scenes = held()
    put(scenes, job(0))
    again = structs.replace(scene(job(0)), scene_id="another")
    scenes.hold(again, job(0))
    assert [found.scene_id for found in scenes.of("acme")] == ["id-s-0"]
