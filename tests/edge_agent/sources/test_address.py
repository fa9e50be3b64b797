"""Addresses of cameras: what may be written, what is passed on, and that no password is shown."""

from __future__ import annotations

import pytest

from edge_agent.sources import open_source
from edge_agent.sources.address import Address, shown
from protos.errors import SourceError


def test_options_are_typed_and_taken_out_of_what_the_decoder_opens() -> None:
    address = Address.parse("rtsp://cam/live?width=640&height=480&fps=2.5&transport=udp&name=gate")
    assert address.url == "rtsp://cam/live"
    assert address.options == {
        "width": 640,
        "height": 480,
        "fps": 2.5,
        "transport": "udp",
        "name": "gate",
    }
    assert Address.parse("v4l2:///dev/video0").url == "/dev/video0"
    assert Address.parse("csi://1?fps=5").place == "1"
    assert Address.parse("file:///a%20b%3F.mp4?loop=1").url == "/a b?.mp4"


def test_parameters_of_a_makers_own_reach_the_camera() -> None:
    address = Address.parse("rtsp://cam/realmonitor?channel=1&subtype=0&fps=2&query=a%3Db%26c%3Dd")
    assert address.url == "rtsp://cam/realmonitor?channel=1&subtype=0&a=b&c=d"
    assert address.options == {"fps": 2.0}


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("rtsp://cam/live?transprot=tcp", "did you mean transport"),
        ("rtsp://cam/live?bogus=1", "known: name, width"),
        ("v4l2:///dev/video0?widht=640", "did you mean width"),
        ("file:///clip.mp4?transport=tcp", "there is no option 'transport'"),
        ("csi://0?width=wide", "width must be a whole number"),
        ("csi://0?width=0", "from 16"),
        ("csi://0?fps=nan", "fps must be a number"),
        ("csi://0?fps=-1", "fps must be a number"),
        ("csi://0?fps=1&fps=2", "given twice"),
        ("rtsp://cam/live?transport=carrier-pigeon", "tcp or udp"),
        ("rtsp://cam/live?by=magic", "pyav or gstreamer"),
        ("file:///clip.mp4?loop=yes", "0 or 1"),
        ("rtsp://", "names no camera"),
        ("v4l2:", "names no camera"),
        ("rtsp://?fps=1", "names no camera"),
        ("rtsp://u:sesame@cam/live?fsp=1", r"\*\*\*@cam"),
        ("rtsp://u:sesame@/live", "a host or an address"),
        ("rtsp://cam:99999/live", "a port from 1"),
        ("rtsp://cam:0/live", "a port from 1"),
        ("rtsp://[::1/live", "a host or an address"),
        ("rtsp://sesame#/me@cam/live", "percent-encode"),
        ("v4l2:///dev/vid%00eo0", "names no camera"),
        ("csi://x", "the camera is a number"),
        ("csi://0?width=0000000640999", "from 16 to 16384"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_write(uri: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        Address.parse(uri)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "rtsp://admin:sesame@10.0.0.7:554/s1",
        "RTSP://admin:sesame@cam/s",
        "rtsp://admin:ses@me@cam/live",
        "rtsp://admin:s[es@cam/live",
        "rtsp://admin:sesame/me?x@cam/live",
        "rtps://admin:sesame@cam/live",
    ],
)
def test_no_form_of_an_address_shows_its_password(uri: str) -> None:
    assert "ses" not in shown(uri) and "admin" not in shown(uri) and "cam" in shown(uri + "cam")
    assert "ses" not in shown(f"cannot open '{uri}': refused")
    with pytest.raises(SourceError) as caught:
        open_source(uri.replace("rtsp", "rtspx").replace("RTSP", "moon"))
    assert "ses" not in str(caught.value)


def test_a_decoders_message_is_scrubbed_of_every_form_of_the_password() -> None:
    address = Address.parse("rtsp://admin:pass%2Fword@cam/live")
    said = address.scrub("401 for admin:pass/word, sent pass%2Fword to rtsp://admin:pass/word@cam")
    assert "pass" not in said and "401 for" in said


@pytest.mark.parametrize(
    "host", ["cam", "10.0.0.7:554", "[fe80::1%eth0]:8554", "u:p@ss[1@cam.local"]
)
def test_hosts_in_every_usual_form_are_taken(host: str) -> None:
    assert Address.parse(f"rtsp://{host}/live").url == f"rtsp://{host}/live"


@pytest.mark.parametrize(
    "uri", ["", "folder:", "folder://", "folder://?watch=1", "folder:///a%00b"]
)
def test_an_empty_address_is_not_the_current_folder(uri: str) -> None:
    with pytest.raises(SourceError, match="names no folder"):
        open_source(uri)
