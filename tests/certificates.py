"""Certificate authorities and certificates for tests of TLS."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from xds.mesh.addresses import is_ip


class TestAuthority:
    """A certificate authority that writes PEM files into ``folder``."""

    __test__ = False

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._certificate(self._name, self._key.public_key(), timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + life)
        )

    def issue(self, file: str, *names: str, life: timedelta = timedelta(hours=1)) -> tuple[Path, Path]:
        """Write a certificate for ``names`` (DNS names, addresses, SPIFFE IDs) and its key; return their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative: list[x509.GeneralName] = []
        for name in names:
            if name.startswith("spiffe:"):
                alternative.append(x509.UniformResourceIdentifier(name))
            elif is_ip(name):
                alternative.append(x509.IPAddress(ip_address(name)))
            else:
                alternative.append(x509.DNSName(name))
        certificate = (
            self._certificate(x509.Name([]), key.public_key(), life)
            .add_extension(x509.SubjectAlternativeName(alternative), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        files = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for path, content in zip(files, (certificate.public_bytes(serialization.Encoding.PEM), pem), strict=True):
            fresh = path.with_suffix(path.suffix + ".new")
            fresh.write_bytes(content)
            fresh.replace(path)
        return files
