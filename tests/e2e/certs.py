"""Certificates for tests, made by the `cryptography` package."""
from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Cert:
    def __init__(self, cert, key):
        self.cert, self.key = cert, key

    @property
    def pem(self) -> str:
        return self.cert.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()

    def write(self, path):
        """Certificate and key in one file."""
        path.write_text(self.pem + self.key_pem)
        path.chmod(0o600)
        return str(path)


def ca(name="test authority", issuer: Cert | None = None) -> Cert:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.timezone.utc)
    b = (x509.CertificateBuilder().subject_name(_name(name)).issuer_name(issuer.cert.subject if issuer else _name(name)).public_key(key.public_key())
         .serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(days=1))
         .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
         .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
         .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True))
    if issuer:
        b = b.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    return Cert(b.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def leaf(issuer: Cert, *dns, client=False, key_id=True, names=True, expired=False, key=None) -> Cert:
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.timezone.utc)
    end = now - dt.timedelta(minutes=1) if expired else now + dt.timedelta(hours=2)
    b = (x509.CertificateBuilder().subject_name(_name(dns[0])).issuer_name(issuer.cert.subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
         .not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(end)
         .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH]), critical=False))
    if names:
        import ipaddress
        b = b.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(d)) if d[0].isdigit() else x509.DNSName(d) for d in dns]), critical=False)
    if key_id:
        b = b.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    return Cert(b.sign(issuer.key, hashes.SHA256()), key)
