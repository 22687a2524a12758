"""A session with an account's maildrop at its provider, as the fetcher uses it, by POP3 or IMAP.

``Pop3Client`` and ``ImapClient`` are such sessions. Errors are those of ``session_errors`` and ``shared.net.dial``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from shared.model import Server
from shared.provider.credentials import Credential
from shared.provider.retrieval import ListReply, MailRequest, ReserveMemory, Retrieved, UndeletedMails


class MaildropSession(Protocol):
    """One open session; for one task at a time."""

    @property
    def server(self) -> Server:
        """The server's address."""

    @property
    def login_delay(self) -> int | None:
        """Least time between two logins that the server announces: seconds."""

    @property
    def pipelining(self) -> bool:
        """Whether mails are requested before those before them have come."""

    @property
    def reading(self) -> int | None:
        """The number of the mail whose reply is being read, for the report if the session ends there."""

    @property
    def past_half_time(self) -> bool:
        """Whether half of the session's time is over: a new session is then better than a time-out."""

    async def login(self, credential: Credential) -> None:
        """Log in. :raises LoginRefused: wrong name or password. :raises ServerBusy: no login for now."""

    def fetch_alone(self) -> None:
        """From now on, request each mail only after everything about the previous one has come."""

    def is_junk(self, number: int) -> bool:
        """Return whether a mail of the list is in the provider's junk folder."""

    async def fetch_state(self) -> bytes | None:
        """Return a digest that is the same again only if no mail has come or gone; None if the server has none.

        :raises ServerBusy, ProtocolError: the server refuses it now.
        """

    async def fetch_list_reply(self) -> ListReply:
        """Fetch the list of mails; do not parse it. :raises ServerBusy, ProtocolError: there is none now."""

    async def fetch_sizes(self, numbers: Sequence[int]) -> dict[int, int]:
        """Return the octets of these mails by number, and perhaps of others, as far as the server reports them."""

    def retrieve(
        self,
        requests: Sequence[MailRequest],
        max_octets: int,
        stop: Callable[[], bool] = lambda: False,
        reserve_memory: ReserveMemory | None = None,
    ) -> AsyncIterator[Retrieved]:
        """Fetch these mails, in order. When ``stop()`` is true, no further mail is requested. A mail returned is whole.

        :param max_octets: the largest mail to keep. :param reserve_memory: awaited before a large mail grows.
        :raises OutOfStep: a mail is not whole; ``reading`` is its number if it was fetched alone, otherwise None.
        :raises ReplyTooLong: a mail exceeds the limit by far.
        """

    def fetch_headers(self, numbers: Sequence[int], max_octets: int) -> AsyncIterator[Retrieved]:
        """Fetch the headers of these mails, in order; a refusal where the server cannot show a header alone."""

    async def delete(self, numbers: Sequence[int]) -> UndeletedMails:
        """Delete these mails, at once or with ``quit``."""

    async def quit(self) -> bool:
        """End the session. Return whether the server confirms the deletions."""
