"""Tests of the webhook's certificates: when each is replaced, and that the API server trusts them all the time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from xds.kubernetes.certificates import WebhookCertificates, parse, renewed

NAMES = ("gossamer-webhook", "gossamer-webhook.mesh.svc")
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def trusted(bundle: bytes, made: WebhookCertificates) -> bool:
    """Return whether an authority of ``bundle`` signed the certificate."""
    leaf = x509.load_pem_x509_certificate(made.certificate)
    for authority in x509.load_pem_x509_certificates(bundle):
        key = authority.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            key.verify(leaf.signature, leaf.tbs_certificate_bytes, ec.ECDSA(SHA256()))
        except Exception:
            continue
        return True
    return False


def test_the_first_are_for_the_names_of_the_webhook() -> None:
    made = renewed(None, NAMES, NOW)
    leaf = x509.load_pem_x509_certificate(made.certificate)
    named = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert named.get_values_for_type(x509.DNSName) == [*NAMES]
    assert trusted(made.bundle, made)
    assert parse(made.data()) == made


def test_they_stay_until_they_are_due_and_a_leaf_is_replaced_alone() -> None:
    made = renewed(None, NAMES, NOW)
    assert renewed(made, NAMES, NOW + dt.timedelta(days=59)) is made
    after = renewed(made, NAMES, NOW + dt.timedelta(days=61))
    assert after.bundle == made.bundle
    assert after.certificate != made.certificate
    assert trusted(made.bundle, after)


def test_other_names_need_another_leaf() -> None:
    made = renewed(None, NAMES, NOW)
    assert renewed(made, ("other",), NOW).certificate != made.certificate


def _years(made: WebhookCertificates) -> Iterator[tuple[WebhookCertificates, WebhookCertificates]]:
    """Yield the certificates before and after each replacement in thirty years of a daily look."""
    current = made
    for day in range(0, 30 * 365, 20):
        found = renewed(current, NAMES, NOW + dt.timedelta(days=day))
        if found is not current:
            yield current, found
            current = found


def test_every_certificate_is_trusted_by_the_bundles_before_and_after() -> None:
    """The bundle is registered first; until then the old certificate is presented."""
    replaced = 0
    for before, after in _years(renewed(None, NAMES, NOW)):
        assert trusted(after.bundle, before), "the one in use while the bundle changes"
        assert trusted(after.bundle, after)
        assert len(x509.load_pem_x509_certificates(after.bundle)) <= 2
        replaced += before.bundle != after.bundle
    assert replaced >= 3


@pytest.mark.parametrize("broken", [{}, {"ca.crt": b"x"}, {"tls.key": b""}])
def test_a_secret_that_is_damaged_counts_as_none(broken: dict[str, bytes]) -> None:
    data = renewed(None, NAMES, NOW).data()
    assert parse({} if not broken else data | broken) is None
