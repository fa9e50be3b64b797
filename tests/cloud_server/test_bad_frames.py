"""Every way a frame can be bad gets its typed refusal, and nothing else on the stream notices."""

from __future__ import annotations

import struct
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from protos import errors
from protos.digest import derived_id, session_constants
from protos.header import FIXED, Header, pack_header
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import seal, seal_ask
from tests.cloud_server import stage

Make = Callable[[stage.Client], "pb.InferRequest | bytes"]


def _raw(
    client: stage.Client,
    header: bytes,
    payload: bytes,
    question: str = stage.QUESTION,
    limit: int = 4,
) -> pb.InferRequest:
    """Sealed like an honest frame, whatever the bytes are."""
    constants = client.session.session_constants
    return seal(constants, client.request_id(), header, payload, question, limit)


def _parts(client: stage.Client, point: int = stage.FP8) -> tuple[bytes, bytes]:
    frame = client.frame(seed=7, point=point).frame
    return frame.header, frame.payload


def another_models_fingerprint(client: stage.Client) -> pb.InferRequest:
    other = stage.Client(client.channel, stage.OTHER_SOURCE)
    digest = other.negotiate().bundle_digest
    constants = session_constants(client.session.session_id, stage.OTHER_SOURCE.fingerprint, digest)
    return client.frame(seed=7, constants=constants)


def another_bundle_version(client: stage.Client) -> pb.InferRequest:
    constants = session_constants(
        client.session.session_id, stage.SOURCE.fingerprint, client.known_digest
    )
    return client.frame(seed=7, constants=constants)


def another_session(client: stage.Client) -> pb.InferRequest:
    return client.frame(seed=7, constants=b"\x05" * 32)


def truncated_message(client: stage.Client) -> bytes:
    return client.frame(seed=7).SerializeToString()[:-3]


def truncated_header(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, header[:4], payload)


def truncated_payload(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, header, payload[:-5])


def payload_longer_than_its_counts(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, header, payload + b"\0\0")


def more_tokens_than_bits(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, b"\x03" + header[1:6] + b"\x28" + header[7:] + b"\1\0", payload)


def another_grid(client: stage.Client) -> pb.InferRequest:
    kept = np.ones(9, dtype=np.bool_)
    return _raw(client, *pack_header(Header(stage.FP8, 7, kept), bytes(9 * stage.RANK)))


def more_kept_than_sent(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client, stage.NONE)
    kept = np.ones(16, dtype=np.bool_)
    header = pack_header(Header(stage.NONE, 7, kept), b"x")[0]
    return _raw(client, header, payload[: 6 * 4 * stage.RANK])


def nan_latent(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client, stage.NONE)
    return _raw(client, header, struct.pack("<f", float("nan")) + payload[4:])


def infinite_latent(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client, stage.NONE)
    return _raw(client, header, struct.pack("<f", float("inf")) + payload[4:])


def latents_that_overflow_the_map(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client, stage.NONE)
    return _raw(client, header, struct.pack("<f", 3e38) * (len(payload) // 4))


def nan_code_point(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, header, b"\x7f" + payload[1:])


def unknown_operating_point(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, header[:1] + b"\x4d" + header[2:], payload)


def nothing_kept(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, b"\x03" + header[1:] + bytes(2), payload)


def no_payload(client: stage.Client) -> pb.InferRequest:
    return _raw(client, _parts(client)[0], b"")


def no_tokens(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, header[: FIXED.size] + b"\0" + header[FIXED.size + 1 :], payload)


def no_frame(client: stage.Client) -> pb.InferRequest:
    request = client.frame(seed=7)
    request.ClearField("frame")
    return request


def payload_above_the_limit(client: stage.Client) -> pb.InferRequest:
    return _raw(client, _parts(client)[0], bytes(client.session.limits.max_payload_bytes + 1))


def message_above_the_limit(client: stage.Client) -> bytes:
    above = client.session.limits.max_picture_bytes + (15 << 20)
    return _raw(client, _parts(client)[0], bytes(above)).SerializeToString()


def header_above_the_limit(client: stage.Client) -> pb.InferRequest:
    header, payload = _parts(client)
    return _raw(client, header + bytes(client.session.limits.max_header_bytes), payload)


def blank_question(client: stage.Client) -> pb.InferRequest:
    return client.frame(seed=7, question=" \t ")


def reserved_word_in_the_question(client: stage.Client) -> pb.InferRequest:
    return client.frame(seed=7, question="what is <image> ?")


def question_of_too_many_bytes(client: stage.Client) -> pb.InferRequest:
    return client.frame(seed=7, question="q" * (client.session.limits.max_question_bytes + 1))


def question_of_too_many_tokens(client: stage.Client) -> pb.InferRequest:
    return client.frame(seed=7, question="? " * (client.session.limits.max_question_bytes // 2))


def too_many_new_tokens(client: stage.Client) -> pb.InferRequest:
    return client.frame(seed=7, limit=client.session.limits.max_new_tokens + 1)


def unknown_field(client: stage.Client) -> bytes:
    return client.frame(seed=7).SerializeToString() + b"\x78\x01"


def no_bytes(_: stage.Client) -> bytes:
    return b""


def noise(_: stage.Client) -> bytes:
    return np.random.default_rng(0).bytes(300)


def a_text_for_a_picture(client: stage.Client) -> pb.InferRequest:
    return client.picture(b"this is not a picture", number=7)


def half_a_picture(client: stage.Client) -> pb.InferRequest:
    file = stage.picture_file(1, "JPEG")
    return client.picture(file[: len(file) // 2], number=7)


def a_gif(client: stage.Client) -> pb.InferRequest:
    return client.picture(stage.picture_file(1, "GIF"), number=7)


def a_picture_of_a_million_pixels_a_side(client: stage.Client) -> pb.InferRequest:
    file = bytearray(stage.picture_file(1, "PNG"))
    file[16:24] = struct.pack(">II", 1_000_000, 1_000_000)
    import zlib

    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    return client.picture(bytes(file), number=7)


BAD: list[tuple[Make, type[errors.BridgeError]]] = [
    (another_models_fingerprint, errors.IncompatibleLayoutError),
    (another_bundle_version, errors.BundleVersionError),
    (another_session, errors.FrameCorruptError),
    (truncated_message, errors.FrameMalformedError),
    (truncated_header, errors.FrameTruncatedError),
    (truncated_payload, errors.FrameTruncatedError),
    (payload_longer_than_its_counts, errors.FrameMalformedError),
    (more_tokens_than_bits, errors.FrameTruncatedError),
    (another_grid, errors.FrameMalformedError),
    (more_kept_than_sent, errors.FrameTruncatedError),
    (nan_latent, errors.NonFiniteError),
    (infinite_latent, errors.NonFiniteError),
    (latents_that_overflow_the_map, errors.NonFiniteError),
    (nan_code_point, errors.NonFiniteError),
    (unknown_operating_point, errors.UnknownQuantizerError),
    (nothing_kept, errors.EmptyFrameError),
    (no_payload, errors.EmptyFrameError),
    (no_tokens, errors.EmptyFrameError),
    (no_frame, errors.FrameMalformedError),
    (payload_above_the_limit, errors.FrameTooLargeError),
    (message_above_the_limit, errors.FrameTooLargeError),
    (header_above_the_limit, errors.FrameTooLargeError),
    (blank_question, errors.QuestionError),
    (reserved_word_in_the_question, errors.QuestionError),
    (question_of_too_many_bytes, errors.QuestionTooLongError),
    (question_of_too_many_tokens, errors.QuestionTooLongError),
    (too_many_new_tokens, errors.FrameMalformedError),
    (unknown_field, errors.FrameMalformedError),
    (no_bytes, errors.FrameMalformedError),
    (noise, errors.FrameMalformedError),
    (a_text_for_a_picture, errors.PictureError),
    (half_a_picture, errors.PictureError),
    (a_gif, errors.PictureError),
    (a_picture_of_a_million_pixels_a_side, errors.PictureError),
]


@pytest.mark.parametrize(("make", "error"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_a_bad_frame_is_refused_by_its_code_and_its_neighbours_are_answered(
    server: stage.Server, make: Make, error: type[errors.BridgeError]
) -> None:
    with server.channel() as channel:
        client = stage.Client(channel, known_digest="0" * 64)
        client.negotiate()
        before, after = client.frame(seed=1, limit=3), client.frame(seed=2, limit=3)
        events = client.infer(before, make(client), after)
    refusals = [event.refused for event in events if event.HasField("refused")]
    assert [(r.code, r.name) for r in refusals] == [(error.code, error.name)], events
    assert refusals[0].message and refusals[0].retryable == error.retryable
    assert refusals[0].grpc_status == error.grpc_status
    for neighbour in (before, after):
        kinds = [e.WhichOneof("event") for e in stage.by_id(events, neighbour.request_id)]
        assert kinds[0] == "accepted" and kinds[-1] == "answer", kinds


@pytest.mark.parametrize("request_id", [None, b""], ids=["with an id", "without"])
def test_a_frame_with_any_one_bit_flipped_is_never_answered(
    client: stage.Client, request_id: bytes | None
) -> None:
    honest = client.frame(seed=3, limit=2, request_id=request_id)
    raw = honest.SerializeToString()
    flipped = []
    for bit in range(8 * len(raw)):
        copy = bytearray(raw)
        copy[bit // 8] ^= 1 << bit % 8
        flipped.append(bytes(copy))
    good = client.frame(seed=4, limit=2)
    events = client.infer(*flipped, good)
    assert sum(event.HasField("refused") for event in events) == len(flipped)
    answered = {event.request_id for event in events if event.HasField("answer")}
    assert answered == {good.request_id}
    constants = client.session.session_constants
    innocent = {derived_id(constants, number) for number in range(1000) if number != 3}
    assert not innocent & {event.request_id for event in events}


def test_a_frame_of_another_request_cannot_be_replayed_under_a_new_id(
    client: stage.Client,
) -> None:
    request = client.frame(seed=3)
    request.request_id = client.request_id()
    (event,) = client.infer(request)
    assert event.refused.code == errors.FrameCorruptError.code


def test_a_stream_without_a_session_fails_with_303(client: stage.Client) -> None:
    client.session = replace_session(client)
    with pytest.raises(grpc.RpcError) as failure:
        client.infer(client.frame(seed=1))
    assert dict(failure.value.trailing_metadata())["nb-error-code"] == "303"


def test_a_stream_that_forgot_its_metadata_is_told_their_name(client: stage.Client) -> None:
    call = client.channel.stream_stream("/neuralbridge.v1.Bridge/Infer")
    with pytest.raises(grpc.RpcError, match="0 bytes, expected 16.*nb-session-bin") as failure:
        list(call(iter([client.frame(seed=1).SerializeToString()]), timeout=20))
    assert dict(failure.value.trailing_metadata())["nb-error-code"] == "303"


def test_no_caller_is_told_the_digest_that_would_have_been_right(client: stage.Client) -> None:
    right = client.frame(seed=7, request_id=b"a-frame-")
    wrong = pb.InferRequest.FromString(right.SerializeToString())
    wrong.frame.digest = bytes(8)
    (event,) = client.infer(wrong)
    assert event.refused.code == errors.FrameCorruptError.code
    ask = seal_ask(
        client.session.session_constants, client.session.session_id, b"an--ask-", 7, "what ?"
    )
    asked, ask.digest = ask.digest, bytes(8)
    with pytest.raises(grpc.RpcError) as failure:
        list(client.stub.Ask(ask, timeout=20))
    assert dict(failure.value.trailing_metadata())["nb-error-code"] == "202"
    for told in (event.refused.message, str(failure.value.details())):
        assert right.frame.digest.hex() not in told and asked.hex() not in told
        assert "does not match" in told


def test_default_values_may_be_written_out(client: stage.Client) -> None:
    """As protobufjs does with whatever its caller sets: `frame_number: 0`, `question: ''`."""
    held = client.frame(seed=0, question="", limit=0)
    raw = held.SerializeToString()
    (event,) = client.infer(raw + b"\x1a\0\x20\0")
    assert event.HasField("accepted") and event.request_id == held.request_id
    ask = seal_ask(
        client.session.session_constants,
        client.session.session_id,
        b"an--ask-",
        0,
        stage.QUESTION,
    )
    raw = ask.SerializeToString()
    number, limit = b"\x10\0", b"\x28\0"
    question = raw.index(b"\x32\x08" + ask.digest)
    written_out = raw[:18] + number + raw[18:question] + limit + raw[question:]
    assert pb.AskRequest.FromString(written_out) == ask
    call = client.channel.unary_stream(
        "/neuralbridge.v1.Bridge/Ask", response_deserializer=pb.InferEvent.FromString
    )
    assert list(call(written_out, timeout=60))[-1].HasField("answer")


def replace_session(client: stage.Client) -> pb.NegotiateResponse:
    other = pb.NegotiateResponse()
    other.CopyFrom(client.session)
    other.session_id = bytes(16)
    return other
