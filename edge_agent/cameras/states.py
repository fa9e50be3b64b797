"""The states that a camera can be in, and which of them an error means."""

from __future__ import annotations

import errno
from typing import Final

STATES: Final = {
    "waiting": "no process runs: the next start is due after a pause",
    "starting": "its process runs, no frame came yet",
    "seeing": "frames come",
    "ended": "its file has ended",
    "device_busy": "another program, or a process that has not ended yet, holds the device",
    "no_device": "the device or file is not there: unplugged, or a wrong path",
    "wrong_device": "the path is not a camera, or the camera refuses the size or format",
    "no_permission": "this user may not open the device",
    "unauthorized": "the camera refuses user or password",
    "not_found": "the server is there, the stream is not",
    "unreachable": "nothing answers at the address",
    "unreadable": "what comes is no video that can be decoded",
    "no_decoder": "the decoder for this kind of address is not installed",
    "mask": "a mask cannot be read, so the camera must not be opened",
    "silent": "frames stopped, or the first one never came",
    "slow": "fewer than half the frames that it gave at first",
    "frozen": "the same picture over and over",
    "memory": "its process took more memory than it may",
    "crashed": "its process ended by itself",
}
"""By name, what each means; the `state` label of the metric `camera_state`."""

ADVICE: Final = {
    "device_busy": "end the program that holds it (fuser /dev/video0)",
    "no_device": "plug it in, or correct the path (v4l2-ctl --list-devices)",
    "wrong_device": "take the camera's other number, or leave out width, height and format",
    "no_permission": "add this user to the group video",
    "unauthorized": "correct user and password in the address",
    "not_found": "correct the path of the address: the camera's manual has it",
    "unreachable": "check address, cable and network",
    "unreadable": "try by=gstreamer or by=pyav, or another transport",
    "no_decoder": "install what the cause names",
    "mask": "restore the file of the mask",
    "silent": "look at the camera; raise open_s or stall_s if it is only slow",
    "slow": "look at the camera and its network",
    "frozen": "restart the camera; frozen_s=0 if it shows a still picture on purpose",
    "memory": "raise --camera-memory-mib if its pictures are large",
    "crashed": "report it if it repeats",
}
"""What to do in each state that is a failure. The camera is tried again in any case."""

_BY_NUMBER: Final = {
    errno.EBUSY: "device_busy",
    errno.ENOENT: "no_device",
    errno.ENODEV: "no_device",
    errno.ENXIO: "no_device",
    errno.ENOTTY: "wrong_device",
    errno.EINVAL: "wrong_device",
    errno.EISDIR: "wrong_device",
    errno.EACCES: "no_permission",
    errno.EPERM: "no_permission",
    errno.ECONNREFUSED: "unreachable",
    errno.ECONNRESET: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ETIMEDOUT: "unreachable",
    errno.EPIPE: "unreachable",
}


class CameraFailure(Exception):
    """A camera cannot be opened or read.

    Args:
        state: one of `STATES`.
        cause: in words, without credentials.
    """

    def __init__(self, state: str, cause: str) -> None:
        super().__init__(cause)
        self.state, self.cause = state, cause


def state_of(error: BaseException, network: bool) -> str:
    """The state that an error means.

    Args:
        error: from opening or reading.
        network: whether the camera is reached over a network.
    """
    if isinstance(error, CameraFailure):
        return error.state
    name = type(error).__name__  # PyAV's classes; it may not be installed
    if name in ("HTTPUnauthorizedError", "HTTPForbiddenError"):
        return "unauthorized"
    if name == "HTTPNotFoundError":
        return "not_found"
    if name == "ExitError":  # FFmpeg's timeout
        return "silent"
    if name in ("InvalidDataError", "DecoderNotFoundError", "DemuxerNotFoundError"):
        return "unreadable"
    if isinstance(error, OSError) and error.errno in _BY_NUMBER:
        return _BY_NUMBER[error.errno]
    return "unreachable" if network and isinstance(error, OSError) else "unreadable"
