"""Names that both sides' gRPC calls use: the service, its version, metadata keys."""

from __future__ import annotations

PROTOCOL_VERSION = 1
SERVICE = "neuralbridge.v1.Bridge"
SESSION_METADATA_KEY = "nb-session-bin"
EVENTS_APART = ("nb-events", "apart")
"""Metadata of an Infer call whose events go to the session's Events call."""
PRIORITIES = ("normal", "alarm", "background")
"""Priorities of requests, by their number on the wire."""
