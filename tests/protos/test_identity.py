"""Names, URIs and one-time codes: what one half writes, the other reads."""

import hashlib
from collections.abc import Callable

import pytest

from protos.errors import EnrolmentError
from protos.identity import (
    NAME,
    OneTimeCode,
    device_of,
    device_uri,
    name_from,
    root_fingerprint,
)

ROOT = b"any bytes: the fingerprint is over the certificate's DER"


def test_a_code_is_read_as_it_was_printed_and_as_a_person_types_it() -> None:
    code = OneTimeCode.fresh(ROOT)
    assert OneTimeCode.parse(str(code)) == code
    assert OneTimeCode.parse(f"  {str(code).lower()}\n") == code
    assert code.root == hashlib.sha256(ROOT).digest()[:20] == root_fingerprint(ROOT)


def test_no_two_codes_are_the_same() -> None:
    assert len({OneTimeCode.fresh(ROOT).secret for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: "NB2" + text[3:],
        lambda text: text.replace("-", "", 1),
        lambda text: text[:5] + "1" + text[6:],
        lambda text: text[:5] + "\N{LATIN SMALL LETTER DOTLESS I}" + text[6:],
        lambda text: text + "\n-----BEGIN",
    ],
)
def test_another_text_is_no_code_and_is_not_repeated_in_the_error(
    damage: Callable[[str], str],
) -> None:
    text = damage(str(OneTimeCode.fresh(ROOT)))
    with pytest.raises(EnrolmentError, match="no one-time code") as error:
        OneTimeCode.parse(text)
    assert not text or text not in str(error.value)


def test_a_code_does_not_show_its_secret_in_a_log() -> None:
    code = OneTimeCode.fresh(ROOT)
    assert code.secret not in repr(code) and code.secret not in f"{[code]}"


def test_a_device_is_read_from_its_uri() -> None:
    assert device_of(device_uri("acme", "gate-3")) == ("acme", "gate-3")
    assert device_uri("acme", "gate-3") == "spiffe://neuralbridge/tenant/acme/device/gate-3"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://neuralbridge/device/gate-3",
        "spiffe://neuralbridge/tenant/acme/device/",
        "spiffe://neuralbridge/tenant/acme/device/Gate",
        "spiffe://neuralbridge/tenant/acme/device/a/b",
        "spiffe://elsewhere/tenant/acme/device/gate-3",
        "spiffe://neuralbridge/tenant/acme/device/gate-3\n",
        "https://neuralbridge/tenant/acme/device/gate-3",
    ],
)
def test_another_uri_names_no_device(uri: str) -> None:
    assert device_of(uri) is None


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("gate-3", "gate-3"),
        ("Gate 3.Local", "gate-3.local"),
        ("-x-", "x"),
        ("Türe_7", "t-re_7"),
        ("", "device"),
        ("日本", "device"),
        ("a" * 80, "a" * 63),
    ],
)
def test_a_hosts_name_becomes_a_valid_name(host: str, name: str) -> None:
    assert name_from(host) == name and NAME.fullmatch(name)
