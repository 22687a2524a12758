"""The folders of an IMAP session: finds those that an account watches, and opens them (RFC 3501 section 6.3).

Reading uses EXAMINE, which changes nothing at the provider; SELECT is only for deletions and the mark of answered mail.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.imap.names import decode_name, encode_utf7, is_inbox
from shared.model import Server
from shared.net.dial import host_port
from shared.provider.imap_capabilities import ImapCapabilities
from shared.provider.imap_responses import (
    ListedFolder,
    MalformedResponse,
    Response,
    listed_folder,
    number_of,
    parse_values,
)
from shared.provider.imap_stream import ImapStream
from shared.provider.session_errors import ProtocolError, ServerBusy

UNFIT = {
    r"\all": "it shows the mails of other folders again",
    r"\allmail": "it shows the mails of other folders again",
    r"\flagged": "it shows the mails of other folders again",
    r"\starred": "it shows the mails of other folders again",
    r"\important": "it shows the mails of other folders again",
    r"\sent": "it has sent mail",
    r"\drafts": "it has drafts",
    r"\trash": "it has deleted mail",
}
"""Marks of folders that are not watched (RFC 6154, RFC 8457, and Gmail's older names), and why."""
_JUNK = frozenset({r"\junk", r"\spam"})
"""Marks of the folder for junk (RFC 6154, and Gmail's older name)."""
_USES = _JUNK | {r"\archive", *UNFIT}
"""Marks that say what a folder is for."""
JUNK_NAMES = frozenset(
    {
        *("junk", "junk mail", "junk-mail", "junk e-mail", "junk-e-mail", "junk email"),
        *("spam", "bulk", "bulk mail", "spamverdacht", "unerwünscht", "courrier indésirable", "indésirables"),
        *("correo no deseado", "posta indesiderata"),
    }
)
"""Names of folders for junk at providers that mark none, in lower case, without the levels above."""
_MAX_FOUND = 1000
"""Limits the folders that are read of one LIST: folders. Its pattern names one as a rule, and ``*`` or ``%`` in a name
may match others; the folder for sent mail is searched among all."""


@dataclass(slots=True)
class WatchedFolder:
    """A folder that the account watches."""

    index: int  # its place among them
    name: str
    raw: bytes  # its name on the wire
    junk: bool = False  # the provider puts junk mail there
    uidvalidity: int = 0  # 0 before the folder was opened
    uidnext: int = 0  # 0 if the server does not say it
    exists: int = 0  # number of its mails
    modseq: int = 0  # HIGHESTMODSEQ (RFC 7162); 0 if the server does not say it
    arrived: bool = False  # a mail has arrived since this was reset


class FolderUnavailable(Exception):
    """A folder cannot be watched; the others can. The text is for the user, without the server's address."""


class Folders:
    """The folders of one session. offers: the server's capabilities after the login."""

    def __init__(self, stream: ImapStream, names: Sequence[str]) -> None:
        """:param names: as the user has entered them; not empty."""
        self.offers = ImapCapabilities()
        self.watched: list[WatchedFolder] = []
        self.utf8 = False  # names are UTF-8 (RFC 6855), no modified UTF-7
        self._stream = stream
        self._names = names
        self._opened: tuple[WatchedFolder, Literal["EXAMINE", "SELECT"]] | None = None
        self._counts_changes = True  # the server says HIGHESTMODSEQ where it is asked for (RFC 7162 section 3.1.8)
        self._prefix: bytes | None = None  # of personal folders; None: not asked for yet
        stream.on_untagged = self._hear

    async def find(self) -> list[str]:
        """Find the folders to watch. Return what prevents some of them, for the user; the others are watched."""
        problems = []
        for name in self._names:
            try:
                raw, junk = (b"INBOX", False) if is_inbox(name) else await self._find(name)
            except FolderUnavailable as error:
                problems.append(str(error))
                continue
            if raw not in [folder.raw for folder in self.watched]:
                self.watched.append(WatchedFolder(len(self.watched), decode_name(raw, self.utf8), raw, junk))
        return problems

    @property
    def server(self) -> Server:
        """The server's address."""
        return self._stream.server

    async def find_named(self, name: str) -> bytes | None:
        """Return the name of a folder on the wire, whatever its marks; None if there is none."""
        found = await self._look_up(name)
        return None if found is None or {r"\nonexistent", r"\noselect"} & found.attributes else found.raw

    async def find_marked(self, mark: str) -> bytes | None:
        """Return the name on the wire of the first folder with this mark (RFC 6154); None if there is none."""
        found = [folder for folder in await self._list_all(b"*") if mark in folder.attributes]
        return found[0].raw if found else None

    async def _find(self, name: str) -> tuple[bytes, bool]:
        """Return the name of a folder on the wire, and whether it is for junk.

        :raises FolderUnavailable: there is none, or it is unfit.
        """
        found = await self._look_up(name)
        if found is None or {r"\nonexistent", r"\noselect"} & found.attributes:
            raise FolderUnavailable(f"there is no folder {name!r}")
        for mark, why in UNFIT.items():
            if mark in found.attributes:
                raise FolderUnavailable(f"the folder {name!r} is not fetched: the provider marks it as {mark}, {why}")
        return found.raw, self._is_for_junk(found)

    def _is_for_junk(self, folder: ListedFolder) -> bool:
        """Return whether the provider marks a folder for junk; of one without such a mark the name decides."""
        if marks := folder.attributes & _USES:
            return bool(marks & _JUNK)
        levels = decode_name(folder.raw, self.utf8).casefold()
        return (levels.rpartition(folder.delimiter)[2] if folder.delimiter else levels) in JUNK_NAMES

    async def _look_up(self, name: str) -> ListedFolder | None:
        wanted = name.encode() if self.utf8 else encode_utf7(name)
        found = await self._list(wanted)
        prefix = await self._personal_prefix() if found is None else b""
        if found is None and prefix and not wanted.startswith(prefix):
            found = await self._list(prefix + wanted)
        if found is None and not name.isascii():
            found = await self._find_by_meaning({name, decode_name(prefix, self.utf8) + name})
        return found

    async def _find_by_meaning(self, names: Collection[str]) -> ListedFolder | None:
        """Return the folder whose name reads as one of these: some servers list 8-bit names, in UTF-8 or Latin-1."""
        same = [folder for folder in await self._list_all(b"*") if decode_name(folder.raw, self.utf8) in names]
        return same[0] if same else None

    async def _list(self, raw: bytes) -> ListedFolder | None:
        same = [folder for folder in await self._list_all(raw) if folder.raw == raw]
        return same[0] if same else None

    async def _list_all(self, pattern: bytes) -> list[ListedFolder]:
        stream = self._stream
        stream.command = "LIST"
        found: list[ListedFolder] = []

        def hear(response: Response) -> None:
            folder = listed_folder(response) if response.kind == "LIST" and len(found) < _MAX_FOUND else None
            if folder is not None:
                found.append(folder)

        marks = self.offers.has("LIST-EXTENDED") and self.offers.has("SPECIAL-USE")
        behind = b" RETURN (SPECIAL-USE)" if marks else b""
        response = await stream.run(b"LIST", (b"", pattern), behind, hear)
        if response.kind != "OK":
            raise self.refusal(response)
        return found

    async def _personal_prefix(self) -> bytes:
        """Return what the names of one's own folders begin with (RFC 2342), such as ``INBOX.``; b"" if unknown."""
        if self._prefix is None:
            self._prefix = b""
            if self.offers.has("NAMESPACE"):
                self._stream.command = "NAMESPACE"
                await self._stream.run(b"NAMESPACE", heard=self._hear_namespace)
        return self._prefix

    def _hear_namespace(self, response: Response) -> None:
        if response.kind != "NAMESPACE":
            return
        try:
            values = parse_values(response.parts)
        except MalformedResponse:
            return
        match values:
            case [[[bytes(prefix), *_], *_], *_]:
                self._prefix = prefix

    async def open(self, folder: WatchedFolder, verb: Literal["EXAMINE", "SELECT"] = "EXAMINE") -> Response:
        """Open a folder, if it is not the open one. Return the last response. Its changes are counted from then on.

        :raises ProtocolError: its UIDVALIDITY is another one than before, so the numbers of its mails are void.
        :raises ServerBusy, FolderUnavailable: it cannot be opened.
        """
        if self._opened is not None and self._opened[0] is folder and self._opened[1] == verb:
            return Response("*", "OK")
        stream = self._stream
        stream.command = verb
        self._opened = None
        found: dict[str, int] = {}

        def hear(response: Response) -> None:
            if response.kind == "EXISTS":
                found["EXISTS"] = response.number or 0
            elif response.code in ("UIDVALIDITY", "UIDNEXT", "UIDNOTSTICKY", "HIGHESTMODSEQ"):
                number = number_of(response.arguments.strip().decode("latin-1"))
                found[response.code] = number or 0

        counts = verb == "EXAMINE" and self._counts_changes and self.offers.has("CONDSTORE")
        response = await stream.run(verb.encode(), (folder.raw,), b" (CONDSTORE)" if counts else b"", hear)
        if response.kind == "BAD" and counts:  # the server announces what it does not know
            self._counts_changes = False
            return await self.open(folder, verb)
        if response.kind != "OK":
            error = self.refusal(response)
            if isinstance(error, ServerBusy):
                raise error
            raise FolderUnavailable(f"the folder {folder.name!r} cannot be opened: {response.shown}")
        validity = found.get("UIDVALIDITY")
        if not validity or "UIDNOTSTICKY" in found:
            raise FolderUnavailable(f"the mails in the folder {folder.name!r} have no lasting numbers (UIDVALIDITY)")
        if folder.uidvalidity not in (0, validity):
            raise ProtocolError(f"{host_port(stream.server)}: the folder {folder.name!r} was renumbered meanwhile")
        next_uid, exists = found.get("UIDNEXT", 0), found.get("EXISTS", 0)
        if folder.uidvalidity:  # it was open before
            folder.arrived = folder.arrived or next_uid > folder.uidnext or exists > folder.exists
        folder.uidvalidity, folder.uidnext, folder.exists = validity, next_uid, exists
        folder.modseq = found.get("HIGHESTMODSEQ", 0)
        self._opened = folder, verb
        return response

    def forget_opened(self) -> None:
        """Let the next use of any folder open it, and so notice what has changed there."""
        self._opened = None

    async def reopen(self, folder: WatchedFolder, verb: Literal["EXAMINE", "SELECT"] = "EXAMINE") -> Response:
        """Open a folder that was open in this session, as ``open``. :raises ServerBusy, ProtocolError: it is not."""
        try:
            return await self.open(folder, verb)
        except FolderUnavailable as error:
            raise ProtocolError(f"{host_port(self._stream.server)}: {error}") from error

    async def refresh(self) -> None:
        """Let the server report changes of the open folder (NOOP)."""
        self._stream.command = "NOOP"
        response = await self._stream.run(b"NOOP")
        if response.kind != "OK":
            raise self.refusal(response)

    def refusal(self, response: Response) -> Exception:
        """Return the error for a refused command: ServerBusy or ProtocolError."""
        if response.is_temporary:
            return ServerBusy(f"{self._stream.where}: refused for now: {response.shown}", response.code or None)
        return ProtocolError(f"{self._stream.where}: refused: {response.shown}")

    def _hear(self, response: Response) -> None:
        """Count the mails of the open folder. Another number of mails may have more reasons than an arrival."""
        if self._opened is None:
            return
        folder = self._opened[0]
        if response.kind == "EXISTS" and response.number is not None:
            folder.arrived = folder.arrived or response.number > folder.exists
            folder.exists = response.number
        elif response.kind == "EXPUNGE":
            folder.exists = max(0, folder.exists - 1)
