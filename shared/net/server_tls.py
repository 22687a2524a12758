"""TLS as a server: the operator's certificate, or a self-signed one that is made on the first start.

A mail client asks once about a self-signed certificate and then remembers it, so it is made once, kept in the data
folder and shared by all services.
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

EXPIRES = Gauge(
    "mailgroup_tls_certificate_expiry_timestamp_seconds", "When the certificate that clients are shown expires."
)
EXPIRES.set(float("nan"))  # of a process that shows none
REFUSED = Gauge(
    "mailgroup_tls_certificate_refused", "1 if the files hold a certificate that cannot be used: the last good one is."
)

LIFETIME = timedelta(days=3650)
RELOAD_SECONDS = 5.0

log = structlog.get_logger()


def server_context(settings: Settings) -> ssl.SSLContext:
    """A context for listeners: TLS 1.2 and later, no renegotiation, no client certificates.

    :raises SettingsError: the certificate or its key cannot be read or do not fit, or none can be made.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_SINGLE_ECDH_USE
    certificate, key = _files(settings)
    try:
        # An encrypted key would make OpenSSL ask on the terminal; with an empty pass phrase it fails instead.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"MAILGROUP_TLS_CERT_FILE {certificate}, MAILGROUP_TLS_KEY_FILE {key or 'not set'}: "
            f"{error.strerror or error}"
        ) from error
    return context


class Certificate:
    """What a process shows its clients. context: for every handshake from here on; a renewed certificate is a new one.

    Whoever renews it writes the files, and need not tell anybody.
    """

    def __init__(self, settings: Settings) -> None:
        """:raises SettingsError: as server_context."""
        self.context = server_context(settings)
        self._settings = settings
        self._known = self._last = self._file_versions()
        self._log_state()

    async def reload_periodically(self) -> None:
        """Look at the files again and again. Never returns."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            self.reload_if_changed()

    def reload_if_changed(self) -> None:
        """Use what is in the files, if they have changed and stayed the same since the last look: certificate and key
        are two files, and may be written one after the other. What cannot be used is told, and the old one stays."""
        stamps = self._file_versions()
        settled, self._last = stamps == self._last, stamps
        if stamps == self._known or not settled:
            return
        self._known = stamps
        try:
            self.context = server_context(self._settings)
        except SettingsError as error:
            REFUSED.set(1)
            log.error("renewed certificate refused, the old one stays in use", reason=str(error))
        else:
            self._log_state()
            log.info("certificate renewed", file=str(_files(self._settings)[0]))

    def _log_state(self) -> None:
        REFUSED.set(0)
        EXPIRES.set(expiry(self._settings).timestamp())

    def _file_versions(self) -> list[tuple[int, ...] | None]:
        return [_file_version(path) for path in _files(self._settings) if path is not None]


def expiry(settings: Settings) -> datetime:
    """When the certificate that the settings name expires (UTC). :raises SettingsError: there is none."""
    path, _ = _files(settings)
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0].not_valid_after_utc
    except (OSError, ValueError) as error:
        raise SettingsError(f"MAILGROUP_TLS_CERT_FILE {path}: {error}") from error


def _file_version(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _files(settings: Settings) -> tuple[Path, Path | None]:
    if settings.tls_cert_file is not None:
        return settings.tls_cert_file, settings.tls_key_file  # without a key file the certificate's file holds both
    if settings.tls_key_file is not None:
        raise SettingsError(f"MAILGROUP_TLS_KEY_FILE: {settings.tls_key_file}: set MAILGROUP_TLS_CERT_FILE as well")
    return self_signed_file(settings), None


def self_signed_file(settings: Settings) -> Path:
    """The file in the data folder with the self-signed certificate and its key (PEM, mode 0600), made if missing.

    Several services may start at once: each makes one, the first to link it under the name wins, all use that one.

    :raises SettingsError: the data folder cannot be written.
    """
    path = settings.data / "tls" / "self-signed.pem"
    if path.exists():
        return path
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")  # made with mode 0600
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
    """Before the services start: remove a self-signed certificate that does not name the host mail clients use now."""
    path = settings.data / "tls" / "self-signed.pem"
    if settings.tls_cert_file is None and path.exists():
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = {str(name) for kind in (x509.DNSName, x509.IPAddress) for name in names.get_values_for_type(kind)}
        if settings.host_for_clients() not in known:
            path.unlink()


def _self_signed(settings: Settings) -> bytes:
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    names = ["localhost"]
    for host in (socket.gethostname(), settings.bind, settings.host_for_clients()):
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
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIFETIME)  # a day for clocks that are slow
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
