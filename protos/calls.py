"""Names that both sides' gRPC calls use: the service, its version, metadata keys."""

from __future__ import annotations

PROTOCOL_VERSION = 1
SERVICE = "neuralbridge.v1.Bridge"
SESSION_METADATA_KEY = "nb-session-bin"
EVENTS_APART = ("nb-events", "apart")
"""Metadata of an Infer call whose events go to the session's Events call."""
WHOLE_ANSWERS = ("nb-answers", "whole")
"""Metadata of an Infer call that gets no Accepted and no Token of a request with a question."""
ACCEPTED_WAIT_KEY = "nb-accepted-wait"
"""Metadata of an Infer call, `MS,COUNT`: how long Accepted events of frames without a question may
wait for each other in the service, and how many. Several events may then come in one message."""
CROP_KEY = "nb-crop"
"""Metadata of an Infer call: the longest crop that the device would send, in bytes."""
MOST_ACCEPTED_WAIT_MS = 60_000
PRIORITIES = ("normal", "alarm", "background")
"""Priorities of requests, by their number on the wire."""
