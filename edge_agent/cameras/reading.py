"""Which reader reads which address: GStreamer where a Jetson's decoders are, PyAV elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

from edge_agent.cameras.gstreamer import JETSON_DECODER, GstreamerReader, has, library
from edge_agent.cameras.link import Job
from edge_agent.cameras.pyav import PyavReader
from edge_agent.cameras.shot import Reader


def reader_for(job: Job) -> Reader:
    """Choose the reader of a camera; the option `by` overrules."""
    address = job.address
    by = "gstreamer" if address.scheme == "csi" else address.options.get("by")
    if by is None:
        found = library()
        on_jetson = found is not None and has(found[0], JETSON_DECODER)
        # Without PyAV, GStreamer's software decoders are better than nothing.
        by = "gstreamer" if on_jetson or (found and find_spec("av") is None) else "pyav"
    if by == "gstreamer":
        return GstreamerReader(address, job.open_s)
    return PyavReader(address, job.open_s, job.stall_s)
