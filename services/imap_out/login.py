"""CAPABILITY, ID, STARTTLS, LOGIN, AUTHENTICATE, ENABLE and LOGOUT (RFC 3501 sections 6.1 and 6.2)."""

from __future__ import annotations

import binascii

from services.imap_out.capabilities import IMPLIED, can_be_enabled, capabilities, capability_code
from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.grammar.commands import AuthenticateArguments, EnableArguments, ImapCommand, LoginArguments
from services.imap_out.grammar.errors import CommandError
from services.imap_out.responses import data, status
from shared.auth.authenticator import Throttled

MAX_REFUSED_LOGINS = 3
"""Refused logins before the connection is closed."""
RESPONSE_OCTETS = 12_288
"""Longest line of an AUTHENTICATE exchange: octets."""


def passwords_allowed(context: ImapContext) -> bool:
    """Whether LOGIN and AUTHENTICATE are accepted now."""
    return context.tls or context.client.clear_allowed


def current_capabilities(context: ImapContext) -> tuple[str, ...]:
    """Return what CAPABILITY announces now."""
    return capabilities(tls=context.tls, logged_in=context.local is not None, passwords=passwords_allowed(context))


async def run_capability(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """CAPABILITY."""
    context.transport.write(data.capabilities(current_capabilities(context)))
    return TaggedAnswer("capabilities listed")


async def run_id(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """ID (RFC 2971): the server's version is nobody's business before the login."""
    context.transport.write(data.server_id({"name": "mailgroup"}))
    return TaggedAnswer("that is who we are")


async def run_logout(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """LOGOUT."""
    context.transport.write(status.untagged("BYE", "logging out"))
    context.ended = True
    return TaggedAnswer("bye")


async def run_start_tls(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """STARTTLS (RFC 3501 section 6.2.1): what the client sent before is forgotten."""
    if context.tls:
        raise CommandError("TLS is active already")
    context.transport.drop_clear_text()
    await context.transport.start_tls(status.tagged(command.tag, "OK", "begin TLS"))
    context.tls = True
    return TaggedAnswer("", kind="")  # the answer has been sent, without TLS


async def run_login(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """LOGIN."""
    arguments = command.arguments
    assert isinstance(arguments, LoginArguments)
    _require_passwords(context)
    return await _log_in(context, _decode(arguments.user), _decode(arguments.password))


async def run_authenticate(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """AUTHENTICATE PLAIN (RFC 4616), with or without an initial response (RFC 4959)."""
    arguments = command.arguments
    assert isinstance(arguments, AuthenticateArguments)
    _require_passwords(context)
    if arguments.mechanism != "PLAIN":
        raise CommandError("the one mechanism here is PLAIN", "NO")
    response = arguments.initial
    if response is None:
        context.transport.write(status.continuation())
        line = await context.transport.read_line(RESPONSE_OCTETS)
        if line is None:
            context.end_after_answer("the line is too long")
            raise CommandError("the response is too long")
        if line == b"*":
            raise CommandError("authentication cancelled")
        try:
            response = binascii.a2b_base64(line, strict_mode=True)
        except binascii.Error as error:
            raise CommandError("this is no response in base64") from error
    fields = response.split(b"\0")
    if len(fields) != 3:
        raise CommandError("this is no PLAIN response")
    identity, user, password = map(_decode, fields)
    if identity not in ("", user):
        raise CommandError("one can only log in as oneself", "NO", "AUTHORIZATIONFAILED")
    return await _log_in(context, user, password)


def _require_passwords(context: ImapContext) -> None:
    if not passwords_allowed(context):
        raise CommandError(
            "passwords are taken under TLS only: use STARTTLS first, or the port for TLS", "NO", "PRIVACYREQUIRED"
        )


async def _log_in(context: ImapContext, user: str, password: str) -> TaggedAnswer:
    try:
        local = await context.logins.verify(user, password, context.client.peer)
    except Throttled:
        context.end_after_answer("too many failed logins")
        raise CommandError("too many failed logins, try again later", "NO", "UNAVAILABLE") from None
    if local is None:
        context.refused_logins += 1
        if context.refused_logins >= MAX_REFUSED_LOGINS:
            context.end_after_answer("too many failed logins")
        raise CommandError("wrong name or password", "NO", "AUTHENTICATIONFAILED")
    if refusal := context.transport.register_session(local):
        context.end_after_answer(refusal)
        raise CommandError(refusal, "NO", "LIMIT")
    context.local = local
    return TaggedAnswer("logged in", capability_code(current_capabilities(context)))


async def run_enable(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """ENABLE (RFC 5161): what is unknown is ignored."""
    arguments = command.arguments
    assert isinstance(arguments, EnableArguments)
    names = can_be_enabled(arguments.capabilities)
    for name in names:
        context.enabled |= IMPLIED[name]
    context.transport.write(data.enabled(names))
    return TaggedAnswer("enabled")


def _decode(octets: bytes) -> str:
    """A name or password as text: UTF-8, or Latin-1 from old clients."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")
