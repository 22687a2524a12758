"""A POP3 client (RFC 1939, RFC 2449 CAPA, RFC 2595 STLS) for maildrops of any size and servers of any quality.

Whatever the server does, every wait has a time limit and every reply a size limit (``pop3_stream``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from shared.model import Server
from shared.net.dial import ProgressCallback, TlsError, host_port, no_progress
from shared.provider import pop3_listing
from shared.provider.credentials import Credential
from shared.provider.pop3_login import log_in
from shared.provider.pop3_mechanisms import timestamp_of
from shared.provider.pop3_replies import Capabilities, Pop3ListReply
from shared.provider.pop3_stream import Pop3Stream
from shared.provider.pop3_transfer import WINDOW_COMMANDS, MailTransfer
from shared.provider.reply_texts import trim
from shared.provider.retrieval import Listing, MailRequest, ReserveMemory, Retrieved, UndeletedMails
from shared.provider.session_errors import ServerBusy
from shared.provider.session_stream import CONNECT_SECONDS, READ_SECONDS, SESSION_SECONDS, open_stream
from shared.settings import PrivateHosts


class Pop3Client:
    """One session (a ``MaildropSession``), from ``open_session``; for one task at a time."""

    def __init__(self, stream: Pop3Stream) -> None:
        self.server = stream.server
        self.capabilities = Capabilities()
        self._stream = stream
        self._transfer = MailTransfer(stream)
        self._timestamp: bytes | None = None  # of the greeting, for APOP
        self._listed: Pop3ListReply | None = None

    # ------------------------------------------------------------------------------------------ the session's steps

    async def greet(self, progress: ProgressCallback = no_progress) -> None:
        """Read the greeting and the capabilities; start TLS if the account demands STLS.

        :param progress: called for the steps encrypted (after STLS) and answered.
        :raises ServerBusy: the server refuses connections now. :raises TlsError: no TLS.
        """
        ok, line = await self._stream.reply()
        if not ok:
            raise ServerBusy(f"{host_port(self.server)}: the server refuses service now: {trim(line)}")
        self._timestamp = timestamp_of(line)
        self.capabilities = await pop3_listing.fetch_capabilities(self._stream)
        if self.server.tls == "starttls":
            progress("encrypted", await self._start_tls())
            # RFC 2595 section 4: discard the capabilities from before TLS
            self.capabilities = await pop3_listing.fetch_capabilities(self._stream)
        progress(
            "answered",
            self.capabilities.shown() if self.capabilities.answered else "the server announces no capabilities (CAPA)",
        )

    async def login(self, credential: Credential) -> None:
        """Log in with USER and PASS, a SASL mechanism or APOP, or with a token by AUTH XOAUTH2.

        :raises LoginRefused: wrong name or password. :raises ServerBusy: [IN-USE], [LOGIN-DELAY], [SYS/TEMP].
        """
        before = self.capabilities
        await log_in(self._stream, credential, before, self._timestamp)
        if before.answered and (not before.pipelining or before.login_delay_by_user):
            after = await pop3_listing.fetch_capabilities(self._stream)
            self.capabilities = after if after.answered else before
        if self._transfer.alone:
            self.fetch_alone()  # whatever the server announces after the login

    async def stat(self) -> tuple[int, int]:
        """Return the number of mails and their octets (STAT)."""
        return await pop3_listing.fetch_counts(self._stream)

    async def fetch_list(self) -> Listing:
        """Send STAT and UIDL, as ``fetch_list_reply``, and parse the replies."""
        return (await self.fetch_list_reply()).parse()

    async def fetch_state(self) -> bytes | None:
        """Return None: POP3 has nothing but the list that says whether mails have come or gone."""
        return None

    async def fetch_list_reply(self) -> Pop3ListReply:
        """Send STAT and UIDL, or LIST to a server without UIDL; do not parse the list.

        :raises ServerBusy, ProtocolError: the server returns no list now.
        """
        self._listed = await pop3_listing.fetch_list_reply(self._stream, self.capabilities)
        return self._listed

    def is_junk(self, number: int) -> bool:
        """Return False: POP3 lists the INBOX alone."""
        return False

    async def fetch_sizes(self, numbers: Sequence[int]) -> dict[int, int]:
        """Send LIST: octets of all mails by number, as far as the server reports them."""
        return await pop3_listing.fetch_sizes(self._stream)

    async def retrieve(
        self,
        requests: Sequence[MailRequest],
        max_octets: int,
        stop: Callable[[], bool] = lambda: False,
        reserve_memory: ReserveMemory | None = None,
    ) -> AsyncIterator[Retrieved]:
        """Send RETR for each mail, in order. When ``stop()`` is true, no further mail is requested.

        A mail is returned after the fence behind it: it is whole.

        :param max_octets: the largest mail to keep. :param reserve_memory: awaited before a large mail grows.
        :raises OutOfStep: a mail is not whole; ``reading`` is its number if it was fetched alone, otherwise None.
        """
        self._prepare_transfer()
        async for retrieved in self._transfer.fetch("RETR", requests, max_octets, stop, reserve_memory):
            yield retrieved
            del retrieved  # otherwise it stays in memory while the next one is read

    async def fetch_headers(self, numbers: Sequence[int], max_octets: int) -> AsyncIterator[Retrieved]:
        """Send ``TOP n 0`` for each mail: its header, in order; a refusal from a server without TOP."""
        self._prepare_transfer()
        requests = [MailRequest(number, 8192) for number in numbers]
        async for retrieved in self._transfer.fetch("TOP", requests, max_octets, lambda: False, None):
            yield retrieved

    async def delete(self, numbers: Sequence[int]) -> UndeletedMails:
        """Send DELE for each mail; it takes effect at QUIT."""
        self._stream.command = "DELE"
        window = WINDOW_COMMANDS if self.capabilities.pipelining else 1
        refused = []
        for start in range(0, len(numbers), window):
            group = numbers[start : start + window]
            self._stream.write(b"".join(b"DELE %d\r\n" % number for number in group))
            for number in group:
                ok, _ = await self._stream.reply()
                if not ok:
                    refused.append(number)
        return UndeletedMails(refused, "DELE")

    async def quit(self) -> bool:
        """Send QUIT. Return whether the server confirms the deletions."""
        self._stream.command = "QUIT"
        self._stream.write(b"QUIT\r\n")
        ok, _ = await self._stream.reply()
        return ok

    @property
    def login_delay(self) -> int | None:
        """Least time between two logins that the server announces (RFC 2449 section 6.5): seconds."""
        return self.capabilities.login_delay

    @property
    def pipelining(self) -> bool:
        """Whether commands are sent before the replies to those before them."""
        return self.capabilities.pipelining

    @property
    def reading(self) -> int | None:
        """The number of the mail whose reply is being read, for the report if the session ends there."""
        return self._transfer.reading

    @property
    def past_half_time(self) -> bool:
        """Whether half of the session's time is over: a new session is then better than a time-out."""
        return self._stream.past_half_time

    def fetch_alone(self) -> None:
        """Send each further command only after the reply to the previous one, and a whole fence behind each mail."""
        self.capabilities = replace(self.capabilities, pipelining=False)
        self._transfer.alone = True

    def _prepare_transfer(self) -> None:
        self._transfer.ahead = self.capabilities.pipelining
        if self._listed is not None:  # the fence behind a mail asks for its unique ids again
            self._transfer.uidls = self._listed.uidls

    async def _start_tls(self) -> str:
        """Send STLS and make the handshake. Return a description of the TLS session. :raises TlsError: no TLS."""
        stream = self._stream
        stream.command = "STLS"
        if self.capabilities.answered and not self.capabilities.stls:
            raise TlsError(
                f"{host_port(self.server)}: the server offers no STARTTLS, and nothing is sent in clear text; "
                "set tls to implicit (port 995), or to none if you accept that"
            )
        stream.write(b"STLS\r\n")
        ok, line = await stream.reply()
        if not ok:
            raise TlsError(
                f"{host_port(self.server)}: the server refuses STARTTLS, and nothing is sent in clear text; "
                f"set tls to implicit (port 995), or to none if you accept that: {trim(line)}"
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
    connect_seconds: float = CONNECT_SECONDS,
    read_seconds: float = READ_SECONDS,
    session_seconds: float = SESSION_SECONDS,
    progress: ProgressCallback = no_progress,
) -> AsyncIterator[Pop3Client]:
    """Open a session: connection, TLS if the account demands it, greeting. The session ends with the block.

    Every error names host, port and what to change, and has a ``kind``.

    :param progress: called for the steps resolved, connected, encrypted and answered.
    :raises Temporary: ``Unreachable``, ``ConnectTimeout``, ``TlsError``, ``ServerBusy``, ``ProtocolError``,
        ``ConnectionLost``. :raises Permanent: ``AddressNotAllowed``, ``LoginRefused``.
    """
    async with open_stream(
        Pop3Stream, server, allow_private, connect_seconds, read_seconds, session_seconds, progress
    ) as stream:
        client = Pop3Client(stream)
        await client.greet(progress)
        yield client
