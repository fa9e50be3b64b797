"""Negotiation: what is refused, and that the encoder is the one that was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.errors import (
    BundleCorruptError,
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
            assert not list(tmp_path.iterdir())
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
