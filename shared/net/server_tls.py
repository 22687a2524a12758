"""TLS contexts for listeners, with the operator's certificate or a self-signed one from the first start.

A mail client asks once about a self-signed certificate and then remembers it. It is therefore made once, stored in the
data folder and shared by all services.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from prometheus_client import Gauge

from shared.settings import Settings, SettingsError

EXPIRES = Gauge("mailgroup_tls_certificate_expiry_timestamp_seconds", "When the certificate that clients get expires.")
EXPIRES.set(float("nan"))  # for a process without a certificate
REFUSED = Gauge(
    "mailgroup_tls_certificate_refused",
    "1 if the certificate in the files cannot be used and the last good one stays in use.",
)

LIFETIME = timedelta(days=3650)
"""Validity of a self-signed certificate."""
RELOAD_SECONDS = 5.0
"""Pause between two checks of the certificate files: seconds."""

log = structlog.get_logger()


def server_context(settings: Settings) -> ssl.SSLContext:
    """Return a context for listeners: TLS 1.2 and later, no renegotiation, no client certificates.

    :raises SettingsError: certificate or key cannot be read, do not match, or cannot be created.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_SINGLE_ECDH_USE
    certificate, key = _files(settings)
    try:
        # The empty pass phrase lets an encrypted key fail; without it OpenSSL would ask on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"MAILGROUP_TLS_CERT_FILE {certificate}, MAILGROUP_TLS_KEY_FILE {key or 'not set'}: "
            f"{error.strerror or error}"
        ) from error
    return context


class Certificate:
    """The server certificate of a process. context: for all new handshakes; a renewed certificate replaces it.

    To renew a certificate, write the files: this class notices the change.
    """

    def __init__(self, settings: Settings) -> None:
        """:raises SettingsError: as ``server_context``."""
        self.context = server_context(settings)
        self._settings = settings
        self._loaded = self._last = self._file_versions()
        self._set_metrics()

    async def reload_periodically(self) -> None:
        """Check the files every RELOAD_SECONDS. Never returns."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            self.reload_if_changed()

    def reload_if_changed(self) -> None:
        """Load the files if they have changed, and not since the last check: certificate and key are two files and may
        be written one after the other. If they cannot be used, this is logged and the old certificate stays."""
        versions = self._file_versions()
        stable, self._last = versions == self._last, versions
        if versions == self._loaded or not stable:
            return
        self._loaded = versions
        try:
            self.context = server_context(self._settings)
        except SettingsError as error:
            REFUSED.set(1)
            log.error("certificate reload failed, the old one stays in use", error=str(error))
        else:
            self._set_metrics()
            log.info("certificate reloaded", file=str(_files(self._settings)[0]))

    def _set_metrics(self) -> None:
        REFUSED.set(0)
        EXPIRES.set(expiry(self._settings).timestamp())

    def _file_versions(self) -> list[tuple[int, ...] | None]:
        return [_file_version(path) for path in _files(self._settings) if path is not None]


def expiry(settings: Settings) -> datetime:
    """Return when the certificate in the settings expires (UTC). :raises SettingsError: no readable certificate."""
    path, _ = _files(settings)
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0].not_valid_after_utc
    except (OSError, ValueError) as error:
        raise SettingsError(f"MAILGROUP_TLS_CERT_FILE {path}: {error}") from error


def _file_version(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _files(settings: Settings) -> tuple[Path, Path | None]:
    if settings.tls_cert_file is not None:
        return settings.tls_cert_file, settings.tls_key_file  # without a key file, the certificate file has both
    if settings.tls_key_file is not None:
        raise SettingsError(f"MAILGROUP_TLS_KEY_FILE: {settings.tls_key_file}: set MAILGROUP_TLS_CERT_FILE as well")
    return self_signed_file(settings), None


def self_signed_file(settings: Settings) -> Path:
    """Return the file with the self-signed certificate and its key (PEM, mode 0600); create it if it is missing.

    Several services may start at the same time: each creates a certificate, the first link to the name wins, and all
    services use that one.

    :raises SettingsError: the data folder is not writable.
    """
    path = settings.data / "tls" / "self-signed.pem"
    if path.exists():
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")  # creates it with mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_self_signed(settings))
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            Path(draft).unlink()
    except OSError as error:
        raise SettingsError(
            f"MAILGROUP_DATA: {settings.data}: no certificate can be made there: {error.strerror}"
        ) from error
    return path


def drop_outdated_self_signed(settings: Settings) -> None:
    """Remove a self-signed certificate without the host names that mail clients use now. Call before services start."""
    path = settings.data / "tls" / "self-signed.pem"
    if settings.tls_cert_file is None and path.exists():
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = {str(name) for kind in (x509.DNSName, x509.IPAddress) for name in names.get_values_for_type(kind)}
        if not set(_client_hosts(settings)) <= hosts:
            path.unlink()


def _client_hosts(settings: Settings) -> tuple[str, ...]:
    """The hosts in the settings of mail clients; the main one last."""
    return settings.smtp_host_for_clients(), settings.imap_host_for_clients(), settings.host_for_clients()


def _self_signed(settings: Settings) -> bytes:
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    names = ["localhost"]
    for host in (
        socket.gethostname(),
        settings.bind,
        *_client_hosts(settings),
    ):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if host and host.isascii() and host not in names:
                names.append(host)
        else:
            if not address.is_unspecified and address not in addresses:
                addresses.append(address)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[-1][:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # for clients with a slow clock
        .not_valid_after(now + LIFETIME)
        .add_extension(
            x509.SubjectAlternativeName([*map(x509.DNSName, names), *map(x509.IPAddress, addresses)]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
