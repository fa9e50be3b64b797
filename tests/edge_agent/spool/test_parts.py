"""The spool's small parts: rows' bytes, keys, which rows go, the window of old frames, settings."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from edge_agent.metrics import Metrics
from edge_agent.output import RecordWriter, recorded
from edge_agent.record import AnswerRecord
from edge_agent.settings import Settings
from edge_agent.sources import Source
from edge_agent.spool.catch_up import CatchUp
from edge_agent.spool.prepare import spool_folder
from edge_agent.spool.stored_frame import StoredFrame, rank_of
from edge_agent.spool.vault import DamagedRowError, Vault
from edge_agent.spool.when_full import DropOldest, Row, ThinOut
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.terms import FILE, Terms
from protos.calls import PRIORITIES
from protos.errors import ConfigError
from protos.process import logs
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import LAYOUT, fake_uplink, make_encoder
from tests.fakes.fake_run import Captures

RECORD = AnswerRecord(
    "00ff" * 4, "gate/1", 7.25, "is there smoke ?", edge_answer="no", risk=0.25, warnings=("a",)
)
FRAME = StoredFrame(RECORD, b"message", b"key", bytes(range(16)), "3" * 64, "2" * 64, "b 1")


# ---------------------------------------------------------------------- rows


def test_a_frame_comes_back_as_it_was_written() -> None:
    again = StoredFrame.from_bytes(FRAME.body)
    assert again == FRAME and again.request_id == bytes.fromhex("00ff" * 4)


@pytest.mark.parametrize("cut", range(0, len(FRAME.body), 7))
def test_half_a_frame_is_damage_and_nothing_else(cut: int) -> None:
    with pytest.raises(DamagedRowError):
        StoredFrame.from_bytes(FRAME.body[:cut])


def test_alarms_rank_before_normal_frames_and_those_before_the_background() -> None:
    order = sorted(range(len(PRIORITIES)), key=rank_of)
    assert [PRIORITIES[priority] for priority in order] == ["alarm", "normal", "background"]


@pytest.mark.parametrize("vault", [Vault(), Vault(bytes(32))], ids=["plain", "secret"])
def test_every_changed_bit_of_a_row_is_seen(vault: Vault) -> None:
    sealed = vault.seal(b"name", b"body")
    assert vault.open(b"name", sealed) == b"body" and vault.current(sealed)
    for bit in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedRowError):
            vault.open(b"name", bytes(damaged))
    for other, name in ((vault, b"other"), (Vault(b"k" * 32), b"name")):
        if other == vault or vault.key is not None:
            with pytest.raises(DamagedRowError):
                other.open(name, sealed)


@pytest.mark.parametrize("content", [bytes(range(128, 160)), b"0f" * 32, b"0F" * 32 + b"\n"])
def test_a_key_is_32_bytes_or_64_digits(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    assert len(Vault.from_file(path).key or b"") == 32


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (b"short", 0o600, "expected 32 bytes"),
        (b"x" * 64, 0o600, "expected 32 bytes"),
        (bytes(32), 0o644, "chmod 600"),
        (None, 0, "No such file"),
    ],
)
def test_a_key_that_is_none_is_a_typed_error(
    tmp_path: Path, content: bytes | None, mode: int, why: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=why):
        Vault.from_file(path)


def test_a_key_that_is_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        Vault.from_file(tmp_path / "key")


# ---------------------------------------------------------------------- which rows go


def test_the_oldest_go_first_and_thinning_takes_every_second_one() -> None:
    rows = [Row(number, 10) for number in range(1, 11)]

    def after(number: int):  # type: ignore[no-untyped-def]
        return iter([row for row in rows if row.id > number])

    assert [row.id for row in DropOldest().choose(1, after)] == list(range(1, 11))
    thin = ThinOut()
    taking = thin.choose(1, after)
    first = [next(taking).id for _ in range(3)]
    assert first == [2, 4, 6]
    rows = [row for row in rows if row.id not in first]
    again = thin.choose(1, after)  # it goes on where it was
    assert [next(again).id for _ in range(2)] == [8, 10]


def test_thinning_takes_the_last_row_too_where_nothing_else_is_left() -> None:
    rows = [Row(5, 10)]
    found = list(ThinOut().choose(1, lambda after: iter([r for r in rows if r.id > after])))
    assert [row.id for row in found] == [5]


# ---------------------------------------------------------------------- old frames beside new ones


def test_the_window_grows_while_nothing_becomes_slower_and_shrinks_at_once() -> None:
    catch_up = CatchUp(8)
    for _ in range(100):
        catch_up.ended(0.1, catch_up.window, old=True)
    assert catch_up.window == 8
    for _ in range(5):
        catch_up.ended(0.3, catch_up.window, old=True)
    assert catch_up.window == 4
    for _ in range(5):
        catch_up.ended(0.3, catch_up.window, old=True)
    assert catch_up.window == 2


def test_on_a_link_that_is_full_with_one_frame_the_window_stays_small() -> None:
    catch_up = CatchUp(8)
    for _ in range(300):
        catch_up.ended(0.1 * catch_up.window, catch_up.window, old=True)
    assert catch_up.window <= 2


def test_old_frames_go_in_the_gaps_between_new_ones() -> None:
    catch_up = CatchUp(8)
    assert catch_up.wait_s(0.0, 0) == 0.0  # no new ones at all
    for number in range(5):
        catch_up.came(float(number))  # one a second
    catch_up.ended(0.3, 1, old=True)
    catch_up.started()
    assert catch_up.wait_s(4.1, new_on_way=1) > 0.0  # a new one has no answer yet
    assert catch_up.wait_s(4.2, new_on_way=0) == 0.0  # ends before the next new one
    assert catch_up.wait_s(4.8, new_on_way=0) > 0.0  # would not
    assert catch_up.wait_s(6.1, new_on_way=0) == 0.0  # it did not come
    for number in range(6, 10):  # without gaps one goes now and then
        catch_up.came(float(number))
    assert catch_up.wait_s(9.1, new_on_way=1) == 0.0
    catch_up.started()
    assert catch_up.wait_s(9.1, new_on_way=1) > 0.0


# ---------------------------------------------------------------------- settings, records, terms


class _Endless(Captures):
    endless = True


def test_a_source_that_does_not_end_uses_a_spool_without_being_told(tmp_path: Path) -> None:
    once: Source = Captures([])
    stays: Source = _Endless([])
    assert spool_folder(Settings(), stays, tmp_path) == tmp_path / "spool"
    assert spool_folder(Settings(), once, tmp_path) is None
    assert spool_folder(Settings(), stays, None) is None
    assert spool_folder(Settings(question_mode="hold"), stays, tmp_path) is None  # wants the newest
    assert spool_folder(Settings(edge_fallback=True), stays, tmp_path) is None
    given = Settings(spool=tmp_path / "mine", question_mode="hold")
    assert spool_folder(given, once, tmp_path) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"question_mode": "ask"}, "question_mode"),
        ({"edge_fallback": True}, "edge-fallback"),
        ({"give_up_s": 5.0}, "give_up_s"),
        ({"retries": 5}, "retries"),
    ],
)
def test_settings_that_do_not_go_with_a_spool_are_refused(
    tmp_path: Path, settings: dict[str, object], why: str
) -> None:
    chosen = Settings.model_validate({"spool": tmp_path, **settings})
    with pytest.raises(ConfigError, match=why):
        spool_folder(chosen, Captures([]), tmp_path)


def test_records_are_found_again_from_where_they_were_synced_last(tmp_path: Path) -> None:
    output = str(tmp_path / "records.jsonl")
    writer = RecordWriter(output)
    writer.write(AnswerRecord("aa", "a", 0.0, "x"))
    place = writer.place()
    writer.write(AnswerRecord("bb", "b", 0.0, "x"))
    writer.sync()
    writer.close()
    with open(output, "a") as file:
        file.write('{"request_id": "cc", "capt')  # power went here
    assert recorded(output, place) == {b"\xbb"}
    for other in ("", "[0, 0]", "{", '["x"]', f"[{os.stat(output).st_ino}, 999999]"):
        assert recorded(output, other) == {b"\xaa", b"\xbb"}
    assert recorded("-", place) == recorded(str(tmp_path / "none"), place) == set()


def test_terms_are_used_again_and_no_frame_number_is(tmp_path: Path) -> None:
    store, log = EncoderStore(tmp_path), logs.configure("critical")

    async def agreed() -> int:
        served = FakeBridge(make_encoder())
        await served.start()
        uplink = fake_uplink(served.dial, tmp_path)
        uplink.connection.on_session = Terms(tmp_path, store, log).keep
        session = await uplink.connect()
        numbers = [session.next_frame(0.0)[0] for _ in range(1500)]
        await uplink.close()
        await served.stop()
        assert numbers == list(range(1500))
        return max(numbers)

    last = asyncio.run(agreed())
    for _ in range(2):  # a restart that used no number, and another one
        session = Terms(tmp_path, store, log).load(LAYOUT)
        assert session is not None and session.encoder.digest == make_encoder().digest
        first = session.next_frame(0.0)[0]
        assert first > last
        last = first


@pytest.mark.parametrize("content", ["", "{", '{"reply": "AAAA", "reserved": 1}', "[]", "\0" * 99])
def test_terms_that_are_damaged_are_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    terms = Terms(tmp_path, EncoderStore(tmp_path), logs.configure("critical"))
    assert terms.load(LAYOUT) is None


def test_metrics_name_every_cause_of_a_drop_from_the_start() -> None:
    text = Metrics().registry.collect()
    names = {sample.labels.get("cause") for metric in text for sample in metric.samples}
    assert {"full", "thinned", "age", "damaged"} <= names
