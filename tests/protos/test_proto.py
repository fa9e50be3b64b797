"""The .proto, its stubs and the Python constants say the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from protos import frame, generate
from protos.frame import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]


def test_stubs_are_up_to_date() -> None:
    assert generate.main(["--check"]) == 0


def test_a_stale_stub_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "protos/neuralbridge/v1"
    shutil.copytree(ROOT / "protos/neuralbridge/v1", folder)
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert generate.main(["--check"]) == 0
    with (folder / "bridge_pb2.pyi").open("a") as stub:
        stub.write("# edited by hand\n")
    assert generate.main(["--check"]) == 1
    assert "bridge_pb2.pyi is out of date" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


def test_the_protocol_passes_buf_lint() -> None:
    buf = Path(sys.executable).with_name("buf")
    if not buf.exists():
        pytest.skip("buf is not installed")
    run = subprocess.run([buf, "lint", "protos"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_service_and_methods_are_the_published_ones() -> None:
    service = pb.DESCRIPTOR.services_by_name["Bridge"]
    assert service.full_name == frame.SERVICE
    kinds = {m.name: (m.client_streaming, m.server_streaming) for m in service.methods}
    assert kinds == {
        "Negotiate": (False, False),
        "FetchEncoder": (False, True),
        "Infer": (True, True),
        "Events": (False, True),
        "Ask": (False, True),
        "Feedback": (False, False),
        "Shadow": (True, False),
    }
    assert all(hasattr(bridge_pb2_grpc.BridgeServicer, name) for name in kinds)


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (pb.InferRequest, {"request_id": 1, "frame": 2, "question": 3, "max_new_tokens": 4}),
        (pb.Frame, {"header": 1, "payload": 2, "digest": 3}),
        (
            pb.InferEvent,
            {
                "request_id": 1,
                "frame_number": 2,
                "accepted": 3,
                "token": 4,
                "answer": 5,
                "refused": 6,
                "rate_advice": 7,
            },
        ),
    ],
)
def test_published_field_numbers_never_change(message: type, numbers: dict[str, int]) -> None:
    seen = {entry.name: entry.number for entry in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    assert seen == numbers


def test_limits_have_the_same_fields_on_the_wire_and_survive_it() -> None:
    assert [f.name for f in fields(Limits)] == [f.name for f in pb.Limits.DESCRIPTOR.fields]
    limits = Limits(1, 2, 3, 4, 5, 6, 7, 8)
    wire = limits.to_proto().SerializeToString()
    assert Limits.from_proto(pb.Limits.FromString(wire)) == limits


def test_limits_that_a_peer_leaves_out_are_refused() -> None:
    message = Limits().to_proto()
    message.ClearField("max_tokens")
    with pytest.raises(frame.FrameMalformedError, match="max_tokens"):
        Limits.from_proto(message)
