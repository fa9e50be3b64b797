"""The authority: what it signs, what it refuses, how its intermediate and its root are replaced."""

from __future__ import annotations

import datetime
import ipaddress
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import verification

from cloud_server.identity import certificates
from cloud_server.identity.authority import DAY_S, ROOT_KEY, SUCCESSOR_KEY, Authority
from cloud_server.identity.certificates import LONGEST_REQUEST
from protos.errors import BridgeError, CertificateError, ConfigError, ConflictError

NOW = time.time()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path, NOW)


def request(key: object = None, name: str = "anything", digest: object = None) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject)
    chosen = key or ec.generate_private_key(ec.SECP256R1())
    by = None if isinstance(chosen, ed25519.Ed25519PrivateKey) else digest or hashes.SHA256()
    return made.sign(chosen, by).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]


def sign(authority: Authority, made: bytes | None = None, life_s: float = 90 * DAY_S) -> bytes:
    return authority.sign_device(made or request(), "acme", "gate-3", NOW, life_s).chain_pem


def names_of(chain_pem: bytes, roots_pem: bytes, at: datetime.datetime | None = None) -> list[str]:
    """Verify a device's chain as another implementation does; the names in it."""
    leaf, *between = x509.load_pem_x509_certificates(chain_pem)
    store = verification.Store(x509.load_pem_x509_certificates(roots_pem))
    verifier = verification.PolicyBuilder().store(store).time(at or datetime.datetime.now())
    subjects = verifier.build_client_verifier().verify(leaf, between).subjects
    return [str(name.value) for name in subjects or ()]


def test_a_device_is_named_by_the_service_and_by_nothing_in_its_request(
    authority: Authority,
) -> None:
    chain = sign(authority, request(name="spiffe://neuralbridge/tenant/other/device/x"))
    named = ["spiffe://neuralbridge/tenant/acme/device/gate-3"]
    assert names_of(chain, authority.trusted_pem) == named
    assert b"other" not in x509.load_pem_x509_certificates(chain)[0].public_bytes(
        serialization.Encoding.DER
    )


def test_a_certificate_is_valid_for_a_clock_that_was_never_set(authority: Authority) -> None:
    assert names_of(sign(authority), authority.trusted_pem, datetime.datetime(1970, 1, 1, 0, 1))


def test_a_certificate_expires_as_asked_and_never_after_its_intermediate(
    authority: Authority,
) -> None:
    issued = authority.sign_device(request(), "acme", "gate-3", NOW, 90 * DAY_S)
    assert issued.not_after_s == int(NOW + 90 * DAY_S)
    late = authority.sign_device(request(), "acme", "gate-3", NOW, 9000 * DAY_S)
    assert late.not_after_s == certificates.end_of(authority.intermediate.certificate)
    after = datetime.datetime.fromtimestamp(issued.not_after_s + 2, datetime.timezone.utc)
    with pytest.raises(verification.VerificationError):
        names_of(issued.chain_pem, authority.trusted_pem, after)


def test_what_the_database_keeps_of_a_certificate_is_in_the_certificate(
    authority: Authority,
) -> None:
    issued = authority.sign_device(request(), "acme", "gate-3", NOW, DAY_S)
    leaf = x509.load_pem_x509_certificates(issued.chain_pem)[0]
    assert int(issued.serial, 16) == leaf.serial_number and len(issued.serial) == 32
    assert issued.fingerprint == leaf.fingerprint(hashes.SHA256()).hex()


def test_no_two_serial_numbers_are_the_same(authority: Authority) -> None:
    made = request()
    serials = {authority.sign_device(made, "a", "b", NOW, DAY_S).serial for _ in range(50)}
    assert len(serials) == 50


@pytest.mark.parametrize(
    "key",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
)
def test_other_kinds_of_keys_that_tls_takes_get_a_certificate(
    authority: Authority, key: Callable[[], object]
) -> None:
    assert names_of(sign(authority, request(key())), authority.trusted_pem)


def _forged() -> bytes:
    whole = bytearray(request())
    whole[-3] ^= 1
    return bytes(whole)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: b"", "no certificate request"),
        (lambda: b"\x30\x82\xff\xff" + bytes(64), "no certificate request"),
        (lambda: request()[:-1], "no certificate request"),
        (lambda: bytes(LONGEST_REQUEST + 1), "at most 4096"),
        (_forged, "own key|no certificate request"),
        (lambda: request(ed25519.Ed25519PrivateKey.generate()), "P-256"),
        (lambda: request(ec.generate_private_key(ec.SECP256K1())), "P-256"),
        (lambda: request(ec.generate_private_key(ec.SECP224R1())), "P-256"),
        (lambda: request(rsa.generate_private_key(65537, 1024)), "P-256"),
        (lambda: request(rsa.generate_private_key(3, 2048)), "P-256"),
        (lambda: request(digest=hashes.SHA224()), "SHA-256"),
    ],
)
def test_a_request_that_proves_nothing_or_has_a_weak_key_is_refused(
    authority: Authority, made: Callable[[], bytes], why: str
) -> None:
    with pytest.raises(CertificateError, match=why):
        authority.sign_device(made(), "acme", "gate-3", NOW, DAY_S)


def test_only_the_owner_can_read_private_keys(authority: Authority, tmp_path: Path) -> None:
    for name in (ROOT_KEY, "intermediate.pem"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_it_is_the_same_after_it_is_read_again_without_the_roots_key(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / ROOT_KEY).unlink()
    again = Authority.open(tmp_path)
    assert again.roots == authority.roots and again.root_der == authority.root_der
    assert names_of(sign(again), authority.trusted_pem)


def test_a_second_authority_never_overwrites_the_first(
    authority: Authority, tmp_path: Path
) -> None:
    before = (tmp_path / "roots.pem").read_bytes()
    with pytest.raises(ConflictError):
        Authority.create(tmp_path, NOW)
    assert (tmp_path / "roots.pem").read_bytes() == before


def test_a_certificate_of_another_authority_does_not_lead_to_this_root(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority.create(tmp_path / "other", NOW)
    with pytest.raises(verification.VerificationError):
        names_of(sign(other), authority.trusted_pem)


def test_a_new_intermediate_signs_and_what_the_old_one_signed_stays_valid(
    authority: Authority, tmp_path: Path
) -> None:
    old = sign(authority)
    renewed = authority.renew_intermediate(tmp_path / ROOT_KEY, NOW)
    assert renewed.intermediate.certificate != authority.intermediate.certificate
    assert Authority.open(tmp_path).intermediate.certificate == renewed.intermediate.certificate
    for chain in (old, sign(renewed)):
        assert names_of(chain, authority.trusted_pem)


def test_only_a_roots_key_renews_the_intermediate(authority: Authority, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(certificates.key_pem(certificates.fresh_key()))
    before = (tmp_path / "intermediate.pem").read_bytes()
    for act in (authority.renew_intermediate, authority.new_root):
        with pytest.raises(CertificateError, match="not the key of a root"):
            act(stranger, NOW)
    with pytest.raises(CertificateError, match="cannot be read"):
        authority.renew_intermediate(tmp_path / "missing.pem", NOW)
    assert (tmp_path / "intermediate.pem").read_bytes() == before


def test_a_root_is_followed_by_a_successor_that_it_signed(
    authority: Authority, tmp_path: Path
) -> None:
    both = authority.new_root(tmp_path / ROOT_KEY, NOW)
    present, successor, cross = x509.load_pem_x509_certificates(both.roots_pem)
    assert present == authority.roots[0]
    cross.verify_directly_issued_by(present)
    assert cross.public_key() == successor.public_key() and cross.subject == successor.subject
    assert names_of(sign(both), both.trusted_pem), "the old intermediate signs on"

    moved = both.renew_intermediate(tmp_path / SUCCESSOR_KEY, NOW)
    assert moved.by_successor and not both.by_successor
    leaf, between = x509.load_pem_x509_certificates(sign(moved))
    assert names_of(certificates.pem(leaf, between), certificates.pem(successor))
    assert names_of(certificates.pem(leaf, between, cross), authority.trusted_pem), (
        "who trusts only the old root reaches it over the cross"
    )

    alone = moved.retire_root()
    assert alone.roots == (successor,) and Authority.open(tmp_path).roots == (successor,)


def test_a_root_is_not_retired_before_its_successor_signs(
    authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(ConflictError, match="no successor"):
        authority.retire_root()
    both = authority.new_root(tmp_path / ROOT_KEY, NOW)
    with pytest.raises(ConflictError, match="renew-intermediate"):
        both.retire_root()
    with pytest.raises(ConflictError, match="already"):
        both.new_root(tmp_path / ROOT_KEY, NOW)


def test_a_server_is_known_by_each_of_its_names(authority: Authority) -> None:
    made = authority.sign_server(["bridge.example", "10.0.0.5", "::1"], NOW)
    leaf, *between = x509.load_pem_x509_certificates(made)
    store = verification.Store(list(authority.roots))
    for name in (
        x509.DNSName("bridge.example"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.5")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ):
        verifier = verification.PolicyBuilder().store(store).build_server_verifier(name)
        verifier.verify(leaf, between)
    other = verification.PolicyBuilder().store(store)
    with pytest.raises(verification.VerificationError):
        other.build_server_verifier(x509.DNSName("other.example")).verify(leaf, between)
    with pytest.raises(verification.VerificationError):  # it is no device
        other.build_client_verifier().verify(leaf, between)


def test_a_device_cannot_play_the_server(authority: Authority) -> None:
    leaf, *between = x509.load_pem_x509_certificates(sign(authority))
    store = verification.Store(list(authority.roots))
    verifier = verification.PolicyBuilder().store(store)
    with pytest.raises(verification.VerificationError):
        verifier.build_server_verifier(x509.DNSName("gate-3")).verify(leaf, between)


@pytest.mark.parametrize("name", ["", "a b", "http://x", "x:1", "-x"])
def test_a_server_needs_proper_names(authority: Authority, name: str) -> None:
    with pytest.raises(ConfigError):
        authority.sign_server([name], NOW)


def test_an_expired_intermediate_signs_nothing(authority: Authority) -> None:
    late = NOW + 3 * 365 * DAY_S
    with pytest.raises(CertificateError, match="renew-intermediate"):
        authority.sign_device(request(), "acme", "gate-3", late, DAY_S)
    with pytest.raises(CertificateError, match="renew-intermediate"):
        authority.sign_server(["x"], late)


@pytest.mark.parametrize("file", ["roots.pem", "intermediate.pem"])
@pytest.mark.parametrize("damage", [None, b"", b"\xff\xfe\0", b"half"])
def test_a_damaged_file_is_named(
    authority: Authority, tmp_path: Path, file: str, damage: bytes | None
) -> None:
    path = tmp_path / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200] if damage == b"half" else damage)
    with pytest.raises(BridgeError, match=file):
        Authority.open(tmp_path)


def test_files_of_two_authorities_are_not_mixed(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    Authority.create(tmp_path / "other", NOW)
    for file in ("roots.pem", "intermediate.pem"):
        kept = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes((tmp_path / "other" / file).read_bytes())
        with pytest.raises(CertificateError, match="not signed by a root"):
            Authority.open(tmp_path)
        (tmp_path / file).write_bytes(kept)
