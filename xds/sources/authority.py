"""The certificate authority of a mesh without a Consul. Pure: keys and the time are arguments, certificates results.

Certificates have the shape of Consul's (``agent/connect``): P-256; a root with the trust domain as its SPIFFE ID, for
ten years; leaves with the service's SPIFFE ID and no subject, for 72 hours, backdated a minute for clocks that differ.

A rotation makes a new root, signed by itself and once more by the root before it (cross-signed). Leaves are then signed
by the new root and include the cross-signed certificate, so that a proxy which still trusts only the old root accepts
them; proxies trust both until every leaf of the old root has expired twice over, as Consul does. The old key is not
needed after that signature and is deleted.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xds.mesh.facts import Leaf, Roots
from xds.mesh.spiffe import spiffe_id

ROOT_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(hours=72)
BACKDATED = timedelta(minutes=1)
RENEWED_BETWEEN = (0.6, 0.9)
"""Part of a leaf's life after which it is renewed, as in Consul; the spread keeps leaves from being renewed at once."""
OLD_ROOT_TRUSTED = 2 * LEAF_LIFE


@dataclass(frozen=True, slots=True)
class OldRoot:
    """A root that was rotated out."""

    certificate: str
    cross_signed: str
    """The certificate of the root after it, signed by this one."""
    rotated_out_at: datetime


@dataclass(frozen=True, slots=True)
class Authority:
    """Certificate authority: its trust domain, its active root with the key, and the previous roots."""

    trust_domain: str
    certificate: str
    private_key: str
    old: tuple[OldRoot, ...] = ()
    """The latest first."""

    def trusted(self, now: datetime) -> Roots:
        """Return the roots that proxies trust."""
        return Roots(self.trust_domain, (self.certificate, *(root.certificate for root in self._still(now))))

    def _still(self, now: datetime) -> tuple[OldRoot, ...]:
        return tuple(root for root in self.old if now < root.rotated_out_at + OLD_ROOT_TRUSTED)

    def check(self) -> None:
        """Check that the key belongs to the certificate.

        Raises:
            ValueError: it is not, or one of them can't be read.
        """
        certificate = x509.load_pem_x509_certificate(self.certificate.encode())
        if certificate.public_key() != _load_key(self.private_key).public_key():
            raise ValueError("the private key is not that of the certificate")

    @property
    def expires_at(self) -> datetime:
        """Time at which the active root expires, and with it everything."""
        return x509.load_pem_x509_certificate(self.certificate.encode()).not_valid_after_utc

    @property
    def fingerprint(self) -> str:
        """The active root's SHA-256 fingerprint."""
        return x509.load_pem_x509_certificate(self.certificate.encode()).fingerprint(hashes.SHA256()).hex(":")


@dataclass(frozen=True, slots=True)
class IssuedLeaf:
    """A leaf certificate, and when to replace it."""

    leaf: Leaf
    renew_at: datetime


def new_authority(now: datetime, trust_domain: str = "") -> Authority:
    """Make an authority, with a trust domain of its own where none is given."""
    domain = trust_domain or f"{uuid.uuid4()}.consul"
    key = ec.generate_private_key(ec.SECP256R1())
    name = _root_name(domain)
    certificate = _root(domain, key.public_key(), name, issuer=name, signer=key, now=now)
    return Authority(domain, _pem(certificate), _key_pem(key))


def rotated(authority: Authority, now: datetime, *, distrust_old: bool = False) -> Authority:
    """Return the same authority with a new root, which the previous root signs as well.

    With ``distrust_old`` it does not, and no previous root is trusted any more: for a key that others have.
    """
    if distrust_old:
        return new_authority(now, authority.trust_domain)
    old_key = _load_key(authority.private_key)
    old = x509.load_pem_x509_certificate(authority.certificate.encode())
    fresh = new_authority(now, authority.trust_domain)
    new = x509.load_pem_x509_certificate(fresh.certificate.encode())
    new_key = _load_key(fresh.private_key)
    cross = _root(authority.trust_domain, new_key.public_key(), new.subject, old.subject, old_key, now)
    rotated_out = OldRoot(authority.certificate, _pem(cross), now)
    return replace(fresh, old=(rotated_out, *authority._still(now)))


def issue(authority: Authority, service: str, datacenter: str, now: datetime, chance: float) -> IssuedLeaf:
    """Issue a leaf certificate for a service.

    Args:
        authority: who signs it.
        service: whose it is.
        datacenter: where that is.
        now: the time, in UTC.
        chance: from 0 to 1, where between 60 and 90 % of its life it is to be renewed.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    identity = spiffe_id(service, datacenter, authority.trust_domain)
    expires = min(now + LEAF_LIFE, authority.expires_at)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(expires)
        .add_extension(_key_usage(leaf=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_id(key.public_key()), critical=False)
        .add_extension(_issuer_id(issuer), critical=False)
        # Critical, because there is no subject (RFC 5280, 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
    )
    certificate = builder.sign(_load_key(authority.private_key), hashes.SHA256())
    chain = [_pem(certificate), *(root.cross_signed for root in authority._still(now))]
    share = RENEWED_BETWEEN[0] + (RENEWED_BETWEEN[1] - RENEWED_BETWEEN[0]) * chance
    leaf = Leaf(service, "".join(chain), _key_pem(key), f"{certificate.serial_number:x}")
    return IssuedLeaf(leaf, now + (expires - now) * share)


def _root_name(domain: str) -> x509.Name:
    number = uuid.uuid4().hex[:8]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"gsm-{number}.gossamer.ca.{domain[:8]}.consul")])


def _root(
    domain: str,
    key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + ROOT_LIFE)
        .add_extension(_key_usage(leaf=False), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_id(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(_key_id(signer.public_key()).digest, None, None), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{domain}")]), critical=False
        )
        .sign(signer, hashes.SHA256())
    )


def _key_usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=leaf,
        data_encipherment=leaf,
        key_agreement=leaf,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(key: ec.EllipticCurvePublicKey) -> x509.SubjectKeyIdentifier:
    """Return the key ID as Consul computes it: the SHA-256 of the whole public key structure."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return x509.SubjectKeyIdentifier(digest.finalize())


def _issuer_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    extension = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier(extension.value.digest, None, None)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()


def _load_key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("expected an elliptic-curve key")  # noqa: TRY004 - of a file, not of a caller
    return key
