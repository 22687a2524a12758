"""services/admin/accounts/certificates.py: what is shown of a certificate, whatever an outsider has written into it."""

from __future__ import annotations

import hashlib
import ssl

import pytest

from deploy.machine.certificates import make_authority
from services.admin.accounts.certificates import read_certificate


def test_a_certificate_is_shown_with_all_that_people_compare() -> None:
    _, server = make_authority(["mail.company.com", "pop3.company.com"], ["192.0.2.1"])
    der = ssl.PEM_cert_to_DER_cert(server[server.index("-----BEGIN CERTIFICATE") :])
    shown = read_certificate(der)
    assert shown.fingerprint == hashlib.sha256(der).hexdigest()
    assert shown.names == ("mail.company.com", "pop3.company.com", "192.0.2.1")
    assert shown.issuer.startswith("CN=")
    assert shown.valid_from is not None and shown.valid_until is not None and shown.valid_from < shown.valid_until
    assert (
        f"for mail.company.com, pop3.company.com, 192.0.2.1; valid {shown.valid_from:%Y-%m-%d} to" in shown.describe()
    )


@pytest.mark.parametrize("der", [b"", b"nonsense", b"\x30\x82\x01\x00" + b"\x00" * 256])
def test_what_cannot_be_read_is_left_out_and_the_fingerprint_stays(der: bytes) -> None:
    shown = read_certificate(der)
    assert (shown.fingerprint, shown.names, shown.valid_until) == (hashlib.sha256(der).hexdigest(), (), None)
    assert shown.describe().endswith("issued by unknown for no name; valid unknown dates")
