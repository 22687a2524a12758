"""Asks a POP3 server what it has: CAPA, STAT, UIDL and LIST (RFC 1939, RFC 2449)."""

from __future__ import annotations

import hashlib

from shared.net.dial import host_port
from shared.provider.pop3_replies import (
    Capabilities,
    Pop3ListReply,
    is_temporary,
    parse_capa,
    parse_list,
    parse_stat,
    response_code,
)
from shared.provider.pop3_stream import Pop3Stream
from shared.provider.reply_texts import trim
from shared.provider.session_errors import ProtocolError, ServerBusy


async def fetch_capabilities(stream: Pop3Stream) -> Capabilities:
    """Send CAPA; a server that refuses it announces nothing."""
    stream.command = "CAPA"
    stream.write(b"CAPA\r\n")
    ok, _ = await stream.reply()
    return parse_capa(await stream.lines()) if ok else Capabilities()


async def fetch_counts(stream: Pop3Stream) -> tuple[int, int]:
    """Send STAT: the number of mails, and their octets."""
    stream.write(b"STAT\r\n")
    return await _read_counts(stream)


async def _read_counts(stream: Pop3Stream) -> tuple[int, int]:
    stream.command = "STAT"
    ok, line = await stream.reply()
    counts = parse_stat(line) if ok else None
    if counts is not None:
        return counts
    raise ProtocolError(f"{host_port(stream.server)}: STAT: no count of mails in the reply: {trim(line)}")


async def fetch_sizes(stream: Pop3Stream) -> dict[int, int]:
    """Send LIST: octets by number, as far as the server reports them."""
    stream.command = "LIST"
    stream.write(b"LIST\r\n")
    ok, _ = await stream.reply()
    return parse_list(await stream.lines()) if ok else {}


async def fetch_list_reply(stream: Pop3Stream, capabilities: Capabilities) -> Pop3ListReply:
    """Send STAT and UIDL, or LIST to a server without UIDL; do not parse the list.

    :raises ServerBusy, ProtocolError: the server returns no list now.
    """
    stream.write(b"STAT\r\nUIDL\r\n" if capabilities.pipelining else b"STAT\r\n")
    count, octets = await _read_counts(stream)
    if not capabilities.pipelining:
        stream.write(b"UIDL\r\n")
    stream.command = "UIDL"
    ok, line = await stream.reply()
    position_keyed = not ok
    if position_keyed:
        _check_refused_list(stream, capabilities, line)
        stream.command = "LIST"
        stream.write(b"LIST\r\n")
        ok, line = await stream.reply()
    if not ok:
        raise ProtocolError(f"{host_port(stream.server)}: the server lists no mails: {trim(line)}")
    text = await stream.text()
    digest = hashlib.sha256(b"%d %d %d " % (position_keyed, count, octets) + text.sha256).digest()
    return Pop3ListReply(count, text.kept, digest, position_keyed)


def _check_refused_list(stream: Pop3Stream, capabilities: Capabilities, line: bytes) -> None:
    """Check why UIDL was refused. :raises ServerBusy, ProtocolError: the server knows UIDL and refuses it now."""
    reply = trim(line)
    if is_temporary(reply):
        raise ServerBusy(f"{host_port(stream.server)}: the server lists no mails now: {reply}", response_code(reply))
    if capabilities.uidl:
        raise ProtocolError(
            f"{host_port(stream.server)}: the server announces unique ids (UIDL) and does not list them: {reply}"
        )
