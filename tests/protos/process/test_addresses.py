"""Addresses as people type them: what is taken, and what is advised where one is wrong."""

from __future__ import annotations

import socket

import pytest

from protos.errors import ConfigError
from protos.process import addresses
from protos.process.addresses import Address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("[::1]:50051", "::1", 50051),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("localhost:65535", "localhost", 65535),
        ("cloud.example:443", "cloud.example", 443),
        ("my_service:1", "my_service", 1),
        ("a.b.:80", "a.b.", 80),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert addresses.parse(text) == Address(host, port)
    assert str(addresses.parse(text)) == text
    assert addresses.target(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("::1:50051", r"in brackets: \[::1\]:50051"),
        ("2001:db8::7:50051", r"in brackets: \[2001:db8::7\]:50051"),
        ("::1", r"in brackets: \[::1\]:PORT"),
        ("a:b:c", r"in brackets"),
        ("[::1]", r"no port: expected \[::1\]:PORT"),
        ("[::1]50051", "no port"),
        ("[::1:50051", "not closed"),
        ("[10.0.0.1]:5", "only IPv6 addresses stand in brackets"),
        ("[::g]:5", "no IPv6 address"),
        ("nowhere", "no port: expected host:port"),
        (":50051", "no host"),
        ("host:", "'' is no port"),
        ("host:0", "1 to 65535"),
        ("host:65536", "1 to 65535"),
        ("host:-1", "1 to 65535"),
        ("host:５００", "1 to 65535"),
        ("host:x", "'x' is no port"),
        ("256.0.0.1:50051", "no IPv4 address"),
        ("1.2.3:50051", "no IPv4 address"),
        ("http://host:50051", "without http://"),
        ("grpc://[::1]:50051", "without grpc://"),
        ("ho st:5", "no blanks"),
        (" host:5", "no blanks"),
        ("", "not empty"),
        ("-x:5", "no host name"),
        ("a..b:5", "no host name"),
    ],
)
def test_what_is_no_address_is_refused_with_advice(text: str, said: str) -> None:
    for read in (addresses.parse, addresses.target):
        with pytest.raises(ConfigError, match=said):
            read(text)


@pytest.mark.parametrize(
    "text",
    [
        "ipv6:[::1]:50051",
        "ipv4:127.0.0.1:50051",
        "ipv4:10.0.0.1:1,10.0.0.2:1",
        "dns:cloud.example:50051",
        "dns://8.8.8.8/cloud.example:50051",
        "unix:/run/bridge.sock",
        "unix:///run/bridge.sock",
        "unix-abstract:bridge",
    ],
)
def test_grpcs_own_forms_are_taken(text: str) -> None:
    assert addresses.target(text) == text


def test_grpcs_own_forms_are_held_to_the_same_rule() -> None:
    assert addresses.target("dns:///cloud.example:50051") == "dns:cloud.example:50051"
    for text in ("ipv6:::1:50051", "ipv6:10.0.0.1:5", "ipv4:[::1]:5", "dns:host", "unix:", "ipv4:"):
        with pytest.raises(ConfigError):
            addresses.target(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [("::", "::"), ("[::]", "::"), ("[::1]", "::1"), ("0.0.0.0", "0.0.0.0"), ("box", "box")],
)
def test_a_host_alone_stands_with_or_without_brackets(text: str, host: str) -> None:
    assert addresses.host(text) == host


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("localhost:9464", "a host alone"),
        ("[::1]:9464", "a host alone"),
        ("[10.0.0.1]", "no"),
        ("[::1", "no"),
        ("::zz", "no IPv6"),
        ("unix:/run/x", "no"),
        ("http://x", "without http"),
        ("300.1.1.1", "no IPv4"),
    ],
)
def test_what_is_no_host_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        addresses.host(text)


@pytest.mark.parametrize(
    ("text", "is_loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("LOCALHOST.:1", True),
        ("unix:/x", True),
        ("ipv6:[::1]:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("dns:localhost:1", True),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_loopback_is_known_by_its_text(text: str, is_loopback: bool) -> None:
    assert addresses.loopback(text) is is_loopback


@pytest.mark.parametrize(
    ("host", "reached_by"),
    [("127.0.0.1", ["127.0.0.1"]), ("::1", ["::1"]), ("::", ["127.0.0.1", "::1"])],
)
def test_a_port_is_reached_by_every_address_of_its_host(host: str, reached_by: list[str]) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    sockets = addresses.listen(host, 0)
    try:
        for each in reached_by:
            socket.create_connection((each, sockets[0].getsockname()[1]), timeout=5).close()
    finally:
        for one in sockets:
            one.close()


def test_all_addresses_of_a_name_share_one_port() -> None:
    sockets = addresses.listen("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
    finally:
        for one in sockets:
            one.close()
