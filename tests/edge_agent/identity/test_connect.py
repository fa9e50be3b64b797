"""An enrolled device's connections: what it shows, whom it believes, what it says when refused."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.identity.enrolled import Enrolled
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.identity.service_clock import ServiceClock
from edge_agent.uplink.dial import InsecureDial, SecureDial, dial_insecure, dial_secure
from edge_agent.uplink.scenes import Scene, Scenes
from protos.errors import (
    BridgeError,
    CertificateError,
    ClockError,
    OfflineError,
    UnauthenticatedError,
)
from tests.edge_agent.identity.test_enrol import enrolled, run, service
from tests.edge_agent.uplink.traffic import assert_one_answer_each, deliver_all, requests
from tests.fakes.fake_bridge import FakeBridge
from tests.fakes.fake_edge import FakeSleep, fake_uplink, make_encoder
from tests.fakes.foreign_authority import ForeignAuthority
from tests.fakes.secure_bridge import DAY_S, SecureBridge


@pytest.fixture
def file(tmp_path: Path) -> IdentityFile:
    return IdentityFile.under(tmp_path / "state")


def grown_up(file: IdentityFile) -> None:
    """A certificate that every front end of the service has had time to hear of."""
    os.utime(file.path, (time.time() - 60, time.time() - 60))


async def refused(dial: SecureDial | InsecureDial, tmp_path: Path) -> BridgeError:
    """What a device says that cannot connect."""
    uplink = fake_uplink(dial, tmp_path, retries=0)
    with pytest.raises(BridgeError) as caught:
        await uplink.connect()
    await uplink.close()
    return caught.value


def test_frames_travel_in_tls_under_the_devices_own_certificate(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            made = await enrolled(served, file)
            dial = dial_secure(served.address, Enrolled(file))
            uplink, items = fake_uplink(dial, tmp_path), requests(3)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert served.serials == [made.serial]
            await uplink.close()

    run(test)


def test_another_service_is_not_believed_and_gets_nothing(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as one, service(tmp_path / "b") as other:
            await enrolled(one, file)
            error = await refused(dial_secure(other.address, Enrolled(file)), tmp_path)
            assert isinstance(error, CertificateError) and "nothing was sent" in error.message
            assert not other.negotiations

    run(test)


def test_a_certificate_of_another_service_is_named_as_the_likely_cause(
    tmp_path: Path, file: IdentityFile
) -> None:
    """The server's refusal reaches the client only as a closed socket."""

    async def test() -> None:
        async with service(tmp_path / "a") as one, service(tmp_path / "b") as other:
            await enrolled(one, file)
            dial = dial_secure(other.address, Enrolled(file), other.authority.trusted_pem)
            error = await refused(dial, tmp_path)
            assert isinstance(error, OfflineError)
            assert "refuses the certificate of acme/gate-3" in error.message

    run(test)


def test_a_certificate_that_has_ended_says_enrol_again(tmp_path: Path, file: IdentityFile) -> None:
    async def test() -> None:
        ago = time.time() - 100 * DAY_S
        async with service(tmp_path / "a", now=lambda: ago) as served:
            served.server_pem = served.authority.sign_server(["localhost"], time.time())
            await served.restart()
            await enrolled(served, file)
            error = await refused(dial_secure(served.address, Enrolled(file)), tmp_path)
            assert isinstance(error, CertificateError)
            assert "this device's certificate expired on" in error.message
            assert "enrol --force" in error.message

    run(test)


def test_a_device_that_was_offline_past_its_certificates_end_goes_on_once_it_is_enrolled_again(
    tmp_path: Path, file: IdentityFile
) -> None:
    """Weeks offline: the run stays, and the new identity is used without a restart."""

    class Visited(FakeSleep):
        async def __call__(self, seconds: float) -> None:
            await super().__call__(seconds)
            if len(self.pauses) == 6:
                served.now = time.time
                await enrolled(served, file, force=True)

    async def test() -> None:
        served.server_pem = served.authority.sign_server(["localhost"], time.time())
        await served.restart()
        await enrolled(served, file)  # issued 100 days ago: it has ended
        grown_up(file)
        dial = dial_secure(served.address, Enrolled(file))
        policy = {"retries": None, "give_up_s": 0.0}
        uplink, items = fake_uplink(dial, tmp_path, Visited(), **policy), requests(3)
        uplink.connection._opened = 1  # it was let in before
        assert_one_answer_each(await deliver_all(uplink, items), items)
        expired = uplink.metrics.registry.get_sample_value(
            "neural_bridge_edge_retries_total", {"cause": "certificate"}
        )
        assert expired
        await uplink.close()

    async def with_service() -> None:
        nonlocal served
        ago = time.time() - 100 * DAY_S
        async with service(tmp_path / "a", now=lambda: ago) as served:
            await test()

    served: SecureBridge
    run(with_service)


def test_a_device_whose_clock_is_ahead_still_connects(tmp_path: Path, file: IdentityFile) -> None:
    """The end of a device's certificate is the service's matter, by the service's clock."""

    async def test() -> None:
        async with service(tmp_path / "a") as served:
            await enrolled(served, file)
            ahead = ServiceClock(lambda: time.time() + 1000 * DAY_S)
            dial = dial_secure(served.address, Enrolled(file, ahead))
            uplink, items = fake_uplink(dial, tmp_path), requests(1)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            await uplink.close()

    run(test)


def test_without_a_certificate_a_device_is_told_to_enrol(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            dial = dial_secure(served.address, None, served.authority.trusted_pem)
            error = await refused(dial, tmp_path)
            assert isinstance(error, OfflineError) and "edge-agent enrol" in error.message
            error = await refused(dial_insecure(served.address), tmp_path)
            assert isinstance(error, OfflineError) and "edge-agent enrol" in error.message

    run(test)


def test_a_service_in_plain_text_gets_nothing_from_an_enrolled_device(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        plain = FakeBridge(make_encoder())
        await plain.start()
        async with service(tmp_path / "a") as served:
            await enrolled(served, file)
        error = await refused(dial_secure(plain.address, Enrolled(file)), tmp_path)
        assert isinstance(error, CertificateError) and "--insecure" in error.message
        assert not plain.negotiations
        await plain.stop()

    run(test)


@pytest.mark.parametrize(
    ("begin_days", "end_days", "kind", "said"),
    [
        (10, 20, ClockError, "waiting for the time"),
        (-20, -10, CertificateError, "set the clock if it is wrong"),
    ],
)
def test_a_server_certificate_that_does_not_fit_this_clock_is_told(
    tmp_path: Path,
    file: IdentityFile,
    begin_days: float,
    end_days: float,
    kind: type[BridgeError],
    said: str,
) -> None:
    """Other authorities date certificates from today: to a clock at 1970 they are of the future."""

    async def test() -> None:
        foreign = ForeignAuthority()
        now = time.time()
        pem = foreign.server(now + begin_days * DAY_S, now + end_days * DAY_S)
        async with service(tmp_path / "a", server_pem=pem) as served:
            dial = dial_secure(served.address, None, foreign.root_pem)
            error = await refused(dial, tmp_path)
            assert isinstance(error, kind) and said in error.message
            assert error.retryable is (kind is ClockError)

    run(test)


def test_a_device_waits_for_the_time_and_goes_on_once_it_is_set(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        foreign = ForeignAuthority()
        now = time.time()
        future = foreign.server(now + DAY_S, now + 2 * DAY_S)
        present = foreign.server(now - DAY_S, now + DAY_S)
        async with service(tmp_path / "a", server_pem=future) as served:
            await enrolled_by(served, file)
            sleep = Repaired(served, present)
            dial = dial_secure(served.address, Enrolled(file), foreign.root_pem)
            uplink, items = fake_uplink(dial, tmp_path, sleep, retries=None), requests(2)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            assert uplink.metrics.registry.get_sample_value(
                "neural_bridge_edge_retries_total", {"cause": "clock"}
            )
            await uplink.close()

    run(test)


async def enrolled_by(served: SecureBridge, file: IdentityFile) -> None:
    """Enrol while the server still has a certificate of its own authority."""
    served.server_pem, kept = b"", served.server_pem
    await served.restart()
    await enrolled(served, file)
    served.server_pem = kept
    await served.restart()


class Repaired(FakeSleep):
    """After some pauses the time is right: here, the server's certificate is."""

    def __init__(self, served: SecureBridge, pem: bytes) -> None:
        super().__init__()
        self._served, self._pem = served, pem

    async def __call__(self, seconds: float) -> None:
        await super().__call__(seconds)
        if len(self.pauses) > 4 and self._served.server_pem != self._pem:
            self._served.server_pem = self._pem
            await self._served.restart()


# ---------------------------------------------------------------------- revoked


def test_a_revoked_device_says_so_once_in_a_while_and_comes_back_when_it_may(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            made = await enrolled(served, file)
            grown_up(file)
            sleep = FakeSleep()
            dial = dial_secure(served.address, Enrolled(file))
            uplink = fake_uplink(dial, tmp_path, sleep, retries=None, give_up_s=0)
            await deliver_all(uplink, first := requests(2))
            await served.revoke(made.serial)
            while uplink.connected:
                await asyncio.sleep(0.001)
            work = asyncio.create_task(deliver_all(uplink, later := requests(8)))
            while sleep.clock() < 3600:
                await asyncio.sleep(0)
            assert not work.done(), "a run keeps its frames"
            asked = served.negotiations
            served.revoked.clear()
            assert_one_answer_each(await work, later)
            assert asked <= 3600 / 100, "an hour of it is no more than an attempt in 100 s"
            assert first
            await uplink.close()

    run(test)


def test_a_revoked_device_that_does_not_wait_ends_with_the_cause(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            made = await enrolled(served, file)
            grown_up(file)
            uplink = fake_uplink(dial_secure(served.address, Enrolled(file)), tmp_path)
            await deliver_all(uplink, requests(1))
            await served.revoke(made.serial)
            while uplink.connected:
                await asyncio.sleep(0.001)
            outcomes = await deliver_all(uplink, requests(4))
            assert all(isinstance(o.error, UnauthenticatedError) for o in outcomes)
            assert served.negotiations == 1, "the server was not asked again at once"
            await uplink.close()
            error = await refused(dial_secure(served.address, Enrolled(file)), tmp_path)
            assert isinstance(error, UnauthenticatedError)

    run(test)


def test_a_device_that_enrols_again_is_let_in_without_a_restart_or_a_wait(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            made = await enrolled(served, file)
            grown_up(file)
            sleep = FakeSleep()
            dial = dial_secure(served.address, Enrolled(file))
            uplink = fake_uplink(dial, tmp_path, sleep, retries=None, give_up_s=0)
            await deliver_all(uplink, requests(1))
            await served.revoke(made.serial)
            while uplink.connected:
                await asyncio.sleep(0.001)
            fresh = await enrolled(served, file, force=True)
            assert_one_answer_each(await deliver_all(uplink, items := requests(2)), items)
            assert served.serials[-1] == fresh.serial
            await uplink.close()

    run(test)


def test_an_identity_that_is_damaged_under_way_is_told(tmp_path: Path, file: IdentityFile) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            made = await enrolled(served, file)
            uplink = fake_uplink(dial_secure(served.address, Enrolled(file)), tmp_path)
            await deliver_all(uplink, requests(1))
            file.save(replace(made, device="gate-4"))
            await served.restart()
            (outcome,) = await deliver_all(uplink, requests(1))
            assert isinstance(outcome.error, CertificateError)
            await uplink.close()

    run(test)


@pytest.mark.parametrize("patient", [True, False])
def test_a_question_that_a_revoked_device_asks_about_a_held_scene_is_told_once(
    tmp_path: Path, file: IdentityFile, patient: bool
) -> None:
    """Ask is a call of its own: it may be refused before the stream is."""

    async def test() -> None:
        async with service(tmp_path / "a") as served:
            made = await enrolled(served, file)
            grown_up(file)
            give_up_s = 0.0 if patient else 60.0
            dial = dial_secure(served.address, Enrolled(file))
            sleep = FakeSleep()
            uplink = fake_uplink(dial, tmp_path, sleep, retries=None, give_up_s=give_up_s)
            scenes = Scenes(uplink)
            scene = await scenes.hold(requests(1, question="")[0])
            assert isinstance(scene, Scene)
            served.revoked.add(made.serial)
            work = asyncio.create_task(scenes.ask(scene, b"12345678", "what ?", 4))
            if patient:
                while sleep.clock() < 1000:
                    await asyncio.sleep(0)
                served.revoked.clear()
                outcome = await work
                assert outcome.answer is not None and outcome.answer.text == "about what ?"
            else:
                error = (await work).error
                assert isinstance(error, UnauthenticatedError)
                assert error.message.count("does not accept") == 1
            await uplink.close()

    run(test)


def test_a_certificate_that_another_front_end_has_not_heard_of_yet_is_shown_again_soon(
    tmp_path: Path, file: IdentityFile
) -> None:
    async def test() -> None:
        async with service(tmp_path / "a") as served:
            made = await enrolled(served, file)
            served.revoked.add(made.serial)
            sleep = FakeSleep()
            uplink = fake_uplink(dial_secure(served.address, Enrolled(file)), tmp_path, sleep)
            work = asyncio.create_task(deliver_all(uplink, items := requests(1)))
            while not sleep.pauses:
                await asyncio.sleep(0)
            served.revoked.clear()
            assert_one_answer_each(await work, items)
            assert sum(sleep.pauses) < 15
            await uplink.close()

    run(test)
