"""Certificates: what one should say, making it, and whether the one that is there still says it.

Pure but for the clock, which callers hand in. All keys are EC P-256. `lab.keys` decides which
certificates a lab has and where they lie.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey

AUTHORITY_LIFE = timedelta(days=3650)
LIFE = timedelta(days=365)
#: What has less than this left to live is made anew.
RENEW_BEFORE = timedelta(days=30)
#: Clocks of nodes may be behind the one that signs.
BACKDATE = timedelta(hours=1)


@dataclass(frozen=True)
class Wanted:
    """What a certificate says: who it is for, the names and addresses it serves, what it is good for.

    Kubernetes reads a user from `common_name` and its groups from `organizations`. `authority` is
    whether it may sign others; such a certificate serves nothing else.
    """

    common_name: str
    organizations: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    server: bool = False
    client: bool = False
    authority: bool = False

    def subject(self) -> x509.Name:
        groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in self.organizations]
        return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, self.common_name)])

    def alternative_names(self) -> x509.SubjectAlternativeName | None:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in self.names]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in self.addresses]
        return x509.SubjectAlternativeName(names) if names else None

    def extensions(self) -> Iterator[tuple[x509.ExtensionType, bool]]:
        """Each extension, and whether it is critical."""
        yield x509.BasicConstraints(ca=self.authority, path_length=0 if self.authority else None), True
        yield (
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=self.authority,
                crl_sign=self.authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            True,
        )
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] if self.server else []
        usages += [ExtendedKeyUsageOID.CLIENT_AUTH] if self.client else []
        if usages:
            yield x509.ExtendedKeyUsage(usages), False
        if alternative := self.alternative_names():
            yield alternative, False


@dataclass(frozen=True)
class Pair:
    """A private key and the certificate for it."""

    key: Key
    certificate: x509.Certificate


def new_key() -> Key:
    """A new EC P-256 private key."""
    return ec.generate_private_key(ec.SECP256R1())


def make(wanted: Wanted, signer: Pair | None, now: datetime) -> Pair:
    """A new key and a certificate that says `wanted`, signed by `signer`, or by itself if None."""
    key = new_key()
    issuer = signer.certificate.subject if signer else wanted.subject()
    issuer_key = signer.key if signer else key
    end = now + (AUTHORITY_LIFE if wanted.authority else LIFE)
    if signer:
        end = min(end, signer.certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(wanted.subject())
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    for extension, critical in wanted.extensions():
        builder = builder.add_extension(extension, critical=critical)
    return Pair(key, builder.sign(issuer_key, hashes.SHA256()))


def fault(pair: Pair, wanted: Wanted, signer: Pair | None, now: datetime) -> str | None:
    """Why `pair` does not do for `wanted` signed by `signer` (None: by itself), or None if it does."""
    certificate = pair.certificate
    if certificate.public_key() != pair.key.public_key():
        return "the certificate is for another key"
    if certificate.subject != wanted.subject():
        return "the certificate is for another subject"
    if certificate.not_valid_before_utc > now:
        return "the certificate is not valid yet"
    if certificate.not_valid_after_utc - now < RENEW_BEFORE:
        return "the certificate is near its end"
    for extension, critical in wanted.extensions():
        try:
            there = certificate.extensions.get_extension_for_class(type(extension))
        except x509.ExtensionNotFound:
            return f"the certificate has no {type(extension).__name__}"
        if there.value != extension or there.critical != critical:
            return f"the certificate has another {type(extension).__name__}"
    if wanted.alternative_names() is None and _has_names(certificate):
        return "the certificate has names that it should not have"
    try:
        certificate.verify_directly_issued_by(signer.certificate if signer else certificate)
    except (InvalidSignature, ValueError, TypeError):
        return "the certificate was signed by another authority"
    return None


def _has_names(certificate: x509.Certificate) -> bool:
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return False
    return True


def key_to_pem(key: Key) -> bytes:
    """The private key in PEM (`EC PRIVATE KEY`, which Kubernetes reads for every purpose)."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def public_to_pem(key: Key) -> bytes:
    """The public half of `key` in PEM."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def certificate_to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_from_pem(pem: bytes) -> Key:
    """The inverse of `key_to_pem`; ValueError if `pem` holds no EC P-256 private key."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not an EC P-256 key")
    return key


def pair_from_pem(key: bytes, certificate: bytes) -> Pair:
    """A pair from its two PEM files; ValueError if either is not what it should be."""
    return Pair(key_from_pem(key), x509.load_pem_x509_certificate(certificate))


def utc_now() -> datetime:
    return datetime.now(UTC)
