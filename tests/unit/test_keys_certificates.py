"""A certificate says what is wanted of it, and one that no longer does is noticed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from lab import pki
from lab.pki import Pair, Wanted

NOW = datetime(2026, 5, 1, tzinfo=UTC)
AUTHORITY = Wanted("test authority", authority=True)
SERVER = Wanted(
    "server", ("group-a", "group-b"), names=("localhost",), addresses=("10.0.0.1",), server=True, client=True
)


@pytest.fixture(scope="module")
def authority() -> Pair:
    return pki.make(AUTHORITY, None, NOW)


@pytest.fixture(scope="module")
def server(authority: Pair) -> Pair:
    return pki.make(SERVER, authority, NOW)


def test_it_does_for_what_it_was_made_for(authority: Pair, server: Pair) -> None:
    assert pki.fault(authority, AUTHORITY, None, NOW) is None
    assert pki.fault(server, SERVER, authority, NOW) is None


def test_it_says_user_and_groups_as_kubernetes_reads_them(server: Pair) -> None:
    subject = server.certificate.subject.rfc4514_string()
    assert subject == "CN=server,O=group-b,O=group-a"


def test_it_is_valid_a_little_before_now_and_for_a_year(server: Pair) -> None:
    certificate = server.certificate
    assert NOW - timedelta(hours=2) < certificate.not_valid_before_utc < NOW
    assert certificate.not_valid_after_utc == NOW + pki.LIFE


def test_it_does_not_outlive_its_authority(authority: Pair) -> None:
    late = authority.certificate.not_valid_after_utc - timedelta(days=40)
    assert pki.make(SERVER, authority, late).certificate.not_valid_after_utc == (
        authority.certificate.not_valid_after_utc
    )


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (replace(SERVER, common_name="other"), "subject"),
        (replace(SERVER, organizations=("group-a",)), "subject"),
        (replace(SERVER, addresses=("10.0.0.2",)), "SubjectAlternativeName"),
        (replace(SERVER, names=("localhost", "more")), "SubjectAlternativeName"),
        (replace(SERVER, names=(), addresses=()), "names that it should not have"),
        (replace(SERVER, client=False), "ExtendedKeyUsage"),
        (replace(SERVER, authority=True), "BasicConstraints"),
    ],
)
def test_one_that_says_something_else_is_noticed(
    authority: Pair, server: Pair, wanted: Wanted, why: str
) -> None:
    assert why in (pki.fault(server, wanted, authority, NOW) or "nothing")


def test_one_near_its_end_is_noticed(authority: Pair, server: Pair) -> None:
    fine = NOW + pki.LIFE - pki.RENEW_BEFORE
    assert pki.fault(server, SERVER, authority, fine) is None
    assert "near its end" in (pki.fault(server, SERVER, authority, fine + timedelta(seconds=1)) or "")


def test_one_from_the_future_is_noticed(authority: Pair, server: Pair) -> None:
    assert "not valid yet" in (pki.fault(server, SERVER, authority, NOW - timedelta(days=1)) or "")


def test_one_of_another_authority_of_the_same_name_is_noticed(server: Pair) -> None:
    impostor = pki.make(AUTHORITY, None, NOW)
    assert "another authority" in (pki.fault(server, SERVER, impostor, NOW) or "")


def test_a_key_that_is_not_the_certificates_is_noticed(authority: Pair, server: Pair) -> None:
    mixed = Pair(pki.new_key(), server.certificate)
    assert "another key" in (pki.fault(mixed, SERVER, authority, NOW) or "")


def test_an_authority_signs_nothing_but_end_certificates(authority: Pair) -> None:
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_pem_keeps_everything(authority: Pair, server: Pair) -> None:
    back = pki.pair_from_pem(pki.key_to_pem(server.key), pki.certificate_to_pem(server.certificate))
    assert pki.fault(back, SERVER, authority, NOW) is None


@pytest.mark.parametrize(
    "text", [b"", b"no key", b"-----BEGIN EC PRIVATE KEY-----\nAA\n-----END EC PRIVATE KEY-----"]
)
def test_what_is_no_key_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        pki.key_from_pem(text)
