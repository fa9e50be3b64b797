"""The way to the server: what the agent does on it, and what it says when it is barred."""

from __future__ import annotations

import asyncio
import gc
import ssl
from pathlib import Path

import grpc
import pytest

from edge_agent.identity.enrolled import Enrolled
from edge_agent.identity.identity_file import IdentityFile
from edge_agent.uplink.dial import InsecureDial, SecureDial, dial_insecure, dial_secure
from edge_agent.uplink.servers import Servers
from protos.errors import (
    BridgeError,
    CaptivePortalError,
    CertificateError,
    ConfigError,
    OfflineError,
)
from protos.process import proxies
from tests.edge_agent.identity.test_enrol import enrolled, service
from tests.edge_agent.uplink.networks import ConnectProxy, NameServer, login_page, silence
from tests.edge_agent.uplink.traffic import (
    assert_one_answer_each,
    bridge,
    deliver_all,
    requests,
    run,
)
from tests.fakes.fake_edge import FakeSleep, fake_uplink
from tests.fakes.foreign_authority import ForeignAuthority


async def refused(dial: SecureDial | InsecureDial, tmp_path: Path) -> BridgeError:
    uplink = fake_uplink(dial, tmp_path, retries=0)
    with pytest.raises(BridgeError) as caught:
        await uplink.connect()
    await uplink.close()
    return caught.value


def shown(authority: ForeignAuthority, name: str, tmp_path: Path) -> ssl.SSLContext:
    """What a server of that name shows."""
    file = tmp_path / "shown.pem"
    file.write_bytes(authority.server(0, 4e9, name))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


# ---------------------------------------------------------------------- login pages


def test_a_login_page_in_plain_text_is_told_from_a_server(tmp_path: Path) -> None:
    async def test() -> None:
        with login_page() as port:
            error = await refused(dial_insecure(f"127.0.0.1:{port}"), tmp_path)
            assert isinstance(error, CaptivePortalError) and error.retryable
            assert "captive portal or proxy" in error.message
            roots = ForeignAuthority().root_pem
            error = await refused(dial_secure(f"localhost:{port}", None, roots), tmp_path)
            assert isinstance(error, CaptivePortalError), error

    run(test)


def test_a_login_page_under_another_name_is_told_from_a_server_of_another_authority(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        ours, theirs = ForeignAuthority(), ForeignAuthority()
        with login_page(shown(theirs, "login.hotel.example", tmp_path)) as port:
            dial = dial_secure(f"localhost:{port}", None, ours.root_pem)
            error = await refused(dial, tmp_path)
            assert isinstance(error, CaptivePortalError) and "login.hotel.example" in error.message
        with login_page(shown(theirs, "localhost", tmp_path)) as port:
            dial = dial_secure(f"localhost:{port}", None, ours.root_pem)
            error = await refused(dial, tmp_path)
            assert isinstance(error, CertificateError), error
        with login_page(shown(ours, "localhost", tmp_path)) as port:  # it speaks no HTTP/2
            dial = dial_secure(f"localhost:{port}", None, ours.root_pem)
            error = await refused(dial, tmp_path)
            assert isinstance(error, CaptivePortalError), error

    run(test)


@pytest.mark.parametrize("named", ["", "login.hotel.example"], ids=["plain text", "tls"])
def test_a_login_page_that_comes_after_the_first_session_bars_nothing(
    tmp_path: Path, named: str
) -> None:
    """An agent that has a session calls Events first, not Negotiate."""

    async def test() -> None:
        context = shown(ForeignAuthority(), named, tmp_path) if named else None
        async with service(tmp_path / "a") as served:
            file = IdentityFile.under(tmp_path / "state")
            await enrolled(served, file)
            uplink = fake_uplink(dial_secure(served.address, Enrolled(file)), tmp_path, retries=0)
            assert_one_answer_each(await deliver_all(uplink, first := requests(1)), first)
            await served.stop()
            while uplink.connected:  # until the agent has seen that its stream ended
                await asyncio.sleep(0.01)
            with login_page(context, port=int(served.address.rpartition(":")[2])):
                (outcome,) = await deliver_all(uplink, requests(1, question="later {}"))
                error = outcome.error
                assert isinstance(error, CaptivePortalError) and named in error.message, error
            await served.start()
            items = requests(1, question="last {}")
            assert_one_answer_each(await deliver_all(uplink, items), items)
            await uplink.close()

    run(test)


def test_once_somebody_has_logged_in_every_frame_goes_on(tmp_path: Path) -> None:
    class LoggedIn(FakeSleep):
        async def __call__(self, seconds: float) -> None:
            await super().__call__(seconds)
            if len(self.pauses) > 6:
                addresses.addresses = ("127.0.0.2",)

    async def test() -> None:
        items = requests(3)
        with login_page() as port:
            async with bridge(host="127.0.0.2", port=port) as served:
                uplink = fake_uplink(
                    dial_insecure(f"dns://127.0.0.1:{addresses.port}/cloud.example:{port}"),
                    tmp_path,
                    LoggedIn(),
                    retries=None,
                    give_up_s=0.0,
                )
                assert_one_answer_each(await deliver_all(uplink, items), items)
                retries = "neural_bridge_edge_retries_total"
                count = uplink.metrics.registry.get_sample_value(
                    retries, {"cause": "captive_portal"}
                )
                assert count and served.negotiations == 1
                await uplink.close()

    addresses = NameServer("127.0.0.1")
    with addresses.open():
        run(test)


# ---------------------------------------------------------------------- names


def test_a_name_that_moves_is_resolved_anew_by_the_next_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as old:
            port = int(old.address.rpartition(":")[2])
            async with bridge(host="127.0.0.2", port=port) as new:
                dial = dial_insecure(f"dns://127.0.0.1:{names.port}/cloud.example:{port}")
                uplink = fake_uplink(dial, tmp_path)
                await deliver_all(uplink, requests(1))
                names.addresses = ("127.0.0.2",)
                await old.stop()
                items = requests(2, question="later {}")
                assert_one_answer_each(await deliver_all(uplink, items), items)
                assert old.negotiations == new.negotiations == 1
                await uplink.close()

    with NameServer("127.0.0.1").open() as names:
        run(test)


def test_a_network_with_ipv6_alone_is_enough(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(host="[::1]") as served:
            port = served.address.rpartition(":")[2]
            for address in (
                served.address,
                f"dns://127.0.0.1:{names.port}/cloud.example:{port}",
            ):
                uplink, items = fake_uplink(dial_insecure(address), tmp_path), requests(2)
                assert_one_answer_each(await deliver_all(uplink, items), items)
                await uplink.close()

    with NameServer("::1").open() as names:
        run(test)


# ---------------------------------------------------------------------- nobody says anything


@pytest.mark.parametrize("secure", [False, True], ids=["plain text", "tls"])
def test_a_server_that_accepts_and_says_nothing_is_left_for_the_next(
    tmp_path: Path, secure: bool
) -> None:
    async def test() -> None:
        with silence() as port:
            async with bridge() as served:
                mute: SecureDial | InsecureDial = dial_insecure(f"127.0.0.1:{port}")
                if secure:
                    mute = dial_secure(f"localhost:{port}", None, ForeignAuthority().root_pem)
                uplink = fake_uplink(
                    Servers([mute, dial_insecure(served.address)]), tmp_path, connect_timeout_s=0.3
                )
                items = requests(2)
                assert_one_answer_each(await deliver_all(uplink, items), items)
                await uplink.close()

    run(test)


def test_a_name_server_that_says_nothing_blocks_no_longer_than_a_connection_may(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        names.mute = True
        async with bridge() as served:
            gone = dial_insecure(f"dns://127.0.0.1:{names.port}/cloud.example:50051")
            uplink = fake_uplink(
                Servers([gone, dial_insecure(served.address)]), tmp_path, connect_timeout_s=0.3
            )
            items = requests(1)
            assert_one_answer_each(await deliver_all(uplink, items), items)
            await uplink.close()

    with NameServer().open() as names:
        run(test)


# ---------------------------------------------------------------------- proxies


def test_a_proxy_with_a_password_is_used_and_its_password_never_shown(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            to_port = int(served.address.rpartition(":")[2])
            with ConnectProxy(to_port, "ann:s3cret").open() as proxy:
                url = f"http://ann:s3cret@127.0.0.1:{proxy.port}"
                dial = dial_insecure("cloud.example:50051", {}, url)
                uplink, items = fake_uplink(dial, tmp_path), requests(2)
                assert_one_answer_each(await deliver_all(uplink, items), items)
                await uplink.close()
                assert set(proxy.asked) == {"cloud.example:50051"}
                assert "s3cret" not in repr(dial) and "(--proxy)" in dial.proxy
                wrong = dial_insecure("cloud.example:50051", {}, url.replace("s3cret", "wr0ng"))
                error = await refused(wrong, tmp_path)
                assert isinstance(error, OfflineError)
                assert "407" in error.message and "user and password" in error.message
                assert "wr0ng" not in error.message

    run(test)


def test_a_server_that_no_proxy_names_is_reached_without_one() -> None:
    exceptions = {"no_proxy": "cloud.example"}
    assert dial_insecure("cloud.example:1", exceptions, "http://p:3128").via == ""
    assert dial_insecure("other.example:1", exceptions, "http://p:3128").via == "http://p:3128"
    assert dial_insecure("127.0.0.1:1", {}, "http://p:3128").via == ""


def test_a_proxy_that_takes_a_connection_and_says_nothing_is_bounded_and_named(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        with ConnectProxy(1, mute=True).open() as proxy:
            dial = dial_insecure("cloud.example:50051", {}, f"http://127.0.0.1:{proxy.port}")
            uplink = fake_uplink(dial, tmp_path, retries=0, connect_timeout_s=0.3)
            with pytest.raises(OfflineError, match=f"127.0.0.1:{proxy.port}"):
                await uplink.connect()
            await uplink.close()

    run(test)


@pytest.mark.parametrize("url", ["ann:s3cret@p:1", "https://ann:s3cret@p:1", "http://s3cret@:x"])
def test_a_proxy_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="--proxy") as caught:
        proxies.checked(url)
    assert "s3cret" not in str(caught.value)


def test_an_error_that_is_kept_keeps_no_call_and_so_no_channel_that_goes_on_connecting(
    tmp_path: Path,
) -> None:
    def calls() -> int:
        return sum(isinstance(found, grpc.aio.Call) for found in gc.get_objects())

    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path, retries=0)
            assert_one_answer_each(await deliver_all(uplink, first := requests(1)), first)
            await served.stop()
            while uplink.connected:
                await asyncio.sleep(0.01)
            gc.collect()
            before = calls()
            gc.disable()  # a cycle with the error would be found by the collector, but only later
            try:
                kept = [(await deliver_all(uplink, requests(1)))[0].error for _ in range(5)]
                assert all(error is not None and error.retryable for error in kept), kept
                assert calls() <= before
            finally:
                gc.enable()
            await uplink.close()

    run(test)
