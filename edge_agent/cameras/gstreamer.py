"""Reads a camera with GStreamer's C library: a Jetson's cameras and hardware decoders.

Called by ctypes: Python's bindings belong to the system's Python, which an agent in a virtual
environment does not see, and `gst-launch` would show the address to every user.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from edge_agent.cameras.ring import Pixels
from edge_agent.cameras.shot import Shot
from edge_agent.cameras.states import CameraFailure
from edge_agent.sources.address import Address

INSTALL = "apt-get install gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-libav"
JETSON_DECODER, JETSON_CAMERA = "nvv4l2decoder", "nvarguscamerasrc"
_CAMERA_SIZE = 1280, 720
_NULL, _PLAYING = 1, 4
_END, _ERROR = 1 << 0, 1 << 1
_SECOND_NS = 1_000_000_000
_WAIT_NS = _SECOND_NS // 4
_NO_TIME = 2**64 - 1
_CORRUPTED = 1 << 8
_FLAGS_OFFSET = 16
"""Where a GstMiniObject holds its flags: after its type, reference count and lock."""
_TIME_OFFSET = 72
"""Where a GstBuffer holds its time: after its GstMiniObject and a pointer (64-bit systems)."""
_SWITCHES = {"wait-for-keyframe": b"true", "request-keyframe": b"true", "output-corrupt": b"false"}
"""Switches, where an element has them, by which no picture is given that a loss has damaged: after
it the stream waits for a key frame, and asks the camera for one."""
_FORMATS = {
    "mjpeg": "image/jpeg",
    "h264": "video/x-h264",
    "yuyv422": "video/x-raw,format=YUY2",
    "nv12": "video/x-raw,format=NV12",
    "rgb24": "video/x-raw,format=RGB",
    "gray": "video/x-raw,format=GRAY8",
}
"""GStreamer's words for the formats of a video device."""
_ANY = "video/x-raw", "image/jpeg", "video/x-h264"
_STATES = {
    "not-authorized": "unauthorized",
    "unauthorized": "unauthorized",
    "not found": "not_found",
    "busy": "device_busy",
    "no such file": "no_device",
    "no cameras available": "no_device",
    "cannot identify device": "no_device",
    "isn't a v4l2 driver": "wrong_device",
    "not a capture device": "wrong_device",
    "permission": "no_permission",
    "could not connect": "unreachable",
    "failed to connect": "unreachable",
    "could not open resource": "unreachable",
    "resolv": "unreachable",
    "timeout": "silent",
    "failed to create capturesession": "device_busy",
    "failed to create camera": "device_busy",
}
"""Words in GStreamer's messages, in the order of looking, and the state that they mean."""


class _Error(ctypes.Structure):
    _fields_ = [("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p)]


class _Map(ctypes.Structure):
    _fields_ = [
        ("memory", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("maxsize", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p * 4),
        ("reserved", ctypes.c_void_p * 4),
    ]


_POINTERS = {
    "gst": (
        "gst_parse_launch gst_bin_get_by_name gst_element_get_bus gst_bus_pop_filtered "
        "gst_sample_get_buffer gst_sample_get_caps gst_caps_get_structure gst_element_factory_find"
    ).split(),
    "app": ["gst_app_sink_try_pull_sample"],
}


_ADDED = ctypes.CFUNCTYPE(None, *4 * [ctypes.c_void_p])
"""A handler of the signal `deep-element-added`: pipeline, bin, element, data."""


def library() -> tuple[Any, Any] | None:
    """GStreamer's two libraries, initialised; None if they are not installed."""
    try:
        gst = ctypes.CDLL("libgstreamer-1.0.so.0")
        app = ctypes.CDLL("libgstapp-1.0.so.0")
    except OSError:
        return None
    for name in _POINTERS["gst"]:
        getattr(gst, name).restype = ctypes.c_void_p
    app.gst_app_sink_try_pull_sample.restype = ctypes.c_void_p
    app.gst_app_sink_try_pull_sample.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    gst.gst_init(None, None)
    return gst, app


def has(gst: Any, element: str) -> bool:
    """Whether an element is installed."""
    return bool(gst.gst_element_factory_find(element.encode()))


def pipeline(address: Address, jetson: bool, open_s: float) -> str:
    """The pipeline that reads an address, in `gst-launch`'s language.

    Args:
        address: the camera's.
        jetson: whether a Jetson's decoders and converter are there.
        open_s: longest wait for the server, seconds.
    """
    options = address.options
    width, height = options.get("width"), options.get("height")
    if address.scheme == "csi":
        wide, high = width or _CAMERA_SIZE[0], height or _CAMERA_SIZE[1]
        start = (
            f"{JETSON_CAMERA} sensor-id={int(address.place)} ! "
            f"video/x-raw(memory:NVMM),width={wide},height={high}"
        )
    elif address.scheme == "v4l2":
        start = f"v4l2src device={_quoted(address.place)} ! {_wanted(options)}decodebin"
    elif address.scheme == "file":
        start = f"filesrc location={_quoted(address.place)} ! decodebin"
    else:
        protocols = options.get("transport", "tcp")
        start = (
            f"rtspsrc location={_quoted(address.url)} protocols={protocols} latency=200 "
            f"drop-on-latency=true tcp-timeout={int(open_s * 1e6)} ! decodebin"
        )
    # The Jetson's converter takes pictures out of the decoder's memory; it knows no RGB.
    convert = "nvvidconv ! video/x-raw,format=BGRx ! videoconvert" if jetson else "videoconvert"
    # A live camera keeps one picture: the newest. A file waits until its picture is taken.
    keep = "max-buffers=1 drop=true" if address.scheme != "file" else "max-buffers=2"
    return f"{start} ! {convert} ! video/x-raw,format=RGB ! appsink name=pictures sync=false {keep}"


def _wanted(options: Mapping[str, Any]) -> str:
    """What a video device is asked for: its format, and a size that it may miss.

    By itself GStreamer would take the largest pictures that the device has.
    """
    formats = [_FORMATS[options["format"]]] if "format" in options else list(_ANY)
    wide, high = options.get("width"), options.get("height")
    if not (wide and high):
        wide, high = _CAMERA_SIZE
    sized = [f"{each},width={wide},height={high}" for each in formats]
    return f"capsfilter caps={_quoted(';'.join(sized + formats))} ! "


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class GstreamerReader:
    """Reads one pipeline.

    Args:
        address: of a camera or file.
        open_s: longest wait for the server's answer, seconds.
    """

    def __init__(self, address: Address, open_s: float) -> None:
        self.dropped: Counter[str] = Counter()
        self._address, self._open_s = address, open_s

    def shots(self) -> Iterator[Shot]:
        """See `Reader.shots`."""
        found = library()
        if found is None:
            shown = self._address.shown
            raise CameraFailure("no_decoder", f"{shown} needs GStreamer: {INSTALL}")
        gst, app = found
        jetson = has(gst, JETSON_DECODER)
        if self._address.scheme == "csi" and not has(gst, JETSON_CAMERA):
            cause = f"{self._address.shown} needs {JETSON_CAMERA}: it comes with a Jetson's JetPack"
            raise CameraFailure("no_decoder", cause)
        error = ctypes.POINTER(_Error)()
        text = pipeline(self._address, jetson, self._open_s).encode()
        line = ctypes.c_void_p(gst.gst_parse_launch(text, ctypes.byref(error)))
        if error:
            raise CameraFailure("no_decoder", self._said(error))
        switch = _switch_on(gst, line)
        bus = ctypes.c_void_p(gst.gst_element_get_bus(line))
        sink = ctypes.c_void_p(gst.gst_bin_get_by_name(line, b"pictures"))
        gst.gst_element_set_state(line, _PLAYING)
        try:
            while True:
                sample = app.gst_app_sink_try_pull_sample(sink, _WAIT_NS)
                if sample:
                    shot = _shot(gst, ctypes.c_void_p(sample))
                    if shot is None:
                        self.dropped["damaged"] += 1
                    else:
                        yield shot
                    continue
                if message := gst.gst_bus_pop_filtered(bus, ctypes.c_uint(_ERROR)):
                    self._fail(gst, ctypes.c_void_p(message))
                if gst.gst_bus_pop_filtered(bus, ctypes.c_uint(_END)):
                    return
        finally:
            gst.gst_element_set_state(line, _NULL)
            del switch  # the pipeline may call it until here

    def _fail(self, gst: Any, message: ctypes.c_void_p) -> None:
        """Raise what an error message says."""
        error, more = ctypes.POINTER(_Error)(), ctypes.c_char_p()
        gst.gst_message_parse_error(message, ctypes.byref(error), ctypes.byref(more))
        said = self._said(error)
        words = f"{said} {(more.value or b'').decode(errors='replace')}".lower()
        state = next((state for word, state in _STATES.items() if word in words), "unreadable")
        raise CameraFailure(state, said)

    def _said(self, error: Any) -> str:
        text = (error.contents.message or b"").decode(errors="replace")
        return self._address.scrub(text)


def _switch_on(gst: Any, line: ctypes.c_void_p) -> Any:
    """Set `_SWITCHES` in each element that comes into the pipeline; keep what is returned."""

    def added(_line: int, _bin: int, element: int, _data: int) -> None:
        for name, value in _SWITCHES.items():  # an element without one is left alone
            gst.gst_util_set_object_arg(ctypes.c_void_p(element), name.encode(), value)

    handler = _ADDED(added)
    objects = ctypes.CDLL("libgobject-2.0.so.0")
    objects.g_signal_connect_data.restype = ctypes.c_ulong
    objects.g_signal_connect_data(line, b"deep-element-added", handler, None, None, 0)
    return handler


def _shot(gst: Any, sample: ctypes.c_void_p) -> Shot | None:
    """Copy a picture out of a sample, and give the sample back; None if it is damaged."""
    caps = ctypes.c_void_p(gst.gst_sample_get_caps(sample))
    fields = ctypes.c_void_p(gst.gst_caps_get_structure(caps, 0))
    buffer = ctypes.c_void_p(gst.gst_sample_get_buffer(sample))
    flags = ctypes.c_uint.from_address((buffer.value or 0) + _FLAGS_OFFSET).value
    if flags & _CORRUPTED:
        gst.gst_mini_object_unref(sample)
        return None
    size = []
    for name in (b"width", b"height"):
        number = ctypes.c_int()
        gst.gst_structure_get_int(fields, name, ctypes.byref(number))
        size.append(number.value)
    wide, high = size
    at_ns = ctypes.c_uint64.from_address((buffer.value or 0) + _TIME_OFFSET).value
    place, row = _Map(), (3 * wide + 3) // 4 * 4  # rows begin at multiples of four bytes
    if not gst.gst_buffer_map(buffer, ctypes.byref(place), 1):
        raise CameraFailure("unreadable", "a picture cannot be read from GStreamer's memory")
    if place.size < row * high:
        raise CameraFailure("unreadable", f"a picture of {wide} x {high} has {place.size} bytes")
    samples = np.frombuffer(ctypes.string_at(place.data, row * high), np.uint8)
    pixels: Pixels = samples.reshape(high, row)[:, : 3 * wide].reshape(high, wide, 3)
    gst.gst_buffer_unmap(buffer, ctypes.byref(place))
    gst.gst_mini_object_unref(sample)

    def render(width: int, height: int) -> Pixels:
        if (width, height) == (wide, high):
            return pixels
        picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
        return np.asarray(picture)

    return Shot(None if at_ns == _NO_TIME else at_ns / _SECOND_NS, wide, high, render)
