"""Logs in to a provider's POP3 server: with a password (RFC 1939, RFC 5034), or with a token by XOAUTH2 or OAUTHBEARER
(RFC 7628)."""

from __future__ import annotations

import base64
import binascii

from shared.net.dial import host_port
from shared.provider.credentials import Credential
from shared.provider.oauth import xoauth2
from shared.provider.pop3_mechanisms import apop_digest, choose_mechanisms, choose_token_mechanism
from shared.provider.pop3_replies import Capabilities, is_temporary, response_code
from shared.provider.pop3_stream import Pop3Stream
from shared.provider.reply_texts import trim
from shared.provider.sasl import cram_md5_response, oauthbearer_response, plain_response
from shared.provider.session_errors import LoginRefused, ServerBusy

_INITIAL_RESPONSE_HOSTS = ("gmail.com", "googlemail.com")
"""Domains of servers that accept the XOAUTH2 response only with the command."""


async def log_in(
    stream: Pop3Stream, credential: Credential, capabilities: Capabilities, timestamp: bytes | None
) -> None:
    """Log in with USER and PASS, a SASL mechanism or APOP, or with a token.

    :param timestamp: of the greeting, for APOP; None if it has none.
    :raises LoginRefused: wrong name or password. :raises ServerBusy: [IN-USE], [LOGIN-DELAY], [SYS/TEMP].
    """
    if any(c in text for text in (credential.login, credential.secret) for c in "\r\n\0"):
        raise LoginRefused(
            f"{host_port(stream.server)}: name or password contain a line break or NUL; set them again", None
        )
    if credential.token:
        await _log_in_by_token(stream, credential, capabilities)
    else:
        await _log_in_by_password(stream, credential, capabilities, timestamp)


async def _log_in_by_password(
    stream: Pop3Stream, credential: Credential, capabilities: Capabilities, timestamp: bytes | None
) -> None:
    user, password = credential.login, credential.secret
    mechanisms = choose_mechanisms(capabilities, timestamp, encrypted=stream.server.tls != "none")
    for position, mechanism in enumerate(mechanisms, 1):
        stream.command = mechanism
        first = {"USER": f"USER {user}", "APOP": f"APOP {user} {apop_digest(timestamp or b'', password)}"}
        stream.write(first.get(mechanism, f"AUTH {mechanism}").encode() + b"\r\n")
        answer, line = await stream.answer()
        begun = answer == (b"+OK" if mechanism in first else b"+")
        if begun and mechanism != "APOP":
            stream.command = "PASS" if mechanism == "USER" else mechanism
            stream.write(_proof(stream, mechanism, credential, line) + b"\r\n")
            answer, line = await stream.answer()
        if answer == b"+":
            raise stream.not_pop3()
        if answer == b"+OK":
            return
        reply = trim(line)
        # a server that refused to begin has seen no password
        if begun or mechanism == "APOP" or is_temporary(reply) or position == len(mechanisms):
            raise _login_failure(stream, reply)


def _proof(stream: Pop3Stream, mechanism: str, credential: Credential, challenge: bytes) -> bytes:
    """Return the line that proves the password. :param challenge: in base64, for CRAM-MD5."""
    user, password = credential.login, credential.secret
    if mechanism == "USER":
        return f"PASS {password}".encode()
    if mechanism == "PLAIN":
        return base64.b64encode(plain_response(user, password))
    try:
        decoded = base64.b64decode(challenge.strip(), validate=True)
    except binascii.Error as error:
        raise stream.not_pop3() from error
    return base64.b64encode(cram_md5_response(user, password, decoded))


async def _log_in_by_token(stream: Pop3Stream, credential: Credential, capabilities: Capabilities) -> None:
    """Authenticate with XOAUTH2 or OAUTHBEARER (RFC 5034).

    Microsoft accepts the response only on a line of its own, Google only with the command. A server that
    refuses the bare command gets the response with the command: it has not seen the token yet.
    """
    mechanism, server = choose_token_mechanism(capabilities), stream.server
    command, response, acknowledgement = f"AUTH {mechanism}".encode(), xoauth2(credential.login, credential.secret), b""
    if mechanism == "OAUTHBEARER":
        bearer = oauthbearer_response(credential.login, credential.secret, server.host, server.port)
        response, acknowledgement = base64.b64encode(bearer), base64.b64encode(b"\1")
    stream.command = "AUTH"
    with_command = server.host.lower().endswith(_INITIAL_RESPONSE_HOSTS)
    stream.write(command + b" " + response + b"\r\n" if with_command else command + b"\r\n")
    answer, line = await stream.answer()
    if not with_command and answer != b"+OK":
        stream.write(response + b"\r\n" if answer == b"+" else command + b" " + response + b"\r\n")
        answer, line = await stream.answer()
    if answer == b"+":  # the error as JSON, to be acknowledged (RFC 7628 section 3.2.3)
        stream.write(acknowledgement + b"\r\n")
        answer, line = await stream.answer()
    if answer != b"+OK":
        raise _login_failure(stream, trim(line), "AUTH")


def _login_failure(stream: Pop3Stream, reply: str, default_code: str | None = None) -> Exception:
    code = response_code(reply)
    if is_temporary(reply):
        return ServerBusy(f"{host_port(stream.server)}: the mailbox cannot be opened now: {reply}", code)
    return LoginRefused(
        f"{host_port(stream.server)}: the login was refused; check login name and password: {reply}",
        code or default_code,
    )
