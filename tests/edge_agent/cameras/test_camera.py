"""One camera's process: what it hands over, and what follows when it hangs, leaks or dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from edge_agent.cameras.camera import Camera, open_source
from edge_agent.cameras.gstreamer import library
from edge_agent.cameras.states import ADVICE, STATES, state_of
from edge_agent.metrics import Metrics
from edge_agent.sources.address import Address
from tests.edge_agent.cameras.clips import clip, textured, with_faulty_metadata
from tests.edge_agent.cameras.watched_camera import QUICK, Watched, children, value, wait_for

RESTARTS = 300 if os.environ.get("NEURAL_BRIDGE_FAULTS") == "full" else 4
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clips") / "moving.mp4")


def test_a_file_gives_every_picture_once_with_its_number_and_ends(moving: Path) -> None:
    source = open_source(f"file://{moving}?name=gate")
    captures = list(source)
    assert [capture.name for capture in captures] == [f"gate-{n:06d}" for n in range(1, 31)]
    assert [capture.number for capture in captures] == list(range(1, 31))
    for shift, capture in enumerate(captures):
        assert capture.picture is not None and capture.error is None
        white = np.asarray(capture.picture)[18, :, 0] > 150
        assert white[shift + 2 : shift + 14].all() and not white[shift + 20 :].any()
        assert abs(capture.captured_at - time.time()) < 60
        assert capture.captured_monotonic_s is not None and capture.camera == "gate"
    assert source.state == "ended" and not children()


@pytest.mark.quick(1)
@pytest.mark.parametrize(("option", "count"), [("fps=5", 15), ("fps=2", 6), ("fps=100", 30)])
def test_a_file_is_thinned_by_its_own_clock(moving: Path, option: str, count: int) -> None:
    assert len(list(open_source(f"file://{moving}?{option}"))) == count


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("option", "size"),
    [("width=32", (32, 24)), ("height=96", (128, 96)), ("width=40&height=20", (40, 20))],
)
def test_pictures_have_the_size_that_is_asked_for(
    moving: Path, option: str, size: tuple[int, int]
) -> None:
    captures = list(open_source(f"file://{moving}?fps=1&{option}"))
    assert {capture.picture.size for capture in captures if capture.picture} == {size}


@pytest.mark.quick(2)
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "mjpeg", "libvpx-vp9"])
def test_every_picture_of_an_undamaged_file_comes_whatever_its_codec(
    tmp_path: Path, codec: str
) -> None:
    """With pictures that depend on later ones, and decoders that work on several at once."""
    path = clip(tmp_path / "clip.mkv", 60, rate=60, size=(320, 240), codec=codec)
    source = open_source(f"file://{path}")
    assert [capture.error for capture in source] == [None] * 60
    assert value(source, "frames_dropped_total", cause="damaged") == 0


def test_a_file_that_is_no_video_ends_with_one_typed_error(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(os.urandom(5000))
    (capture,) = open_source(f"file://{tmp_path}/clip.mp4?name=gate")
    assert capture.error is not None and capture.error.name == "source"
    assert "unreadable" in capture.error.message


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_damage_in_the_middle_costs_pictures_up_to_the_next_key_frame_and_shows_none_smeared(
    tmp_path: Path, seed: int
) -> None:
    path = textured(tmp_path / "clip.ts")
    whole = [np.asarray(each.picture, np.int16) for each in open_source(f"file://{path}")]
    assert len(whole) == 90
    rng, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    for at in rng.integers(20_000, len(data) - 3000, 3):
        data[at : at + 600] = rng.bytes(600)
    path.write_bytes(data)
    camera = open_source(f"file://{path}")
    captures = list(camera)
    assert camera.state == "ended" and 40 <= len(captures) < 90
    near = [
        min(np.abs(np.asarray(each.picture, np.int16) - one).mean() for one in whole)
        for each in captures
    ]
    assert sum(away > 3 for away in near) <= 2  # a lost picture that the stream does not tell of
    assert near[-1] < 3
    assert value(camera, "frames_dropped_total", cause="damaged") > 0
    assert value(camera, "frames_dropped_total", cause="no_key_frame") > 0


def test_a_camera_that_always_writes_faulty_metadata_is_seen(tmp_path: Path) -> None:
    camera = open_source(f"file://{with_faulty_metadata(tmp_path / 'clip.h264')}")
    captures = list(camera)
    assert camera.state == "ended" and len(captures) == 90
    assert value(camera, "frames_dropped_total", cause="damaged") <= 5


@pytest.mark.slow
def test_a_process_that_hangs_is_killed_and_replaced(moving: Path, watch: Callable) -> None:
    """It is stopped like a decoder that blocks in C: no signal handler of its own would run."""
    address = Address.parse(f"file://{moving}?realtime=1&loop=1&stall_s=0.6&name=gate")
    seen = watch(Camera(address, patience=QUICK))
    wait_for(lambda: seen.taken > 2)
    (child,) = children()
    os.kill(child.pid, signal.SIGSTOP)
    wait_for(lambda: value(seen.camera, "restarts_total", cause="silent") == 1)
    taken = seen.taken
    wait_for(lambda: seen.taken > taken + 1)
    assert not psutil.pid_exists(child.pid) and len(children()) == 1


@pytest.mark.slow
def test_the_same_picture_over_and_over_restarts_a_live_camera(
    tmp_path: Path, watch: Callable
) -> None:
    still = clip(tmp_path / "still.avi", frames=100, still=True, codec="mjpeg")
    address = Address.parse(f"file://{still}?realtime=1&loop=1&frozen_s=1.5&name=gate")
    seen = watch(Camera(address, patience=QUICK))
    wait_for(lambda: value(seen.camera, "restarts_total", cause="frozen") >= 1)


def test_a_process_that_takes_too_much_memory_is_replaced(moving: Path, watch: Callable) -> None:
    address = Address.parse(f"file://{moving}?realtime=1&loop=1&name=gate")
    seen = watch(Camera(address, patience=replace(QUICK, memory_bytes=1 << 20)))
    wait_for(lambda: value(seen.camera, "restarts_total", cause="memory") >= 1)


@pytest.mark.slow
def test_the_newest_picture_wins_and_the_others_are_counted(moving: Path) -> None:
    camera = open_source(f"file://{moving}?realtime=1&name=gate&fps=100")
    camera.metrics = Metrics()
    captures = iter(camera)
    first = next(captures)
    wait_for(lambda: value(camera, "frames_total") >= 20)
    second = next(captures)
    assert first.number == 1 and second.number is not None and second.number >= 20
    left = list(captures)
    assert value(camera, "motion_seconds") > 0
    dropped = value(camera, "frames_dropped_total", cause="newer")
    assert value(camera, "frames_total") == 2 + len(left) + dropped


@pytest.mark.slow
def test_restarts_leave_no_descriptor_process_or_memory_behind(
    moving: Path, watch: Callable
) -> None:
    address = Address.parse(f"file://{moving}?realtime=1&loop=1&name=gate")
    seen = watch(Camera(address, patience=QUICK))
    wait_for(lambda: seen.taken > 1)
    before = psutil.Process().num_fds()
    for _ in range(RESTARTS):
        taken = seen.taken
        for child in children():
            child.kill()
        wait_for(lambda: seen.taken > taken)  # noqa: B023
    assert psutil.Process().num_fds() <= before + 1
    assert Path("/proc/self/maps").read_text().count("memfd:camera") <= 2
    assert not [c for c in psutil.Process().children() if c.status() == psutil.STATUS_ZOMBIE]
    assert value(seen.camera, "restarts_total", cause="crashed") >= 0.9 * RESTARTS


_AGENT = """
import sys
from edge_agent.cameras.camera import open_source
for capture in open_source(sys.argv[1]):
    print(capture.name, flush=True)
"""


@pytest.mark.slow
def test_no_process_outlives_an_agent_that_is_killed(moving: Path) -> None:
    uri = f"file://{moving}?realtime=1&loop=1&name=gate"
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None and agent.stdout.readline() == "gate-000001\n"
        begun = [child.pid for child in psutil.Process(agent.pid).children()]
        agent.kill()
    assert len(begun) == 1
    wait_for(lambda: not psutil.pid_exists(begun[0]))


@pytest.mark.quick(1)
@pytest.mark.parametrize("by", ["pyav", "gstreamer"])
@pytest.mark.parametrize(
    ("device", "state"), [("/dev/video77", "no_device"), ("/dev/null", "wrong_device")]
)
def test_a_camera_that_cannot_be_opened_is_said_once_and_tried_again(
    watch: Callable[[Camera], Watched], by: str, device: str, state: str
) -> None:
    if by == "gstreamer" and library() is None:
        pytest.skip("no GStreamer: make gstreamer")
    watched = watch(Camera(Address.parse(f"v4l2://{device}?by={by}"), "gate", patience=QUICK))
    wait_for(lambda: value(watched.camera, "restarts_total", cause=state) >= 2)
    assert [event["state"] for event in watched.events()] == [state]
    assert [event["advice"] for event in watched.events()] == [ADVICE[state]]
    assert watched.camera.state == state and watched.taken == 0


def test_a_camera_of_a_jetson_says_what_is_missing_elsewhere(
    watch: Callable[[Camera], Watched],
) -> None:
    watched = watch(Camera(Address.parse("csi://0"), "gate", patience=QUICK))
    wait_for(lambda: value(watched.camera, "restarts_total", cause="no_decoder") >= 1)


@pytest.mark.slow
def test_a_mask_that_disappears_stops_its_camera_until_it_is_back(
    moving: Path, watch: Callable[[Camera], Watched], tmp_path: Path
) -> None:
    mask = tmp_path / "gate.png"
    drawn = Image.new("RGB", (8, 8), "white")
    drawn.paste("black", (0, 0, 8, 8))
    drawn.save(mask)
    address = Address.parse(f"file://{moving}?realtime=1&loop=1&name=gate")
    watched = watch(Camera(address, masks=[str(mask)], patience=QUICK))
    wait_for(lambda: watched.taken > 1)
    mask.rename(tmp_path / "away.png")
    for child in children():
        child.kill()
    wait_for(lambda: watched.camera.state == "mask")
    taken = watched.taken
    (tmp_path / "away.png").rename(mask)
    wait_for(lambda: watched.taken > taken)
    assert watched.last is not None and watched.last.picture is not None
    assert not np.asarray(watched.last.picture).any()


@pytest.mark.parametrize(
    ("number", "state"),
    [(errno.EBUSY, "device_busy"), (errno.ENODEV, "no_device"), (errno.EACCES, "no_permission")],
)
def test_what_the_system_says_about_a_device_is_a_state(number: int, state: str) -> None:
    assert state_of(OSError(number, "x"), network=False) == state
    assert set(STATES) >= {state, state_of(ValueError(), False), state_of(OSError(), True)}


def test_every_state_that_is_a_failure_says_what_to_do() -> None:
    assert set(STATES) - set(ADVICE) == {"waiting", "starting", "seeing", "ended"}
    assert all(ADVICE.values())


def test_a_cameras_process_loads_neither_settings_nor_the_uplink() -> None:
    """Each camera has one, and it is started again after each failure."""
    look = "import sys, edge_agent.cameras.process; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "numpy" in loaded and not loaded & {"pydantic", "grpc", "google.protobuf", "torch"}
