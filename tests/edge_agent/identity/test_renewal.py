"""Renewal: when, with what, and what it leaves alone."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.identity.enrolled import Enrolled
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.identity.renewal import Renewal
from edge_agent.identity.service_clock import ServiceClock
from edge_agent.uplink.dial import dial_secure
from protos.errors import DiskFullError, OverloadedError, UnauthenticatedError
from protos.process import logs
from tests.edge_agent.identity.test_connect import grown_up
from tests.edge_agent.identity.test_enrol import enrolled, run, service
from tests.edge_agent.uplink.traffic import assert_one_answer_each, deliver_all, requests
from tests.fakes.fake_edge import FakeSleep, fake_uplink
from tests.fakes.secure_bridge import DAY_S, SecureBridge


class Time:
    """A clock that a test moves; the service and the device may have different ones."""

    def __init__(self, now: float) -> None:
        self.at = now

    def __call__(self) -> float:
        return self.at


class Device:
    """An enrolled device, its uplink and its renewal, by one clock that is steady as well."""

    def __init__(self, served: SecureBridge, folder: Path, wall: Time, steady: Time) -> None:
        self.file = IdentityFile.under(folder / "state")
        self.enrolled = Enrolled(self.file, ServiceClock(wall, steady))
        dial = dial_secure(served.address, self.enrolled)
        self.uplink = fake_uplink(dial, folder, FakeSleep(), retries=None, give_up_s=0)
        self.renewal = Renewal(
            self.enrolled,
            dial,
            lambda: self.uplink.connection.answers,
            self.uplink.metrics,
            logs.configure("error"),
        )

    def value(self, name: str, **labels: str) -> float:
        registry = self.uplink.metrics.registry
        return registry.get_sample_value("neural_bridge_edge_" + name, labels) or 0.0


@pytest.fixture
def file(tmp_path: Path) -> IdentityFile:
    return IdentityFile.under(tmp_path / "state")


def test_at_two_thirds_of_its_life_a_certificate_is_renewed_and_the_stream_goes_on(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        now = Time(time.time())
        async with service(tmp_path / "a", now=now) as served:
            first = await enrolled(served, file)
            device = Device(served, tmp_path, now, now)
            await deliver_all(device.uplink, items := requests(2))
            stream = device.uplink.connection.stream
            now.at += 59 * DAY_S
            await device.renewal.turn()
            assert not served.renewals, "59 of 90 days are less than two thirds"
            now.at += 2 * DAY_S
            await device.renewal.turn()
            assert served.renewals == [first.serial], "under the identity that it has"
            second = device.enrolled.now
            assert second == file.load() and second.serial != first.serial
            assert second.key_pem != first.key_pem, "a fresh key each time"
            assert device.value("renewals_total") == 1
            assert device.value("certificate_end_timestamp_seconds") == second.not_after_s
            assert device.uplink.connection.stream is stream
            assert_one_answer_each(await deliver_all(device.uplink, more := requests(3)), more)
            assert served.serials == [first.serial], "the running stream goes on as it was opened"
            await served.restart()
            assert_one_answer_each(await deliver_all(device.uplink, more := requests(1)), more)
            assert served.serials == [first.serial, second.serial]
            await device.renewal.turn()
            assert len(served.renewals) == 1 and items
            await device.uplink.close()

    run(test)


def test_a_stream_whose_old_certificate_ends_after_the_renewal_loses_nothing(
    tmp_path: Path, file: IdentityFile
) -> None:
    """The service ends calls of certificates that have ended; the agent has a newer one."""

    async def test() -> None:
        now = Time(time.time())
        async with service(tmp_path / "a", now=now, gate=asyncio.Event()) as served:
            assert served.gate is not None
            first = await enrolled(served, file)
            device = Device(served, tmp_path, now, now)
            work = asyncio.create_task(deliver_all(device.uplink, items := requests(1)))
            while not served.requests:
                await asyncio.sleep(0.001)
            now.at += 61 * DAY_S
            await device.renewal.turn()
            await served.revoke(first.serial)
            served.gate.set()
            assert_one_answer_each(await work, items)
            assert served.serials == [first.serial, device.enrolled.now.serial]
            await device.uplink.close()

    run(test)


@pytest.mark.parametrize("wrong", [0.0, 1e6, 4e9], ids=["1970", "january 1970", "far ahead"])
def test_a_device_with_a_wrong_clock_renews_at_once_and_then_knows_the_time(
    tmp_path: Path, file: IdentityFile, wrong: float
) -> None:
    async def test() -> None:
        now, wall, steady = Time(time.time()), Time(wrong), Time(5000.0)
        async with service(tmp_path / "a", now=now) as served:
            await enrolled(served, file)
            device = Device(served, tmp_path, wall, steady)
            await deliver_all(device.uplink, requests(1))
            await device.renewal.turn()
            assert len(served.renewals) == 1
            await device.renewal.turn()
            wall.at = 2 * wrong + 7
            await device.renewal.turn()
            assert len(served.renewals) == 1, "once it has heard the time, its clock may jump"
            for clock in (now, steady):
                clock.at += 61 * DAY_S
            await device.renewal.turn()
            assert len(served.renewals) == 2
            await device.uplink.close()

    run(test)


def test_a_service_that_cannot_renew_is_asked_again_after_growing_pauses(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        now = Time(time.time())
        async with service(tmp_path / "a", now=now) as served:
            first = await enrolled(served, file)
            device = Device(served, tmp_path, now, now)
            await deliver_all(device.uplink, requests(1))
            now.at += 61 * DAY_S
            errors = served.renew_errors = [OverloadedError("later")] * 4
            asked: list[float] = []
            while errors:
                left = len(errors)
                await device.renewal.turn()
                if len(errors) < left:
                    asked.append(now.at)
                now.at += 10
            pauses = [later - earlier for earlier, later in zip(asked, asked[1:], strict=False)]
            assert pauses[0] >= 30 and pauses[2] >= 2 * pauses[0] * 0.5
            assert device.enrolled.now == first
            assert device.value("renewal_failures_total", error="overloaded") == 4
            now.at += 3600
            await device.renewal.turn()
            assert device.enrolled.now != first and device.value("renewals_total") == 1
            await device.uplink.close()

    run(test)


def test_a_service_that_was_down_for_days_renews_as_soon_as_it_is_back(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        now = Time(time.time())
        async with service(tmp_path / "a", now=now) as served:
            first = await enrolled(served, file)
            device = Device(served, tmp_path, now, now)
            await deliver_all(device.uplink, requests(1))
            await served.stop()
            while device.uplink.connected:
                await asyncio.sleep(0.001)
            looked = 0

            async def sleep(seconds: float) -> None:
                nonlocal looked
                looked += 1
                now.at += seconds * 100_000  # days pass
                if looked == 50:
                    now.at = first.not_after_s - DAY_S
                    await served.start()
                    await deliver_all(device.uplink, requests(1))
                await asyncio.sleep(0)

            device.renewal.sleep = sleep
            running = asyncio.create_task(device.renewal.run())
            while device.enrolled.now == first:
                await asyncio.sleep(0.001)
                assert not running.done()
            running.cancel()
            await asyncio.wait({running})
            assert device.value("renewal_failures_total", error="offline") == 0
            assert len(served.renewals) == 1
            await device.uplink.close()

    run(test)


def test_a_renewal_that_failed_without_a_network_is_tried_again_as_soon_as_there_is_one(
    tmp_path: Path, file: IdentityFile
) -> None:
    """An expired certificate is tried without waiting for an answer; the pause after that ends."""

    async def test() -> None:
        now = Time(time.time() - 100 * DAY_S)
        async with service(tmp_path / "a", now=now, late_s=365 * DAY_S) as served:
            served.server_pem = served.authority.sign_server(["localhost"], time.time())
            await served.restart()
            first = await enrolled(served, file)
            device = Device(served, tmp_path, now, steady := Time(5000.0))
            now.at += 100 * DAY_S
            await served.stop()
            answers, waited = False, list[float]()

            async def sleep(seconds: float) -> None:
                nonlocal answers
                if served.renewals:
                    await asyncio.Event().wait()
                waited.append(seconds)
                steady.at += seconds
                if len(waited) == 5:
                    await served.start()
                    answers = True
                await asyncio.sleep(0)

            device.renewal.answers = lambda: answers
            device.renewal.sleep = sleep
            running = asyncio.create_task(device.renewal.run())
            while device.enrolled.now == first:
                await asyncio.sleep(0.001)
                assert not running.done() and sum(waited) < 60
            running.cancel()
            await asyncio.wait({running})
            assert waited == [1.0] * 5, "no longer than the network was away"
            assert device.value("renewal_failures_total", error="offline") == 1
            assert served.renewals == [first.serial]
            await device.uplink.close()

    run(test)


def test_a_renewed_identity_that_cannot_be_stored_is_used_and_stored_later(
    tmp_path: Path, file: IdentityFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        now = Time(time.time())
        async with service(tmp_path / "a", now=now) as served:
            first = await enrolled(served, file)
            device = Device(served, tmp_path, now, now)
            await deliver_all(device.uplink, requests(1))
            now.at += 61 * DAY_S

            def no_room(*_: object) -> None:
                raise DiskFullError("no room")

            with monkeypatch.context() as patch:
                patch.setattr(IdentityFile, "save", no_room)
                await device.renewal.turn()
            second = device.enrolled.now
            assert file.load() == first != second
            assert device.value("renewal_failures_total", error="disk_full") == 1
            await served.restart()
            assert_one_answer_each(await deliver_all(device.uplink, more := requests(1)), more)
            assert served.serials[-1] == second.serial
            await device.renewal.turn()
            assert file.load() == second and len(served.renewals) == 1
            await device.uplink.close()

    run(test)


def test_a_device_enrolled_again_during_a_renewal_keeps_the_newer_identity(
    tmp_path: Path, file: IdentityFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        now = Time(time.time())
        async with service(tmp_path / "a", now=now) as served:
            await enrolled(served, file)
            device = Device(served, tmp_path, now, now)
            await deliver_all(device.uplink, requests(1))
            now.at += 61 * DAY_S
            newest = await enrolled(served, IdentityFile.under(tmp_path / "beside"))
            issue = served._issue

            def meanwhile(*args: object) -> object:
                file.save(newest)
                return issue(*args)  # type: ignore[arg-type]

            monkeypatch.setattr(served, "_issue", meanwhile)
            await device.renewal.turn()
            assert device.enrolled.now == newest == file.load()
            await device.uplink.close()

    run(test)


def test_a_file_from_another_device_is_noticed_under_way(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        now = Time(time.time())
        async with service(tmp_path / "a", now=now) as served:
            made = await enrolled(served, file)
            device = Device(served, tmp_path, now, now)
            await device.renewal.turn()
            file.save(replace(made, tenant="other"))
            await device.renewal.turn()
            assert device.value("renewal_failures_total", error="certificate") == 1

    run(test)


@pytest.mark.slow
@pytest.mark.parametrize("wrong_s", [None, 1e6], ids=["right clock", "january 1970"])
def test_a_device_that_was_offline_past_its_certificates_end_renews_it_by_itself(
    tmp_path: Path, file: IdentityFile, wrong_s: float | None
) -> None:
    """Nobody climbs the pole: an expired certificate is renewed, and good for nothing else."""

    async def test() -> None:
        ago = time.time() - 100 * DAY_S
        now = Time(ago)
        async with service(tmp_path / "a", now=now, late_s=365 * DAY_S) as served:
            served.server_pem = served.authority.sign_server(["localhost"], time.time())
            await served.restart()
            first = await enrolled(served, file)
            wall = now if wrong_s is None else Time(wrong_s)
            device = Device(served, tmp_path, wall, Time(5000.0))
            now.at += 100 * DAY_S
            with pytest.raises(UnauthenticatedError):
                await device.uplink.connect()
            await device.renewal.before_connecting()
            assert served.renewals == [first.serial] and device.enrolled.now.serial != first.serial
            assert_one_answer_each(await deliver_all(device.uplink, items := requests(2)), items)
            assert served.serials == [device.enrolled.now.serial]
            await device.uplink.close()

    run(test)


def test_a_running_agent_whose_certificate_ended_renews_it_when_the_service_refuses_it(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        now, wall = Time(time.time() - 100 * DAY_S), Time(1e6)
        async with service(tmp_path / "a", now=now, late_s=365 * DAY_S) as served:
            served.server_pem = served.authority.sign_server(["localhost"], time.time())
            await served.restart()
            await enrolled(served, file)
            grown_up(file)
            device = Device(served, tmp_path, wall, Time(5000.0))
            device.uplink.connection._opened = 1  # it was let in before
            now.at += 100 * DAY_S
            device.renewal.sleep = lambda _: asyncio.sleep(0.001)
            running = asyncio.create_task(device.renewal.run())
            assert_one_answer_each(await deliver_all(device.uplink, items := requests(2)), items)
            assert len(served.renewals) == 1 and not running.done()
            running.cancel()
            await asyncio.wait({running})
            await device.uplink.close()

    run(test)
