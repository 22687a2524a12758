"""Logs in to a provider's IMAP server: by a SASL mechanism (RFC 3501 section 6.2.2) or LOGIN."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from shared.net.dial import TlsError, host_port
from shared.provider.credentials import Credential
from shared.provider.imap_capabilities import (
    ImapCapabilities,
    Mechanism,
    choose_mechanisms,
    parse_capabilities,
)
from shared.provider.imap_responses import WRONG_CREDENTIALS, Response
from shared.provider.imap_stream import ImapStream
from shared.provider.oauth import xoauth2
from shared.provider.sasl import cram_md5_response, oauthbearer_response, plain_response
from shared.provider.session_errors import LoginRefused, ProtocolError, ServerBusy


class CapabilityNews:
    """Collects the capabilities that come without being asked for: as data, or as a response code."""

    def __init__(self) -> None:
        self.latest: ImapCapabilities | None = None

    def hear(self, response: Response) -> None:
        """Read a response."""
        if response.kind == "CAPABILITY":
            self.latest = parse_capabilities(response.text)
        elif response.code == "CAPABILITY":
            self.latest = parse_capabilities(response.arguments)


async def fetch_capabilities(stream: ImapStream) -> ImapCapabilities:
    """Send CAPABILITY; a server that refuses it announces nothing."""
    stream.command = "CAPABILITY"
    news = CapabilityNews()
    await stream.run(b"CAPABILITY", heard=news.hear)
    return news.latest or ImapCapabilities()


async def log_in(stream: ImapStream, credential: Credential, capabilities: ImapCapabilities) -> ImapCapabilities | None:
    """Log in. Return the capabilities that came with the login, if any did (RFC 3501 section 6.2).

    The next mechanism is tried only if the server refused to begin with one, or does not know it (BAD): it has judged
    no credentials then.

    :raises LoginRefused: wrong name or password. :raises ServerBusy: no login for now.
    :raises TlsError: the server wants TLS before the login.
    """
    _check_strings(stream, credential)
    encrypted = stream.server.tls != "none"
    mechanisms = choose_mechanisms(capabilities, credential.token, encrypted)
    if not mechanisms:
        if not encrypted:
            raise TlsError(
                f"{host_port(stream.server)}: the server allows no login without TLS (LOGINDISABLED); "
                "set tls to starttls (port 143) or implicit (port 993)"
            )
        raise ProtocolError(f"{host_port(stream.server)}: the server offers no login by name and password")
    news = CapabilityNews()
    for position, mechanism in enumerate(mechanisms, 1):
        stream.command = mechanism
        try_in = _log_in_by_command if mechanism == "LOGIN" else _authenticate
        judged, response = await try_in(stream, credential, mechanism, capabilities, news)
        news.hear(response)
        if response.kind == "OK":
            return news.latest
        if judged or response.is_temporary or response.code in WRONG_CREDENTIALS or position == len(mechanisms):
            raise login_failure(stream, response, credential.token)
    raise AssertionError("unreachable")


def _check_strings(stream: ImapStream, credential: Credential) -> None:
    if any(c in text for text in (credential.login, credential.secret) for c in "\r\n\0"):
        raise LoginRefused(
            f"{host_port(stream.server)}: name or password contain a line break or NUL; set them again", None
        )


async def _log_in_by_command(
    stream: ImapStream,
    credential: Credential,
    _: Mechanism,
    capabilities: ImapCapabilities,
    news: CapabilityNews,
) -> tuple[bool, Response]:
    """Send LOGIN. Return whether the server judged the password, and its response."""
    strings = (credential.login.encode(), credential.secret.encode())
    response = await stream.run(b"LOGIN", strings, heard=news.hear)
    return response.kind == "NO", response


async def _authenticate(
    stream: ImapStream,
    credential: Credential,
    mechanism: Mechanism,
    capabilities: ImapCapabilities,
    news: CapabilityNews,
) -> tuple[bool, Response]:
    """Send AUTHENTICATE and the proof: with the command if SASL-IR allows it (RFC 4959), else when asked for."""
    prove = _prover(stream, credential, mechanism)
    command = b"AUTHENTICATE " + mechanism.encode()
    with_command = mechanism != "CRAM-MD5" and capabilities.has("SASL-IR")
    if with_command:
        command += b" " + prove(b"")
    tag = stream.send(command)
    response = await stream.next_answer(tag, news.hear)
    proven = with_command
    if response.tag == "+" and not proven:
        stream.write(prove(response.text) + b"\r\n")
        proven = True
        response = await stream.next_answer(tag, news.hear)
    if response.tag == "+" and credential.token:  # the error as JSON, to be acknowledged (RFC 7628 section 3.2.3)
        stream.write((b"AQ==" if mechanism == "OAUTHBEARER" else b"") + b"\r\n")
        response = await stream.next_answer(tag, news.hear)
    if response.tag == "+":
        raise stream.not_imap()
    return proven and response.kind == "NO", response


def _prover(stream: ImapStream, credential: Credential, mechanism: Mechanism) -> Callable[[bytes], bytes]:
    """Return the function that answers a challenge, both in base64."""
    user, secret = credential.login, credential.secret

    def prove(challenge: bytes) -> bytes:
        match mechanism:
            case "XOAUTH2":
                return xoauth2(user, secret)
            case "OAUTHBEARER":
                server = stream.server
                return base64.b64encode(oauthbearer_response(user, secret, server.host, server.port))
            case "CRAM-MD5":
                try:
                    decoded = base64.b64decode(challenge, validate=True)
                except binascii.Error as error:
                    raise stream.not_imap() from error
                return base64.b64encode(cram_md5_response(user, secret, decoded))
            case _:
                return base64.b64encode(plain_response(user, secret))

    return prove


def login_failure(stream: ImapStream, response: Response, token: bool) -> Exception:
    """Return the error for a refused login. A text with [ALERT] is shown, too.

    :param token: an access token was refused: it is no typing error, and another try with it is in vain.
    """
    shown = response.shown
    if stream.alert and stream.alert != shown:
        shown += f" ({stream.alert})"
    where = host_port(stream.server)
    if response.code == "PRIVACYREQUIRED":
        return TlsError(f"{where}: the server allows no login without TLS; set tls to starttls or implicit: {shown}")
    if response.is_temporary:
        return ServerBusy(f"{where}: the mailbox cannot be opened now: {shown}", response.code or None)
    code = "AUTH" if token or response.code in WRONG_CREDENTIALS else response.code or None
    return LoginRefused(f"{where}: the login was refused; check login name and password: {shown}", code)
