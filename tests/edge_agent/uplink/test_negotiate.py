"""Negotiation: what is refused, and that the encoder is the one that was named."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import structlog

from edge_agent.uplink import negotiate
from projector.codec.file_format import MAX_BYTES
from protos.errors import (
    BridgeError,
    BundleCorruptError,
    ConfigError,
    IncompatibleLayoutError,
    OfflineError,
    ProtocolVersionError,
)
from tests.edge_agent.uplink.traffic import (
    bridge,
    run,
)
from tests.fakes.fake_edge import fake_uplink, make_encoder

pytestmark = pytest.mark.usefixtures("connections")


def test_an_incompatible_pair_is_refused_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        error = IncompatibleLayoutError("no bundle maps 'fake' to 'large'")
        async with bridge(negotiate_error=error) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            with pytest.raises(IncompatibleLayoutError, match="no bundle maps"):
                await uplink.connect()
            assert served.negotiations == 1
            await uplink.close()

    run(test)


def test_constants_that_do_not_match_are_a_protocol_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            monkeypatch.setattr(
                "edge_agent.uplink.negotiate.session_constants", lambda *_: bytes(32)
            )
            with pytest.raises(ProtocolVersionError):
                await uplink.connect()
            await uplink.close()

    run(test)


def test_the_encoder_is_fetched_once_and_checked_ever_after(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            for fetches in (1, 1):
                uplink = fake_uplink(served.dial, tmp_path)
                await uplink.connect()
                await uplink.close()
                assert served.fetches == fetches
            kept = tmp_path / f"{served.encoder.digest}.safetensors"
            blob = bytearray(kept.read_bytes())
            blob[-1] ^= 1
            kept.write_bytes(blob)
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            await uplink.close()
            assert served.fetches == 2

    run(test)


def test_an_encoder_may_take_as_long_as_a_narrow_link_needs(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge() as served:
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            await uplink.close()
            assert served.fetch_deadlines == [None]

    run(test)


def test_an_encoder_of_which_nothing_more_comes_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(silent_fetch=True) as served:
            uplink = fake_uplink(served.dial, tmp_path, retries=0, connect_timeout_s=0.5)
            with pytest.raises(OfflineError, match="nothing more of the encoder came"):
                await uplink.connect()
            assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
            await uplink.close()

    run(test)


@pytest.mark.parametrize("folder", ["state", "file/state"])
def test_an_encoder_arrives_though_the_link_breaks_after_every_piece(
    tmp_path: Path, folder: str
) -> None:
    """Each piece goes up once; without a folder that can be written it waits in memory."""
    (tmp_path / "file").touch()

    async def test() -> None:
        async with bridge(fetch_breaks_after=1) as served:
            size = len(served.encoder.to_bytes())
            uplink = fake_uplink(served.dial, tmp_path / folder, retries=None, give_up_s=1e6)
            if folder == "state":
                await uplink.connect()
                kept = tmp_path / folder / f"{served.encoder.digest}.safetensors"
                assert kept.read_bytes() == served.encoder.to_bytes()
                assert kept.stat().st_mode & 0o777 == 0o600
                assert list(kept.parent.iterdir()) == [kept]
            else:
                with pytest.raises(ConfigError, match="state_dir"):
                    await uplink.connect()
            assert served.fetch_offsets == list(range(0, size, 1000)) and size > 2000
            await uplink.close()

    run(test)


def test_an_encoder_goes_on_after_a_restart_of_the_agent(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(fetch_breaks_after=2) as served:
            uplink = fake_uplink(served.dial, tmp_path, retries=0)
            with pytest.raises(BridgeError):
                await uplink.connect()
            await uplink.close()
            served.fetch_breaks_after = 0
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            assert served.fetch_offsets == [0, 2000]
            await uplink.close()

    run(test)


def test_the_log_says_how_long_an_encoder_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negotiate, "TELL_S", 0.0)
    monkeypatch.setattr(negotiate, "monotonic", itertools.count(100.0, 5.0).__next__)

    async def test() -> None:
        async with bridge() as served:
            size = len(served.encoder.to_bytes())
            (tmp_path / f"{served.encoder.digest}.part").write_bytes(
                served.encoder.to_bytes()[:500]
            )
            uplink = fake_uplink(served.dial, tmp_path)
            log = structlog.testing.CapturingLogger()
            monkeypatch.setattr(structlog, "get_logger", lambda **_: log)
            await uplink.connect()
            told = [call.kwargs for call in log.calls if call.args == ("encoder_arrives",)]
            assert [line["bytes"] for line in told] == [1500, 2500, size]
            assert {line["of"] for line in told} == {size}
            # five seconds a piece of 1000 bytes
            assert [line["eta_s"] for line in told] == [round((size - 1500) / 200), 1, 0]
            await uplink.close()

    run(test)


def test_an_older_service_that_sends_all_of_the_encoder_is_noticed(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(knows_offset=False) as served:
            blob = served.encoder.to_bytes()
            part = tmp_path / f"{served.encoder.digest}.part"
            part.write_bytes(blob[:2500])
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            assert served.fetch_offsets == [2500], "one call, and what it sends is used"
            assert part.with_suffix(".safetensors").read_bytes() == blob and not part.exists()
            await uplink.close()

    run(test)


@pytest.mark.parametrize("kind", ["damaged", "whole but damaged", "too long", "far too long"])
def test_a_damaged_part_is_fetched_once_more_from_the_beginning(tmp_path: Path, kind: str) -> None:
    async def test() -> None:
        async with bridge() as served:
            blob = served.encoder.to_bytes()
            part = tmp_path / f"{served.encoder.digest}.part"
            found = {
                "damaged": b"\0" * 1000,
                "whole but damaged": b"\0" + blob[1:],
                "too long": blob + b"\0",
            }.get(kind, b"")
            part.write_bytes(found)
            if kind == "far too long":
                os.truncate(part, MAX_BYTES + 1)
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            assert served.fetch_offsets == ([len(found), 0] if found else [0])
            assert part.with_suffix(".safetensors").read_bytes() == blob and not part.exists()
            await uplink.close()

    run(test)


def test_an_encoder_that_is_wrong_from_the_beginning_too_is_an_error(tmp_path: Path) -> None:
    async def test() -> None:
        async with bridge(encoder_blob=b"\0" * 5000) as served:
            (tmp_path / f"{served.encoder.digest}.part").write_bytes(b"\0" * 1000)
            uplink = fake_uplink(served.dial, tmp_path)
            with pytest.raises(BundleCorruptError):
                await uplink.connect()
            assert served.fetch_offsets == [1000, 0]
            assert not list(tmp_path.iterdir()), "no wrong bytes wait for the next start"
            await uplink.close()

    run(test)


def test_an_encoder_that_was_all_there_when_the_agent_was_killed_is_not_fetched(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with bridge() as served:
            part = tmp_path / f"{served.encoder.digest}.part"
            part.write_bytes(served.encoder.to_bytes())
            uplink = fake_uplink(served.dial, tmp_path)
            await uplink.connect()
            assert not served.fetches and part.with_suffix(".safetensors").exists()
            await uplink.close()

    run(test)


@pytest.mark.parametrize("blob", [b"short", make_encoder(1).to_bytes()])
def test_an_encoder_that_is_not_the_one_named_is_refused(tmp_path: Path, blob: bytes) -> None:
    async def test() -> None:
        async with bridge(encoder_blob=blob) as served:
            uplink = fake_uplink(served.dial, tmp_path)
            with pytest.raises(BundleCorruptError):
                await uplink.connect()
            assert not list(tmp_path.iterdir())
            await uplink.close()

    run(test)
