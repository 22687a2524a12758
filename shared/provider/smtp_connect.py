"""Opens connections to a provider's SMTP server (RFC 5321): connection, TLS, AUTH.

aiosmtplib sends EHLO and starts TLS, over a connection from shared/net/dial.py; shared/provider/smtp_login.py logs in.
aiosmtplib has no pipelining, and its DATA needs the whole mail in memory; after the login
shared/provider/smtp_client.py therefore takes over.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl

import aiosmtplib

from shared.model import External
from shared.net import dial
from shared.provider.credentials import Credential
from shared.provider.smtp_client import AUTH_REQUIRED, SmtpClient
from shared.provider.smtp_login import AuthFailed, ServerUnavailable, log_in
from shared.settings import EHLO_NAME, PrivateHosts

CONNECT_SECONDS = 60.0
"""Time limit for TCP, greeting, TLS and AUTH together: seconds."""

_SHOWN = ("8bitmime", "auth", "dsn", "pipelining", "size", "smtputf8", "starttls")


async def connect(
    external: External,
    credential: Credential,
    allow_private: PrivateHosts,
    seconds: float = CONNECT_SECONDS,
    progress: dial.ProgressCallback = dial.no_progress,
    ehlo_name: str | None = None,
) -> SmtpClient:
    """Connect to the account's first relay, start TLS as configured (never less), and log in if the account says so.

    :param progress: called for the steps resolved, connected, encrypted, answered and logged in.
    :param ehlo_name: the setting of this name.
    :raises dial.Unreachable: (Temporary) no connection. :raises dial.TlsError: (Temporary) TLS failed.
    :raises dial.AddressNotAllowed: (Permanent) the operator does not allow the address.
    :raises ServerUnavailable: the server refuses service now; ``reply_code`` 421: too many connections.
    :raises AuthFailed: wrong credentials.
    """
    server = external.smtp
    where = dial.host_port(server)
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    sock = await dial.connect_socket(server, allow_private, seconds, progress=progress)
    smtp = aiosmtplib.SMTP(
        hostname=server.host.strip("[]"),
        sock=sock,
        use_tls=server.tls == "implicit",
        start_tls=False,
        tls_context=dial.client_context(server),
        local_hostname=ehlo_name or own_name(socket.gethostname(), sock.getsockname()[0]),
        timeout=seconds,
    )
    try:
        async with asyncio.timeout_at(ends):
            await _greet(smtp, external, where, progress)
            if external.relay.auth:
                await log_in(smtp, credential, server)
                progress("logged in", f"as {credential.login}")
        if smtp.transport is None:
            raise ServerUnavailable(f"{where}: the server ended the connection after the login")
        return SmtpClient(smtp.transport, where, smtp.esmtp_extensions)
    except TimeoutError as error:
        raise dial.ConnectTimeout(f"{where}: the server did not answer within {seconds:g} s") from error
    except ssl.SSLError as error:
        raise dial.explain_tls(server, error) from error
    except aiosmtplib.SMTPResponseException as error:
        if error.code < 0:  # without the text: it may come from any server in this network
            raise ServerUnavailable(f"{where}: the reply is not an SMTP reply; check host, port and tls") from error
        raise ServerUnavailable(f"{where}: the server answered {error.code}", error.code) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise dial.explain_tls(server, error.__cause__) from error
        raise ServerUnavailable(f"{where}: the connection ended before the login was done") from error


async def _greet(smtp: aiosmtplib.SMTP, external: External, where: str, progress: dial.ProgressCallback) -> None:
    """Read the greeting, send EHLO, start TLS, and send EHLO again. Errors show only the code of a reply."""
    server = external.smtp
    try:
        await smtp.connect()
        if server.tls == "implicit":
            _check_certificate(smtp, external)
            progress("encrypted", dial.describe_tls(smtp.get_transport_info("ssl_object")))
        await _hello(smtp)
        if server.tls == "starttls":
            if not smtp.supports_extension("starttls"):
                raise dial.TlsError(
                    f"{where}: the server does not offer STARTTLS; the login and the mail are not "
                    "sent without; check port and tls"
                )
            await smtp.starttls()
            _check_certificate(smtp, external)
            progress("encrypted", dial.describe_tls(smtp.get_transport_info("ssl_object")))
            await _hello(smtp)
        offered = ", ".join(sorted(name.upper() for name in smtp.esmtp_extensions if name in _SHOWN))
        progress("answered", offered or "the server offers no extensions")
    except BaseException:
        smtp.close()
        raise


async def _hello(smtp: aiosmtplib.SMTP) -> None:
    try:
        await smtp.ehlo()
    except aiosmtplib.SMTPHeloError:
        if not smtp.is_connected:
            raise
        await smtp.helo()


def _check_certificate(smtp: aiosmtplib.SMTP, external: External) -> None:
    tls = smtp.get_transport_info("ssl_object")
    dial.check_fingerprint(external.smtp, tls.getpeercert(binary_form=True) if tls else None)


async def probe_smtp(
    external: External,
    credential: Credential,
    allow_private: PrivateHosts,
    seconds: float,
    progress: dial.ProgressCallback = dial.no_progress,
    ehlo_name: str | None = None,
) -> None:
    """Test an account's SMTP settings up to MAIL FROM, without sending a mail (manual 4.1, "Test").

    :param progress: as in ``connect``, and called for the step accepted. :param ehlo_name: as in ``connect``.
    :raises Temporary: (also ``AuthFailed``) or Permanent: the problem, in words for the operator.
    """
    where = dial.host_port(external.smtp)
    client = await connect(external, credential, allow_private, seconds, progress, ehlo_name)
    try:
        async with asyncio.timeout(seconds):
            reply = await client.command(b"MAIL FROM:<" + external.address.encode() + b">")
            if reply.code == AUTH_REQUIRED:
                raise AuthFailed(f"{where}: the server wants a login ({reply}); set auth to true")
            if not reply.accepted:
                raise ServerUnavailable(
                    f"{where}: {external.address} is not accepted as the sender ({reply})", reply.code
                )
            await client.reset()
            progress("accepted", f"{external.address} may send here; taken back, nothing was sent")
            await client.quit()
    except TimeoutError as error:
        raise dial.ConnectTimeout(f"{where}: no answer within {seconds:g} s") from error
    finally:
        client.close()


_FULL_NAME = re.compile(EHLO_NAME)


def own_name(host_name: str, address: str) -> str:
    """Return the name for EHLO: the host name if it is fully qualified, else the address literal (RFC 5321 4.1.4)."""
    name = host_name.rstrip(".")
    if _FULL_NAME.fullmatch(name) and not name.startswith("localhost.") and not name.replace(".", "").isdigit():
        return name
    address = address.partition("%")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"
