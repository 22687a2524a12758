"""What people have to know of a provider's certificate before they trust it. Pure."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509

from shared.net.dial import fingerprint

SHOWN = 10
"""Limits the names of a certificate that are shown."""


@dataclass(frozen=True, slots=True)
class ShownCertificate:
    """A certificate as it is shown to people."""

    fingerprint: str  # SHA-256, 64 hex digits
    subject: str  # '' if it cannot be read, as the other fields
    issuer: str
    names: tuple[str, ...]  # host names and addresses that it is for
    valid_from: datetime.datetime | None
    valid_until: datetime.datetime | None

    def describe(self) -> str:
        """Describe it in a line."""
        dates = f"{self.valid_from:%Y-%m-%d} to {self.valid_until:%Y-%m-%d}" if self.valid_until else "unknown dates"
        names = ", ".join(self.names) or self.subject or "no name"
        return f"SHA-256 {self.fingerprint}; issued by {self.issuer or 'unknown'} for {names}; valid {dates}"


def read_certificate(der: bytes) -> ShownCertificate:
    """Read a certificate. An outsider made it, so what cannot be read is left out."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        return ShownCertificate(
            fingerprint(der),
            certificate.subject.rfc4514_string(),
            certificate.issuer.rfc4514_string(),
            _names(certificate),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
    except (ValueError, TypeError):  # not DER, or an extension that violates RFC 5280
        return ShownCertificate(fingerprint(der), "", "", (), None, None)


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    names = found.get_values_for_type(x509.DNSName)
    addresses = found.get_values_for_type(x509.IPAddress)
    return tuple(str(name) for name in (*names, *addresses))[:SHOWN]
