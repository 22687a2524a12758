"""IDLE (RFC 2177)."""

from __future__ import annotations

import structlog

from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.folder_watch import IdleFolder
from services.imap_out.grammar.commands import ImapCommand
from services.imap_out.grammar.errors import CommandError
from services.imap_out.responses import status
from shared.errors import Temporary

LINE_OCTETS = 1_000
"""Longest line that ends IDLE: octets; it is DONE."""

log = structlog.get_logger()


async def run_idle(context: ImapContext, command: ImapCommand) -> TaggedAnswer:
    """IDLE: tell the client of changes until it sends DONE."""
    context.transport.write(status.continuation("idling"))
    selected = context.selected
    if selected is None:
        await context.transport.wait_for_input(lambda: False)
    else:
        folder = selected.state.folder
        watched = IdleFolder(context.account.id, folder.id, folder.version, context.transport.wake, woken=True)
        context.watch.add(watched)
        try:
            await _follow(context, watched)
        finally:
            context.watch.remove(watched)
    line = await context.transport.read_line(LINE_OCTETS)
    if line is None:
        context.end_after_answer("the line is too long")
    if line is None or line.strip(b" ").upper() != b"DONE":
        raise CommandError("IDLE ends with DONE")
    return TaggedAnswer("idled")


async def _follow(context: ImapContext, watched: IdleFolder) -> None:
    """Send updates until a line has arrived."""
    while watched.woken:
        watched.woken = False
        try:
            await context.sync(may_expunge=True)
            watched.version = context.folder.state.folder.version
        except Temporary as failure:
            watched.version = -1  # the next sweep wakes the session again
            log.warning("changes not read in IDLE, retrying", error=str(failure), peer=context.client.peer)
        await context.transport.wait_for_input(lambda: watched.woken)
