"""GStreamer's elements wait for a key frame after a loss, and give no damaged picture."""

from __future__ import annotations

import ctypes
import subprocess
from typing import Any

import pytest

from edge_agent.cameras import gstreamer
from edge_agent.sources.address import Address
from tests.edge_agent.cameras.test_rtsp import PYTHON, SERVER


def test_every_element_that_can_waits_for_a_key_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = gstreamer.library()
    if libraries is None:
        pytest.skip("no GStreamer: make gstreamer")
    gst, objects = libraries[0], ctypes.CDLL("libgobject-2.0.so.0")
    gst.gst_element_get_factory.restype = ctypes.c_void_p
    gst.gst_object_get_name.restype = ctypes.c_char_p
    elements: list[int] = []
    switch_on = gstreamer._switch_on

    def noting(gst: Any, line: Any) -> Any:
        first = switch_on(gst, line)
        note = gstreamer._ADDED(lambda _line, _bin, element, _data: elements.append(element))
        objects.g_signal_connect_data(line, b"deep-element-added", note, None, None, 0)
        return first, note

    monkeypatch.setattr(gstreamer, "_switch_on", noting)
    with subprocess.Popen([PYTHON, str(SERVER)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ports = server.stdout.readline().split()
            if not ports:
                pytest.skip("no RTSP server: make gstreamer")
            address = Address.parse(f"rtsp://127.0.0.1:{ports[0]}/live?by=gstreamer")
            shots = gstreamer.GstreamerReader(address, 10.0).shots()
            next(shots)
            found = {name: _property(gst, objects, elements, *name) for name in WANTED}
            shots.close()
        finally:
            server.kill()
    assert found == WANTED


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ("", "video/x-raw,width=1280,height=720"),
        ("width=320&height=180", "video/x-raw,width=320,height=180"),
        ("format=mjpeg", "image/jpeg,width=1280,height=720;image/jpeg"),
        ("format=yuyv422&width=320&height=180", "video/x-raw,format=YUY2,width=320,height=180"),
    ],
)
def test_a_video_device_is_asked_for_its_format_and_size(options: str, first: str) -> None:
    address = Address.parse(f"v4l2:///dev/video0?by=gstreamer&{options}")
    line = gstreamer.pipeline(address, False, 10.0)
    assert f'capsfilter caps="{first}' in line
    libraries = gstreamer.library()
    if libraries is None or not gstreamer.has(libraries[0], "v4l2src"):
        pytest.skip("no GStreamer: make gstreamer")
    error = ctypes.c_void_p()
    libraries[0].gst_parse_launch.restype = ctypes.c_void_p
    assert libraries[0].gst_parse_launch(line.encode(), ctypes.byref(error)) and not error


WANTED = {
    ("rtph264depay", "wait-for-keyframe"): 1,
    ("rtph264depay", "request-keyframe"): 1,
    ("avdec_h264", "output-corrupt"): 0,
}


def _property(gst: Any, objects: Any, elements: list[int], factory: str, name: str) -> int:
    """The value of a switch of the element that a factory made; -1 if there is none."""
    value = ctypes.c_int(-1)
    for element in map(ctypes.c_void_p, elements):
        made = ctypes.c_void_p(gst.gst_element_get_factory(element))
        if gst.gst_object_get_name(made) == factory.encode():
            objects.g_object_get(element, name.encode(), ctypes.byref(value), None)
    return value.value
