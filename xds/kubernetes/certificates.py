"""Makes the certificate of the webhook, and the authority that the API server verifies it with.

Both are in a Secret that all replicas share. The leaf is replaced after two thirds of its life. The authority is
replaced in its last year; the old one stays in the bundle, so that no admission fails meanwhile.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE, LEAF_LIFE = dt.timedelta(days=3650), dt.timedelta(days=90)
AUTHORITY_RENEWED, LEAF_RENEWED = dt.timedelta(days=365), dt.timedelta(days=30)
"""Time before its end at which a certificate is replaced."""
CLOCK_SKEW = dt.timedelta(minutes=5)
BUNDLE, AUTHORITY_KEY, CERTIFICATE, KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"
"""Keys of the Secret."""


@dataclass(frozen=True, slots=True)
class WebhookCertificates:
    """Content of the Secret, PEM."""

    bundle: bytes
    """Authorities that the API server trusts, the one in use first."""
    authority_key: bytes
    certificate: bytes
    key: bytes

    def data(self) -> dict[str, bytes]:
        """Return the data of the Secret."""
        return {
            BUNDLE: self.bundle,
            AUTHORITY_KEY: self.authority_key,
            CERTIFICATE: self.certificate,
            KEY: self.key,
        }


def parse(data: dict[str, bytes]) -> WebhookCertificates | None:
    """Return the certificates of a Secret; ``None`` if there are none that can be used."""
    try:
        found = WebhookCertificates(data[BUNDLE], data[AUTHORITY_KEY], data[CERTIFICATE], data[KEY])
        x509.load_pem_x509_certificates(found.bundle)
        x509.load_pem_x509_certificate(found.certificate)
        serialization.load_pem_private_key(found.authority_key, None)
        serialization.load_pem_private_key(found.key, None)
    except (KeyError, ValueError, TypeError):
        return None
    return found


def renewed(current: WebhookCertificates | None, names: tuple[str, ...], now: dt.datetime) -> WebhookCertificates:
    """Return the certificates to use from ``now`` on: ``current`` itself where nothing has to be replaced.

    Args:
        current: those in use.
        names: DNS names of the webhook.
        now: the time, with a timezone.
    """
    if current is None:
        return _with_leaf(*_authority(now), b"", names, now)
    authorities = x509.load_pem_x509_certificates(current.bundle)
    authority = authorities[0]
    if authority.not_valid_after_utc - now < AUTHORITY_RENEWED:
        kept = b"".join(_pem(each) for each in authorities if each.not_valid_after_utc > now)
        return _with_leaf(*_authority(now), kept, names, now)
    leaf = x509.load_pem_x509_certificate(current.certificate)
    named = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if leaf.not_valid_after_utc - now > LEAF_RENEWED and set(named.get_values_for_type(x509.DNSName)) == set(names):
        return current
    key = serialization.load_pem_private_key(current.authority_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    others = b"".join(_pem(each) for each in authorities[1:] if each.not_valid_after_utc > now)
    return _with_leaf(authority, key, others, names, now)


def _authority(now: dt.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gossamer webhook CA")])
    made = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made, key


def _with_leaf(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    others: bytes,
    names: tuple[str, ...],
    now: dt.datetime,
) -> WebhookCertificates:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    made = (
        _builder(subject, authority.subject, key.public_key(), now, LEAF_LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    return WebhookCertificates(_pem(authority) + others, _key_pem(authority_key), _pem(made), _key_pem(key))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    life: dt.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
