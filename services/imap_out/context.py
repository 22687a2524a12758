"""The state of an IMAP session, and what all commands need: answers, updates of the client's view (RFC 3501 section 3).

A command is a function that takes the context and its arguments, and returns the tagged answer. A refusal is raised as
``CommandError``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from services.imap_out.current_folders import Look
from services.imap_out.folder_changes import FolderChanges
from services.imap_out.folder_store import FolderStore
from services.imap_out.folder_watch import FolderWatch
from services.imap_out.grammar.commands import ImapCommand
from services.imap_out.grammar.errors import CommandError
from services.imap_out.interfaces import ImapClientInfo, ImapSessionStats, ImapTransport, LoginVerifier
from services.imap_out.mails_ahead import MailsAhead
from services.imap_out.number_sets import NumberSet, indexes_of_numbers, indexes_of_uids, ranges_of
from services.imap_out.responses import data, fetch, status
from services.imap_out.view import SYSTEM_FLAGS, FolderState, SelectedFolder, ViewUpdate, split_flags, with_flags
from shared.db.database import Connection
from shared.model import Local
from shared.runtime.served_connection import BURST_OCTETS
from shared.store import maillog
from shared.store.folder_batches import FlagChange, StoreResult
from shared.store.folders import Folder, FolderRefused, SpecialUse
from shared.store.maillog import MailEvent

SPECIAL_USES: dict[SpecialUse | None, tuple[str, ...]] = {
    "sent": ("\\Sent",),
    "drafts": ("\\Drafts",),
    "junk": ("\\Junk",),
    "trash": ("\\Trash",),
    "archive": ("\\Archive",),
}
"""Attributes of LIST (RFC 6154)."""


@dataclass(frozen=True, slots=True)
class TaggedAnswer:
    """The answer to a command. kind: OK, NO or BAD. code: with arguments, without brackets."""

    text: str
    code: bytes | str = b""
    kind: str = "OK"


@dataclass(slots=True)
class ImapContext:
    """The state of one session.

    :ivar local: the account that is logged in; None before the login.
    :ivar selected: the selected folder. :ivar enabled: by ENABLE, or by a command that implies it (RFC 7162).
    :ivar ended: the connection is to be closed after the last answer.
    :ivar farewell: the reason, which BYE then tells the client (RFC 3501 section 3.4); "": BYE was sent already.
    :ivar committing: a change is being committed: the command must not be cancelled.
    :ivar in_response: a part of a response is sent: a failure ends the connection, as no answer can follow.
    """

    transport: ImapTransport
    store: FolderStore
    changes: FolderChanges
    logins: LoginVerifier
    watch: FolderWatch
    client: ImapClientInfo
    tls: bool
    max_mail_octets: int
    announce_change: Callable[[Local], None]  # tells other processes that the mailbox has changed, after the commit
    local: Local | None = None
    selected: SelectedFolder | None = None
    enabled: set[str] = field(default_factory=set)
    refused_logins: int = 0
    ended: bool = False
    farewell: str = ""
    committing: bool = False
    in_response: bool = False
    stats: ImapSessionStats = field(default_factory=ImapSessionStats)
    _ahead: MailsAhead | None = None

    def ahead(self) -> MailsAhead:
        """Return the mails that are read ahead in this session, which is logged in."""
        if self._ahead is None:
            self._ahead = MailsAhead(self.store.read_heads, self.transport.budget)
        return self._ahead

    def release_memory(self) -> None:
        """Drop what is in memory between two commands: mails that are read ahead."""
        if self._ahead is not None:
            self._ahead.clear()

    # ------------------------------------------------------------------------------------------ output

    def send(self, pieces: Iterable[bytes]) -> None:
        """Send responses."""
        self.transport.write(b"".join(pieces))

    async def send_all(self, pieces: Iterable[bytes], record: Callable[[bytes], None] | None = None) -> None:
        """Send many responses, and wait for the client between them. :raises ConnectionError: it has disconnected.

        :param record: is called with what is sent, in larger pieces.
        """
        out: list[bytes] = []
        octets = 0
        for piece in pieces:
            out.append(piece)
            octets += len(piece)
            if octets > BURST_OCTETS:
                self._send_joined(out, record)
                out, octets = [], 0
                await self.transport.drain()
        self._send_joined(out, record)

    def _send_joined(self, pieces: Sequence[bytes], record: Callable[[bytes], None] | None) -> None:
        joined = b"".join(pieces)
        self.transport.write(joined)
        if record is not None:
            record(joined)

    def end_after_answer(self, reason: str) -> None:
        """Close the connection after the answer to this command. :param reason: for the client."""
        self.ended = True
        self.farewell = reason

    @property
    def utf8(self) -> bool:
        """Whether names of mailboxes are UTF-8."""
        return "UTF8=ACCEPT" in self.enabled or self.rev2

    @property
    def rev2(self) -> bool:
        """Whether the client has enabled IMAP4rev2 (RFC 9051 section 6.3.1)."""
        return "IMAP4rev2" in self.enabled

    @property
    def shows_modseq(self) -> bool:
        """Whether flag updates name the mod-sequence (RFC 7162 section 3.2)."""
        return "CONDSTORE" in self.enabled

    @property
    def account(self) -> Local:
        """The account of a session that is logged in."""
        assert self.local is not None
        return self.local

    @property
    def folder(self) -> SelectedFolder:
        """The selected folder of a session that has one."""
        assert self.selected is not None
        return self.selected

    # ------------------------------------------------------------------------------------------ the selected folder

    def indexes(self, numbers: NumberSet, uid: bool) -> list[int]:
        """Return the indexes of a set in the selected folder. :raises CommandError: BAD: a number has no mail."""
        selected = self.folder
        if numbers.saved:
            return indexes_of_uids(NumberSet(tuple(ranges_of(selected.saved))), selected.state.uids)
        if uid:
            return indexes_of_uids(numbers, selected.state.uids)
        found = indexes_of_numbers(numbers, len(selected.state))
        if found is None:
            raise CommandError("the set names a message number that no mail has")
        return found

    def require_writable(self) -> None:
        """:raises CommandError: the folder was selected by EXAMINE."""
        if self.folder.read_only:
            raise CommandError("the mailbox was selected read-only", "NO", "READ-ONLY")

    async def sync(self, may_expunge: bool, uid: bool = False, *, asks: bool = True) -> None:
        """Take over what has changed in the selected folder, and tell the client.

        :param asks: False: if this process knows of no change, the database is not asked.
        :raises Temporary: the database is unavailable.
        :raises ConnectionError: the client has disconnected, or the folder was deleted: the session ends.
        """
        selected = self.selected
        if selected is None:
            return
        try:
            folder = selected.state.folder
            state = None if asks else self.store.current_state(folder)
            if state is None:
                state = await self.store.load_state(folder)
        except FolderRefused as refusal:
            self.transport.write(status.untagged("BYE", "the selected mailbox was deleted", status.NONEXISTENT))
            self.ended = True
            raise ConnectionResetError("the selected folder was deleted") from refusal
        if state.folder.version < selected.state.folder.version and state.folder.uidvalidity == (
            selected.state.folder.uidvalidity
        ):
            return  # an answer to a query from before the session's own change
        if state.folder.uidvalidity != selected.state.folder.uidvalidity:
            self.transport.write(status.untagged("BYE", "the mailbox was restored from a backup", status.UNAVAILABLE))
            self.ended = True
            raise ConnectionResetError("the selected folder was restored")
        if state is selected.state:
            return
        update = selected.move_to(state, may_expunge)
        await self.send_all(self.describe(update, uid))

    def describe(self, update: ViewUpdate, uid: bool = False) -> Iterable[bytes]:
        """Yield the responses that tell the client of an update. :param uid: the command is one with UIDs."""
        if update.expunged:
            if "QRESYNC" in self.enabled:
                yield status.vanished(ranges_of(one for one, _ in update.expunged))
            else:
                for _, number in reversed(update.expunged):
                    yield data.expunge(number)
        if update.exists is not None:
            yield data.exists(update.exists)
            if not self.rev2:
                yield data.recent()
        if update.keywords is not None:
            yield from describe_flags(update.keywords)
        for index in update.changed:
            yield self.flags_response(index, uid)

    def flags_response(self, index: int, uid: bool = False, with_flags: bool = True) -> bytes:
        """Format the FETCH response with the flags of a mail.

        RFC 7162 section 3.2: with MODSEQ, and UID; RFC 9051 section 7.5.2: with UID.
        """
        state = self.folder.state
        items = []
        if uid or self.rev2 or "QRESYNC" in self.enabled:
            items.append(fetch.uid(state.uids[index]))
        if with_flags:
            items.append(fetch.flags(state.flag_names(index)))
        if self.shows_modseq:
            items.append(fetch.modseq(state.versions[index]))
        return fetch.response(index + 1, items)

    # ------------------------------------------------------------------------------------------ folders

    async def find_folder(self, name: str, *, create: bool = False) -> Folder:
        """Return a folder of the account. :param create: say that the client may create it (RFC 3501 section 7.1).

        :raises CommandError: there is none. :raises Temporary: the database is unavailable.
        """
        found = await self.store.find_folder(self.account.id, name)
        if found is None:
            raise no_mailbox("TRYCREATE" if create else "NONEXISTENT")
        return found

    # ------------------------------------------------------------------------------------------ changes

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Connection]:
        """Open a transaction for a change, which is committed also if the client disconnects meanwhile.

        :raises Temporary: the database is unavailable; if only its reply was lost, the change is made.
        """
        with self.committed():
            async with self.store.database.transaction() as connection:
                yield connection
        self.announce()

    def announce(self) -> None:
        """Tell all sessions that the mailbox has changed, after the commit."""
        self.watch.hint((self.account.id,))
        self.announce_change(self.account)

    @contextmanager
    def committed(self) -> Iterator[None]:
        """Let a change be committed also if the client disconnects meanwhile."""
        self.committing = True
        try:
            yield
        finally:
            self.committing = False

    async def store_flags(
        self,
        uids: Sequence[int],
        action: Literal["add", "remove", "replace"],
        names: Sequence[str],
        unchanged_since: int | None = None,
    ) -> StoreResult:
        """Change flags of mails of the selected folder, and take over its new state.

        :param names: of flags and keywords. :param unchanged_since: as ``FlagChange``.
        :raises FolderRefused, Temporary, Permanent: as ``FolderChanges.store_flags``.
        """
        state = self.folder.state
        look = self.store.known.begin(self.account.id)
        change = FlagChange(self.account.id, state.folder.id, uids, action, *split_flags(names), unchanged_since)
        with self.committed():
            result = await self.changes.store_flags(change)
        if result.changed:
            changed = [(mail.uid, mail.flags, mail.keywords) for mail in result.changed]
            self._show_own_change(with_flags(state, changed, result.folder), look)
        return result

    async def announce_deletions(self, events: Sequence[MailEvent]) -> None:
        """Log deletions after their commit."""
        self.stats.expunged += len(events)
        await maillog.announce_in_turns(events)

    def _show_own_change(self, state: FolderState, look: Look) -> None:
        """Take over a state that a command of this session made, and tell all sessions and the client of new keywords.

        Other sessions get the state, too, if nobody else has changed the folder between.
        """
        complete = state.folder is not self.folder.state.folder
        if complete:
            self.store.keep_state(state)
        self.watch.own_change(look, state.folder.id if complete else None)
        self.announce_change(self.account)
        self.folder.state = state
        words = self.folder.learn_keywords()
        if words is not None:
            self.send(describe_flags(words))


def no_mailbox(code: str) -> CommandError:
    """Return the refusal of a command that names a mailbox which is not there."""
    return CommandError("there is no such mailbox", "NO", code)


def describe_flags(keywords: Sequence[str], read_only: bool = False) -> Iterable[bytes]:
    """Yield FLAGS and PERMANENTFLAGS (RFC 3501 section 7.1)."""
    names = [*SYSTEM_FLAGS, *keywords]
    yield data.flags(names)
    permanent = " ".join([] if read_only else [*names, "\\*"])
    yield status.untagged("OK", "flags that are kept", f"PERMANENTFLAGS ({permanent})")


RunCommand = Callable[[ImapContext, ImapCommand], Awaitable[TaggedAnswer]]
"""Runs a command. :raises CommandError: it is refused."""
