"""One request, one answer: repeats join or are answered from a bounded memory."""

from __future__ import annotations

from cloud_server.frontend.answers import Answers, Computation
from protos.neuralbridge.v1 import bridge_pb2 as pb


def _answered(memory: Answers, session: bytes, id: bytes) -> None:
    computation = Computation(id, 1, "q", 0)
    memory.begin(session, computation)
    memory.end(session, computation, pb.Answer(text=id.decode()))


def test_answers_are_remembered_up_to_a_count_and_only_within_their_session() -> None:
    memory = Answers(2, 1 << 20)
    for id in (b"a", b"b"):
        _answered(memory, b"s", id)
    assert memory.find(b"s", b"a", 1, "q") is not None  # a is now the latest used
    _answered(memory, b"s", b"c")
    assert memory.find(b"s", b"b", 1, "q") is None
    found = memory.find(b"s", b"a", 1, "q")
    assert isinstance(found, pb.Answer) and found.from_memory and found.text == "a"
    assert memory.find(b"t", b"a", 1, "q") is None
    memory.forget(b"s")
    assert memory.find(b"s", b"a", 1, "q") is None


def test_long_answers_are_remembered_up_to_their_bytes() -> None:
    memory = Answers(1000, 100_000)
    for number in range(200):
        computation = Computation(b"%d" % number, 1, "q" * 500, 0)
        memory.begin(b"s", computation)
        memory.end(b"s", computation, pb.Answer(text="long " * 1000))
        assert memory.bytes <= 100_000
    assert isinstance(memory.find(b"s", b"199", 1, "q" * 500), pb.Answer)
    assert memory.find(b"s", b"150", 1, "q" * 500) is None
    memory.forget(b"s")
    assert memory.bytes == 0


def test_a_late_listener_hears_what_was_said_before() -> None:
    computation = Computation(b"12345678", 1, "q", 0)
    computation.emit("accepted", pb.Accepted())
    computation.emit("token", pb.Token(text="x"))
    heard: list[str] = []

    def listen(event: pb.InferEvent, kind: str) -> None:
        assert event.WhichOneof("event") == kind
        heard.append(kind)

    computation.listen(listen)
    computation.emit("answer", pb.Answer(text="x"))
    computation.leave(listen)
    computation.emit("token", pb.Token(text="y"))
    assert heard == ["accepted", "token", "answer"]


def test_a_session_that_asks_much_does_not_push_out_the_answers_of_others() -> None:
    answers = Answers(4, 1 << 20)

    def answered(session: bytes, number: int) -> None:
        made = Computation(b"%08d" % number, number, "q", 0)
        answers.begin(session, made)
        answers.end(session, made, pb.Answer(text="x"))

    answered(b"quiet", 0)
    for number in range(100):
        answered(b"loud", number)
    assert answers.find(b"quiet", b"%08d" % 0, 0, "q") is not None
    assert answers.find(b"loud", b"%08d" % 99, 99, "q") is not None
    assert answers.find(b"loud", b"%08d" % 1, 1, "q") is None
