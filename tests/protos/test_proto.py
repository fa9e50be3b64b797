"""The .proto, its stubs and the Python constants say the same."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from protos import generate
from protos.calls import EVENTS_APART, SERVICE, SESSION_METADATA_KEY
from protos.errors import ERRORS, FrameMalformedError
from protos.layout import KVLayout, RopeSpec
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.refusals import ERROR_METADATA_KEY

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
    assert service.full_name == SERVICE
    kinds = {m.name: (m.client_streaming, m.server_streaming) for m in service.methods}
    assert kinds == {
        "Negotiate": (False, False),
        "FetchEncoder": (False, True),
        "Infer": (True, True),
        "Events": (False, True),
        "Ask": (False, True),
        "Feedback": (False, False),
        "Shadow": (True, False),
        "Enrol": (False, False),
        "Renew": (False, False),
        "Attend": (False, True),
        "Report": (False, False),
        "CheckUpdate": (False, False),
        "FetchUpdate": (False, True),
    }
    assert all(hasattr(bridge_pb2_grpc.BridgeServicer, name) for name in kinds)


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (
            pb.InferRequest,
            {
                "request_id": 1,
                "frame": 2,
                "question": 3,
                "max_new_tokens": 4,
                "priority": 7,
                "parcel": 8,
                "crop": 13,
            },
        ),
        (pb.Frame, {"header": 1, "payload": 2, "digest": 3}),
        (pb.FetchEncoderRequest, {"session_id": 1, "encoder_digest": 2, "offset": 3}),
        (pb.Chunk, {"data": 1, "total_bytes": 2, "offset": 3}),
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
                "events": 8,
                "crop_wanted": 9,
            },
        ),
    ],
)
def test_published_field_numbers_never_change(message: type, numbers: dict[str, int]) -> None:
    seen = {entry.name: entry.number for entry in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    assert seen == numbers


def test_figures_that_an_older_service_still_sends_do_not_get_in_the_way() -> None:
    """It had `expected_error = 5` and `bound = 6`; neither number nor name is used again."""
    older = pb.DistortionReport(quantize=0.5).SerializeToString()
    older += struct.pack("<BdBd", 5 << 3 | 1, 0.25, 6 << 3 | 1, 4.0)
    assert pb.Accepted.FromString(b"\x0a" + bytes([len(older)]) + older).distortion.quantize == 0.5
    plain = descriptor_pb2.DescriptorProto()
    pb.DistortionReport.DESCRIPTOR.CopyToProto(plain)
    assert [(r.start, r.end) for r in plain.reserved_range] == [(5, 6), (6, 7)]
    assert plain.reserved_name == ["expected_error", "bound"]


def test_parcels_of_an_older_service_are_not_taken_for_those_of_today() -> None:
    """It told by `max_parcel = 14` that it reads them; their bytes meant something else."""
    older = pb.NegotiateResponse(session_id=b"s").SerializeToString() + b"\x70\x10"
    assert pb.NegotiateResponse.FromString(older).parcel_requests == 0
    plain = descriptor_pb2.DescriptorProto()
    pb.NegotiateResponse.DESCRIPTOR.CopyToProto(plain)
    assert [(r.start, r.end) for r in plain.reserved_range] == [(14, 15)]
    assert plain.reserved_name == ["max_parcel"]


def test_limits_have_the_same_fields_on_the_wire_and_survive_it() -> None:
    assert [f.name for f in fields(Limits)] == [f.name for f in pb.Limits.DESCRIPTOR.fields]
    limits = Limits(1, 2, 3, 4, 5, 6, 7, 8)
    wire = limits.to_proto().SerializeToString()
    assert Limits.from_proto(pb.Limits.FromString(wire)) == limits


def test_limits_that_a_peer_leaves_out_are_refused() -> None:
    message = Limits().to_proto()
    message.ClearField("max_tokens")
    with pytest.raises(FrameMalformedError, match="max_tokens"):
        Limits.from_proto(message)


# ------------------------------------------- what the author of a client in another language reads

PROTO_TEXT = (ROOT / generate.PROTO).read_text(encoding="utf-8")


def section(title: str) -> str:
    """A section of the comments: up to the next blank line and title in capitals."""
    begin = PROTO_TEXT.index(f"// {title}")
    end = re.compile(r"//\n// [A-Z]{3}").search(PROTO_TEXT, begin)
    assert end is not None
    return PROTO_TEXT[begin : end.start()]


def test_the_proto_lists_every_error_as_it_travels() -> None:
    found = re.findall(r"^//   (\d{3}) (\w+), (\w+)(, again)?: ", PROTO_TEXT, re.MULTILINE)
    listed = {int(code): (name, status, bool(again)) for code, name, status, again in found}
    assert listed == {
        code: (cls.name, cls.grpc_status, cls.retryable) for code, cls in ERRORS.items()
    }


def test_a_table_of_errors_that_is_out_of_date_is_noticed() -> None:
    assert generate.with_codes(PROTO_TEXT) == PROTO_TEXT
    for stale in (
        PROTO_TEXT.replace("202 frame_corrupt, DATA_LOSS", "202 frame_corrupt, UNKNOWN"),
        re.sub(r"//   303 .*\n(//       .*\n)*", "", PROTO_TEXT),
    ):
        assert stale != PROTO_TEXT and generate.with_codes(stale) == PROTO_TEXT


def test_the_proto_describes_every_field_of_a_layout() -> None:
    said = section("LAYOUT (")
    for entry in (*fields(KVLayout), *fields(RopeSpec)):
        assert re.search(rf"\b{entry.name}\b", said), entry.name
    for dtype in ("float32", "float16", "bfloat16", "float8_e4m3fn"):
        assert dtype in said


def test_the_proto_lists_the_files_of_each_digest_in_their_order() -> None:
    from projector.models.digests import _TOKENIZER_FILES

    said = " ".join(section("LAYOUT (").replace("//", " ").split())
    places = [said.index(f" {name}") for name in _TOKENIZER_FILES]
    assert places == sorted(places)


def test_the_proto_describes_every_tensor_of_an_encoder() -> None:
    said = section("ENCODER FILE")
    blob = (ROOT / "reference/bundles/edge-a-cloud/edge.safetensors").read_bytes()
    size = int.from_bytes(blob[:8], "little")
    head = json.loads(blob[8 : 8 + size])
    metadata = head.pop("__metadata__")
    kinds = {re.sub(r"^(steps|entropy)/[^/]+", r"\1/NAME", name) for name in head}
    for kind in sorted(kinds):
        shown = kind.replace("entropy/NAME/", "") if kind.count("/") == 2 else kind
        assert (shown if not kind.startswith("risk/") else "risk/...") in said, kind
    (key,) = metadata
    assert key in said
    for name in (*json.loads(metadata[key]), "text"):
        assert name in said, name


def test_the_proto_names_every_metadata_key() -> None:
    said = section("METADATA")
    keys = (SESSION_METADATA_KEY, ERROR_METADATA_KEY, *EVENTS_APART)
    assert all(key in said for key in keys)


def test_the_proto_says_that_a_digest_is_no_guard_against_strangers() -> None:
    said = " ".join(section("DIGEST (").replace("//", " ").split())
    assert "guards against damage and mix-ups on the way, not against strangers" in said
