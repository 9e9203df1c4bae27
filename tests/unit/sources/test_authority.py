"""Certificates: shape, life, and a rotation that both sides of a connection survive in any order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import ClientVerifier, PolicyBuilder, Store, VerificationError

from xds.mesh.facts import Roots
from xds.sources.authority import LEAF_LIFE, OLD_ROOT_TRUSTED, IssuedLeaf, issue, new_authority, rotated

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def certificates(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def accepted(issued: IssuedLeaf, roots: Roots, at: datetime) -> bool:
    """Whether somebody who trusts ``roots`` takes this certificate and what comes along with it."""
    leaf, *others = certificates(issued.leaf.certificate_chain)
    store = Store([certificate for pem in roots.certificates for certificate in certificates(pem)])
    verifier: ClientVerifier = PolicyBuilder().store(store).time(at).build_client_verifier()
    try:
        verifier.verify(leaf, others)
    except VerificationError:
        return False
    return True


def test_a_leaf_is_shaped_like_consuls() -> None:
    authority = new_authority(NOW)
    issued = issue(authority, "web", "dc1", NOW, 0.0)
    (leaf,) = certificates(issued.leaf.certificate_chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    uri = f"spiffe://{authority.trust_domain}/ns/default/dc/dc1/svc/web"
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert leaf.not_valid_after_utc == NOW + LEAF_LIFE
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=1)
    assert int(issued.leaf.serial_number, 16) == leaf.serial_number
    assert accepted(issued, authority.trusted(NOW), NOW)


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.6), (1.0, 0.9)])
def test_a_leaf_is_renewed_between_60_and_90_percent_of_its_life(chance: float, share: float) -> None:
    assert issue(new_authority(NOW), "web", "dc1", NOW, chance).renew_at == NOW + LEAF_LIFE * share


def test_a_rotation_is_survived_in_any_order() -> None:
    first = new_authority(NOW)
    second = rotated(first, NOW)
    third = rotated(second, NOW + timedelta(hours=1))
    at = NOW + timedelta(hours=2)
    issued = {a.certificate: issue(a, "web", "dc1", at, 0.5) for a in (first, second, third)}
    assert first.trust_domain == second.trust_domain == third.trust_domain
    for leaf_of in (first, second, third):
        for trusts in (first, second, third):
            assert accepted(issued[leaf_of.certificate], trusts.trusted(at), at)


def test_the_old_root_is_trusted_until_its_leaves_expired_twice_over() -> None:
    first = new_authority(NOW)
    second = rotated(first, NOW)
    last = NOW + OLD_ROOT_TRUSTED
    assert second.trusted(last - timedelta(seconds=1)).certificates == (second.certificate, first.certificate)
    assert second.trusted(last).certificates == (second.certificate,)
    old = issue(first, "web", "dc1", last - timedelta(seconds=5), 0.5)
    assert not accepted(old, second.trusted(last), last)
    assert len(certificates(issue(second, "web", "dc1", last, 0.5).leaf.certificate_chain)) == 1
    assert not rotated(second, last).old[1:]


def test_an_unknown_ca_is_not_accepted() -> None:
    assert not accepted(issue(new_authority(NOW), "web", "dc1", NOW, 0.5), new_authority(NOW).trusted(NOW), NOW)


def test_a_leaf_does_not_outlive_its_root() -> None:
    authority = new_authority(NOW)
    late = authority.expires_at - timedelta(hours=10)
    issued = issue(authority, "web", "dc1", late, 0.5)
    assert certificates(issued.leaf.certificate_chain)[0].not_valid_after_utc == authority.expires_at
    assert issued.renew_at < authority.expires_at


def test_a_name_that_is_not_ascii_is_escaped_as_consul_does() -> None:
    (leaf,) = certificates(issue(new_authority(NOW), "wéb x", "dc1", NOW, 0.5).leaf.certificate_chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier)[0].endswith("/svc/w%C3%A9b%20x")
