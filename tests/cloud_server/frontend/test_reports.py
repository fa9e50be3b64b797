"""Reports of scenes, in bounded memory."""

from __future__ import annotations

from cloud_server.frontend.reports import Reports
from protos.neuralbridge.v1 import bridge_pb2 as pb


def test_reports_of_all_sessions_together_are_bounded() -> None:
    reports = Reports(100)
    for number in range(1000):
        reports.put((b"%d" % (number % 7), number), (pb.DistortionReport(), "", [], 0.5))
    assert len(reports) == 100
    assert reports.get((b"%d" % (999 % 7), 999)) is not None and reports.get((b"0", 0)) is None
