"""An IMAP client (RFC 3501, RFC 9051) that fetches mail from the folders of an account, whatever the server's quality.

It marks nothing as read: folders are opened by EXAMINE, texts are fetched by BODY.PEEK. Every wait has a time limit and
every response a size limit (``imap_stream``, ``session_stream``).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import shared
from shared.errors import Temporary
from shared.imap.names import quoted
from shared.imap.sets import UID_LIMIT
from shared.model import Server
from shared.net.dial import ProgressCallback, TlsError, host_port, no_progress
from shared.provider import imap_filing, imap_listing
from shared.provider.credentials import Credential
from shared.provider.imap_capabilities import ImapCapabilities
from shared.provider.imap_deletion import delete_mails
from shared.provider.imap_folders import Folders, WatchedFolder
from shared.provider.imap_idle import wait_for_news
from shared.provider.imap_listing import ImapListReply
from shared.provider.imap_login import CapabilityNews, fetch_capabilities, log_in
from shared.provider.imap_stream import ImapStream
from shared.provider.imap_transfer import ImapTransfer
from shared.provider.retrieval import Listing, MailRequest, ReserveMemory, Retrieved, UndeletedMails
from shared.provider.session_errors import ProtocolError, ServerBusy
from shared.provider.session_stream import CONNECT_SECONDS, READ_SECONDS, SESSION_SECONDS, open_stream
from shared.settings import PrivateHosts

LITERAL_MINUS_OCTETS = 4096
"""Longest literal that LITERAL- allows without permission: octets (RFC 7888 section 5)."""
_HEADER_OCTETS = 8192
"""Usual length of a header: octets; only for the window of commands sent ahead."""
_QUIT_SECONDS = 5.0
"""Longest wait for the reply to LOGOUT: seconds; nothing depends on it."""


class ImapClient:
    """One session (a ``MaildropSession``), from ``open_session``; for one task at a time.

    capabilities: those of the server, after the login those that hold then.
    """

    def __init__(self, stream: ImapStream, folders: Sequence[str]) -> None:
        self.server = stream.server
        self.capabilities = ImapCapabilities()
        self._stream = stream
        self._folders = Folders(stream, folders)
        self._transfer = ImapTransfer(stream, self._folders)
        self._problems: list[str] | None = None  # of folders that are not watched; None before they were looked up
        self._logged_in = False  # by the server itself (PREAUTH)

    # ------------------------------------------------------------------------------------------ the session's steps

    async def greet(self, progress: ProgressCallback = no_progress) -> None:
        """Read the greeting and the capabilities; start TLS if the account demands STARTTLS.

        :param progress: called for the steps encrypted (after STARTTLS) and answered.
        :raises ServerBusy: the server refuses connections now. :raises TlsError: no TLS.
        """
        stream = self._stream
        greeting = await stream.response()
        if greeting.kind == "BYE":
            raise ServerBusy(
                f"{host_port(self.server)}: the server refuses service now: {greeting.shown}", greeting.code or None
            )
        if greeting.tag != "*" or greeting.kind not in ("OK", "PREAUTH"):
            raise stream.not_imap()
        self._logged_in = greeting.kind == "PREAUTH"
        news = CapabilityNews()
        news.hear(greeting)
        if self.server.tls == "starttls":
            progress("encrypted", await self._start_tls())
            news.latest = None  # RFC 3501 section 6.2.1: discard the capabilities from before TLS
        self.capabilities = news.latest or await fetch_capabilities(stream)
        progress("answered", self.capabilities.shown())

    async def login(self, credential: Credential) -> None:
        """Log in with name and password, or with a token; then introduce ourselves (ID) where the server knows that.

        :raises LoginRefused: wrong name or password. :raises ServerBusy: no login for now.
        :raises TlsError: the server wants TLS before the login.
        """
        stream = self._stream
        self._allow_literals()
        if not self._logged_in:
            news = await log_in(stream, credential, self.capabilities)
            after = news or await fetch_capabilities(stream)
            self.capabilities = after if after.answered else self.capabilities
        self._folders.offers = self.capabilities
        self._allow_literals()
        if self.capabilities.has("ID"):  # 163.com opens no folder for a client that does not introduce itself
            stream.command = "ID"
            await stream.run(b'ID ("name" "mailgroup" "version" %s)' % (quoted(shared.__version__.encode()) or b'""'))
        if self.capabilities.has("UTF8=ACCEPT") or self.capabilities.has("UTF8=ONLY"):
            stream.command = "ENABLE"  # otherwise mail with UTF-8 in its header comes changed (RFC 6855, RFC 6857)
            response = await stream.run(b"ENABLE UTF8=ACCEPT")
            self._folders.utf8 = response.kind == "OK"

    async def fetch_list(self) -> Listing:
        """Fetch the list, as ``fetch_list_reply``, and parse it."""
        return (await self.fetch_list_reply()).parse()

    async def fetch_state(self) -> bytes | None:
        """Return a digest of the state of all watched folders, as ``imap_listing.fetch_state``."""
        return await imap_listing.fetch_state(self._folders, await self._find_folders())

    async def fetch_list_reply(self) -> ImapListReply:
        """List the mails of all watched folders; do not parse the lists.

        :raises ServerBusy, ProtocolError: there is no list now, or no folder can be opened.
        """
        return await imap_listing.fetch_list_reply(self._stream, self._folders, await self._find_folders())

    async def _find_folders(self) -> list[str]:
        """Find the folders once. Return why some are not watched."""
        if self._problems is None:
            self._problems = await self._folders.find()
        return self._problems

    @property
    def folders(self) -> Sequence[WatchedFolder]:
        """The folders that are watched, with UIDVALIDITY and number of mails; empty before the list was fetched."""
        return self._folders.watched

    def is_junk(self, number: int) -> bool:
        """Return whether a mail of the list is in the provider's junk folder."""
        return self._folders.watched[number // UID_LIMIT].junk

    async def fetch_sizes(self, numbers: Sequence[int]) -> dict[int, int]:
        """Return the octets of these mails by number, as far as the server reports them; some servers guess."""
        return await imap_listing.fetch_sizes(self._stream, self._folders, numbers)

    async def retrieve(
        self,
        requests: Sequence[MailRequest],
        max_octets: int,
        stop: Callable[[], bool] = lambda: False,
        reserve_memory: ReserveMemory | None = None,
    ) -> AsyncIterator[Retrieved]:
        """Fetch these mails, in order. When ``stop()`` is true, no further mail is requested. A mail returned is whole.

        :param max_octets: the largest mail to keep. :param reserve_memory: awaited before a large mail grows.
        :raises OutOfStep: a mail is not whole; ``reading`` is its number if it was fetched alone, otherwise None.
        """
        async for retrieved in self._transfer.fetch(b"", requests, max_octets, stop, reserve_memory):
            yield retrieved
            del retrieved  # otherwise it stays in memory while the next one is read

    async def fetch_headers(self, numbers: Sequence[int], max_octets: int) -> AsyncIterator[Retrieved]:
        """Fetch the headers of these mails, in order."""
        requests = [MailRequest(number, _HEADER_OCTETS) for number in numbers]
        async for retrieved in self._transfer.fetch(b"HEADER", requests, max_octets, lambda: False, None):
            yield retrieved

    async def delete(self, numbers: Sequence[int]) -> UndeletedMails:
        """Delete these mails and no others; it takes effect at once. A server without UIDPLUS deletes none."""
        return await delete_mails(self._stream, self._folders, numbers)

    async def find_sent_folder(self, name: str) -> WatchedFolder:
        """Return the folder for sent mail, as ``imap_filing.find_sent_folder``."""
        return await imap_filing.find_sent_folder(self._folders, name)

    async def has_mail(self, folder: WatchedFolder, message_id: str) -> bool:
        """Return whether a folder has a mail with this Message-ID, as ``imap_filing.has_mail``."""
        return await imap_filing.has_mail(self._stream, self._folders, folder, message_id)

    async def append_sent(
        self, folder: WatchedFolder, pieces: AsyncIterator[bytes], octets: int, *, utf8: bool
    ) -> None:
        """Append a mail that was sent, as ``imap_filing.append_sent``."""
        await imap_filing.append_sent(self._stream, self._folders, folder, pieces, octets, utf8=utf8)

    async def mark_answered(self, keys: Sequence[str]) -> None:
        """Mark mails as answered, by their keys in the ledger, as ``imap_filing.mark_answered``."""
        await self._find_folders()
        await imap_filing.mark_answered(self._stream, self._folders, keys)

    async def quit(self) -> bool:
        """Send LOGOUT. Return True: what ``delete`` did not report has been deleted before."""
        stream = self._stream
        stream.command = "LOGOUT"
        with contextlib.suppress(Temporary):
            await stream.skip_to(stream.send(b"LOGOUT"), _QUIT_SECONDS)
        return True

    @property
    def idles(self) -> bool:
        """Whether ``wait_for_news`` works."""
        return self.capabilities.has("IDLE")

    async def wait_for_news(self, seconds: float) -> bool:
        """Wait until a mail arrives in the first watched folder, at most for so long. Return whether one may have.

        A mail counts that arrived after the list was fetched in this session, or else after the first call. With
        ``session_seconds=math.inf`` the session lasts as long as it is used.

        :raises Temporary: the session is over, or IDLE is refused; mail may have arrived.
        """
        problems = await self._find_folders()
        if not self._folders.watched:
            raise ProtocolError(f"{host_port(self.server)}: {'; '.join(problems)}")
        return await wait_for_news(self._stream, self._folders, self._folders.watched[0], seconds)

    @property
    def login_delay(self) -> int | None:
        """None: IMAP servers announce no least time between two logins."""
        return None

    @property
    def pipelining(self) -> bool:
        """Whether commands are sent before those before them have ended."""
        return not self._transfer.alone

    @property
    def reading(self) -> int | None:
        """The number of the mail whose response is being read, for the report if the session ends there."""
        return self._transfer.reading

    @property
    def past_half_time(self) -> bool:
        """Whether half of the session's time is over: a new session is then better than a time-out."""
        return self._stream.past_half_time

    def fetch_alone(self) -> None:
        """Send each further command only after the previous one has ended."""
        self._transfer.alone = True

    def _allow_literals(self) -> None:
        """Learn which strings may be sent without permission (RFC 7888)."""
        if self.capabilities.has("LITERAL+") or self.capabilities.has("LITERAL-"):
            self._stream.non_synchronizing = LITERAL_MINUS_OCTETS

    async def _start_tls(self) -> str:
        """Send STARTTLS and make the handshake. Return a description of the TLS session. :raises TlsError: no TLS.

        The server's capabilities are not asked for before: without TLS anybody may have sent them.
        """
        stream = self._stream
        if self._logged_in:
            raise TlsError(
                f"{host_port(self.server)}: the server logs in without TLS (PREAUTH), so STARTTLS is impossible: this "
                "may be an attack; set tls to implicit (port 993)"
            )
        stream.command = "STARTTLS"
        response = await stream.run(b"STARTTLS")
        if response.kind != "OK":
            raise TlsError(
                f"{host_port(self.server)}: the server refuses STARTTLS, and nothing is sent in clear text; "
                f"set tls to implicit (port 993), or to none if you accept that: {response.shown}"
            )
        if stream.has_input:
            raise TlsError(
                f"{host_port(self.server)}: the server sent octets between STARTTLS and TLS: this may be an attack"
            )
        return await stream.start_tls()


@asynccontextmanager
async def open_session(
    server: Server,
    allow_private: PrivateHosts,
    *,
    folders: Sequence[str] = ("INBOX",),
    connect_seconds: float = CONNECT_SECONDS,
    read_seconds: float = READ_SECONDS,
    session_seconds: float = SESSION_SECONDS,
    progress: ProgressCallback = no_progress,
) -> AsyncIterator[ImapClient]:
    """Open a session: connection, TLS if the account demands it, greeting. The session ends with the block.

    Every error names host, port and what to change, and has a ``kind``.

    :param folders: names of the folders to watch, as people write them; the first one is watched by IDLE.
    :param progress: called for the steps resolved, connected, encrypted and answered.
    :raises Temporary: ``Unreachable``, ``ConnectTimeout``, ``TlsError``, ``ServerBusy``, ``ProtocolError``,
        ``ConnectionLost``. :raises Permanent: ``AddressNotAllowed``, ``LoginRefused``.
    """
    async with open_stream(
        ImapStream, server, allow_private, connect_seconds, read_seconds, session_seconds, progress
    ) as stream:
        client = ImapClient(stream, folders)
        await client.greet(progress)
        yield client
