"""Orders are carried out once, as far as the device allows it; each ends with an outcome."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.device.log_ring import NAME, tail
from edge_agent.metrics import Metrics
from edge_agent.remote import order_book
from edge_agent.remote.kept import RemoteSettings
from edge_agent.remote.order_book import OrderBook
from edge_agent.remote.orders import Orders
from edge_agent.remote.report import pieces_of
from edge_agent.settings import Settings, load
from protos.errors import DiskFullError, OfflineError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process import logs
from tests.edge_agent.device.test_reload import Reloaded
from tests.fakes.fake_edge import make_session
from tests.fakes.loop import on_loop

NUMBER = iter(range(1, 1 << 30))


class Device:
    """One process of an agent; another one over the same folder is its next start."""

    def __init__(self, folder: Path, **own: Any) -> None:
        self.folder, self.own_values = folder, own
        self.ended, self.captured = 0, list[str]()
        self.sent: list[pb.ReportBody] = []
        self.remote = RemoteSettings(folder, self.own)
        self.remote.start()
        shown = self.remote.read()
        reloaded = Reloaded(folder, **own)
        reloaded.reload.now = shown
        reloaded.agent.hold_every_s = shown.hold_every_s
        self.agent = reloaded.agent
        self.agent.uplink.connection.latest = make_session()  # type: ignore[misc]
        self.orders = Orders(
            self.remote,
            OrderBook(folder),
            reloaded.reload,
            folder / "logs",
            self.end,
            self.captured.append,
            Metrics(),
            logs.configure("error"),
        )

    def own(self) -> Settings:
        return load(self.own_values, environ={})

    def end(self) -> None:
        self.ended += 1

    async def send(self, body: pb.ReportBody) -> None:
        self.sent.append(body)

    async def take(self, order: pb.Order) -> None:
        await self.orders.take(order, self.send)

    def told(self) -> dict[bytes, pb.Outcome]:
        return {one.order_id: one for _, one in self.orders.book.untold()}

    def outcome(self, order: pb.Order) -> pb.Outcome:
        return self.told()[order.id]


def order(**of: Any) -> pb.Order:
    return pb.Order(id=next(NUMBER).to_bytes(16, "big"), **of)


def configure(revision: int, **values: Any) -> pb.Order:
    told = pb.Configure(revision=revision, settings_json=json.dumps(values))
    return order(configure=told)


@on_loop
async def test_an_order_that_comes_again_is_carried_out_once(tmp_path: Path) -> None:
    device, asked = Device(tmp_path), order(capture=pb.TakePicture(camera="gate"))
    for _ in range(3):
        await device.take(asked)
    assert device.captured == ["gate"] and device.outcome(asked).HasField("done")
    device.orders.book.told(asked.id.hex())
    later = Device(tmp_path)
    await later.take(asked)
    assert later.captured == [] and later.outcome(asked).HasField("done"), "told once more"


@on_loop
async def test_a_restart_is_remembered_before_the_end_and_never_comes_twice(
    tmp_path: Path,
) -> None:
    device, asked = Device(tmp_path), order(restart=pb.Restart())
    await device.take(asked)
    assert device.ended == 1 and device.remote.wants_restart and not device.told()
    for _ in range(3):  # the service sends it in every call
        later = Device(tmp_path)
        await later.take(asked)
        assert later.ended == 0 and not later.remote.wants_restart
        assert later.outcome(asked).done == "the agent started again"


@on_loop
async def test_a_restart_that_cannot_be_remembered_is_not_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, asked = Device(tmp_path), order(restart=pb.Restart())

    def full(_: OrderBook) -> None:
        raise DiskFullError("no room")

    monkeypatch.setattr(OrderBook, "_write", full)
    await device.take(asked)
    assert device.ended == 0 and not device.orders.book.knows(asked.id.hex())
    (told,) = device.sent
    assert told.outcome.order_id == asked.id and told.outcome.refused.name == "disk_full"
    harmless = order(capture=pb.TakePicture(camera="yard"))
    await device.take(harmless)
    assert device.captured == ["yard"] and device.outcome(harmless).HasField("done")


@on_loop
async def test_settings_that_would_end_the_next_start_are_refused_before_it(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path)
    asked = configure(1, linger_ms=250, trigger=["every=1s"])
    await device.take(asked)
    assert "for cameras" in device.outcome(asked).refused.message and device.ended == 0
    assert device.remote.trial is None and Device(tmp_path).remote.read().linger_ms == 0


@on_loop
async def test_what_the_device_does_not_allow_or_know_is_refused_by_name(tmp_path: Path) -> None:
    device = Device(tmp_path, remote={"restart": False, "logs": False, "capture": False})
    refused = [
        order(restart=pb.Restart()),
        order(send_logs=pb.SendLogs()),
        order(capture=pb.TakePicture()),
        order(update=pb.Update(kind="model")),
        order(),
    ]
    for asked in refused:
        await device.take(asked)
        assert device.outcome(asked).refused.name == "not_allowed_here"
    assert device.ended == 0 and not device.captured and not device.sent
    await device.take(pb.Order(id=b"short", restart=pb.Restart()))
    assert len(device.told()) == len(refused)


@on_loop
async def test_settings_that_can_change_live_do_and_stay(tmp_path: Path) -> None:
    device = Device(tmp_path)
    asked = configure(1, hold_every_s=3, highest_point="fp8", mask="gate=0,0 1,0 1,1")
    await device.take(asked)
    outcome = device.outcome(asked)
    assert device.ended == 0 and device.agent.hold_every_s == 3.0
    assert device.agent.plan.highest_point == "fp8" and not device.orders.now.mask
    assert outcome.refused.name == "not_allowed_here" and "mask" in outcome.refused.message
    assert "hold_every_s" in outcome.refused.message, "it says what was taken"
    assert (outcome.settings.revision, outcome.settings.tried) == (1, 1)
    assert [one.name for one in outcome.settings.refused] == ["mask"]
    assert Device(tmp_path).remote.read().hold_every_s == 3.0
    back = configure(2)
    await device.take(back)
    assert device.agent.hold_every_s == 10.0 and device.outcome(back).HasField("done")


@on_loop
async def test_settings_that_need_a_start_are_told_once_the_agent_runs_with_them(
    tmp_path: Path,
) -> None:
    device, asked = Device(tmp_path), configure(1, linger_ms=250)
    await device.take(asked)
    assert device.ended == 1 and not device.told()
    later = Device(tmp_path)
    assert later.orders.now.linger_ms == 250 and not later.told(), "not before it runs"
    later.orders.confirm()
    assert later.outcome(asked).HasField("done") and later.remote.revision == 1


@on_loop
async def test_settings_that_do_not_work_are_taken_back_and_told(tmp_path: Path) -> None:
    device, asked = Device(tmp_path), configure(1, linger_ms=250)
    await device.take(asked)
    for _ in range(4):
        last = Device(tmp_path)
    assert last.orders.now.linger_ms == 0
    outcome = last.outcome(asked)
    assert "revision 1 is taken back" in outcome.refused.message
    assert (outcome.settings.revision, outcome.settings.tried) == (0, 1)
    await last.take(asked)
    assert last.ended == 0, "and not tried again"
    good = configure(2, log_level="warning")
    await last.take(good)
    assert last.outcome(good).settings.revision == 2 and last.remote.failed is None


@on_loop
async def test_settings_that_are_older_or_no_settings_are_refused(tmp_path: Path) -> None:
    device = Device(tmp_path)
    await device.take(configure(5, log_level="warning"))
    for bad in (
        configure(4, log_level="error"),
        order(configure=pb.Configure(revision=6, settings_json="[1]")),
        order(configure=pb.Configure(revision=6, settings_json="{" * 2000)),
        order(configure=pb.Configure(revision=6, settings_json='{"a":' + "1" * 20_000 + "}")),
    ):
        await device.take(bad)
        assert device.outcome(bad).HasField("refused")
    assert device.orders.now.log_level == "warning" and device.remote.revision == 5


@on_loop
async def test_the_tail_of_the_log_comes_in_pieces(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    old = [json.dumps({"n": n, "timestamp": f"2026-01-01T00:00:{n:02}Z"}) for n in range(30)]
    (folder / f"{NAME}.1").write_text("\n".join(old[:20]) + "\n")
    (folder / NAME).write_text("\n".join(old[20:]) + "\n")
    device = Device(tmp_path)
    for asked, numbers in (
        (pb.SendLogs(lines=12), range(18, 30)),
        (pb.SendLogs(since_s=1767225625.0), range(25, 30)),
    ):
        device.sent.clear()
        whole = order(send_logs=asked)
        await device.take(whole)
        assert device.outcome(whole).done == f"{len(numbers)} lines"
        text = b"".join(zlib.decompress(one.log.lines) for one in device.sent)
        assert [json.loads(line)["n"] for line in text.splitlines()] == list(numbers)
    assert len(tail(folder, 100, 0, 300)) < 10, "bounded by bytes"


def test_pieces_of_a_long_log_stay_below_the_bound_of_a_report() -> None:
    import random

    lines = [random.Random(n).randbytes(4000).hex() for n in range(120)]
    pieces = list(pieces_of(bytes(16), lines))
    assert max(len(piece.lines) for piece in pieces) <= 96 << 10
    text = [line for piece in pieces for line in zlib.decompress(piece.lines).decode().split("\n")]
    assert text == lines and [piece.index for piece in pieces] == list(range(len(pieces)))


@on_loop
async def test_an_order_that_the_network_cut_short_is_carried_out_again(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / NAME).write_text("{}\n")
    device, asked = Device(tmp_path), order(send_logs=pb.SendLogs())

    async def offline(_: pb.ReportBody) -> None:
        raise OfflineError("gone")

    with pytest.raises(OfflineError):
        await device.orders.take(asked, offline)
    await device.take(asked)
    assert len(device.sent) == 1 and device.outcome(asked).HasField("done")


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[: len(raw) // 2], lambda _: b"[]", lambda _: b"5"]
)
@on_loop
async def test_a_damaged_book_of_orders_begins_anew(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    await Device(tmp_path).take(order(capture=pb.TakePicture()))
    path = tmp_path / order_book.FILE
    path.write_bytes(spoil(path.read_bytes()))
    device, asked = Device(tmp_path), order(capture=pb.TakePicture())
    await device.take(asked)
    assert set(device.told()) == {asked.id}


@on_loop
async def test_the_book_is_bounded(tmp_path: Path) -> None:
    device = Device(tmp_path)
    for _ in range(66):
        asked = order(capture=pb.TakePicture())
        await device.take(asked)
        device.orders.book.told(asked.id.hex())
    assert len(device.orders.book.carried_out()) <= 64
    assert device.orders.book.carried_out()[0] == asked.id


@on_loop
async def test_orders_whose_ends_the_service_does_not_take_are_bounded_too(tmp_path: Path) -> None:
    device = Device(tmp_path)
    every = [order(capture=pb.TakePicture()) for _ in range(70)]
    for one in every:
        await device.take(one)
    assert len(device.captured) == len(device.told()) == 64
    device.orders.book.told(every[0].id.hex())
    await device.take(every[69])
    assert len(device.captured) == 65, "once the service knows of one, the next is carried out"
