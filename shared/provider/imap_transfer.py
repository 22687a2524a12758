"""Transfers mails of an IMAP session by UID FETCH of BODY.PEEK (RFC 3501 section 6.4.5), which marks nothing as read.

One command asks for one mail, so a refusal concerns this mail alone. Commands are sent ahead, in a window limited by
number and octets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from shared.imap.sets import UID_LIMIT
from shared.provider.imap_folders import Folders
from shared.provider.imap_responses import MalformedResponse, Response, Value, fetch_attributes, number_of
from shared.provider.imap_stream import MAX_UNTAGGED, ImapStream
from shared.provider.mail_text import MailText
from shared.provider.retrieval import HEAD_OCTETS, MailRequest, ReserveMemory, Retrieved
from shared.provider.session_errors import OutOfStep, ProtocolError, ReplyTooLong

WINDOW_COMMANDS = 200
"""Commands without a response."""
WINDOW_OCTETS = 4 * 1024 * 1024
"""Octets of the mails that these commands request."""
HELD_OCTETS = 2 * WINDOW_OCTETS
"""Octets of mails that have come before the ends of their commands; the sizes announced before may be too small."""
PROOF_SECONDS = 10.0
"""Longest wait for each line behind a malformed response, up to the end of its command: seconds."""
MALFORMED = (
    "the provider's response for it is malformed: behind the octets that it announces, something else follows than has "
    "to (RFC 3501 section 4.3)"
)
"""Reason for skipping a mail whose response is malformed."""
_NO_TEXT = "the provider returns no text of this mail"


@dataclass(slots=True)
class _Asked:
    """A command without its end. problem: why the mail is refused if no text comes."""

    tag: str
    request: MailRequest
    text: MailText | None = None
    problem: str = _NO_TEXT


class _Window:
    """The commands for the mails of one folder: which may be sent, and what has come for them.

    Servers send texts in the order of the commands, and the end of a command perhaps only behind later texts. asked:
    the commands without their end, in order. name: of the texts in the responses.
    """

    def __init__(self, section: bytes, requests: Sequence[MailRequest]) -> None:
        self.asked: deque[_Asked] = deque()
        self.name = f"BODY[{section.decode()}]"
        self._section = section
        self._waiting = deque(requests)
        self._octets = 0  # that ``asked`` request
        self._held = 0  # that have come for ``asked``
        self._without_text: deque[_Asked] = deque()  # those of ``asked`` whose text may come

    @property
    def is_done(self) -> bool:
        """Whether everything was asked for and has come."""
        return not self._waiting and not self.asked

    @property
    def next_text(self) -> MailRequest:
        """The mail whose text comes next; the oldest one if every text has come."""
        return (self._without_text or self.asked)[0].request

    def fill(self, commands: int, new_tag: Callable[[], str]) -> bytes:
        """Return the commands to send now. :param commands: the most without their end."""
        if len(self.asked) > commands // 2:
            return b""
        lines = []
        while self._waiting and len(self.asked) < commands:
            request = self._waiting[0]
            if self.asked and self._octets + request.octets > WINDOW_OCTETS:
                break
            asked = _Asked(new_tag(), self._waiting.popleft())
            uid = request.number % UID_LIMIT
            lines.append(b"%s UID FETCH %d (UID BODY.PEEK[%s])\r\n" % (asked.tag.encode(), uid, self._section))
            self.asked.append(asked)
            self._without_text.append(asked)
            self._octets += request.octets
        return b"".join(lines)

    def add_text(self, uid: int | None, text: MailText) -> bool:
        """Add a text that came. False if it is none of those that may come now.

        So a text that a mail contains in front of the real one, or behind, is noticed.
        """
        if self._held > HELD_OCTETS:
            return False
        for position, asked in enumerate(self._without_text):
            if asked.request.number % UID_LIMIT == uid:
                asked.text = text
                self._held += len(text.kept)
                for _ in range(position + 1):  # those before have no text
                    self._without_text.popleft()
                return True
        return False

    def take(self, ended: Response) -> Retrieved:
        """Remove the oldest command and return its result. :param ended: the response that ended it."""
        oldest = self.asked.popleft()
        if self._without_text and self._without_text[0] is oldest:
            self._without_text.popleft()
        self._octets -= oldest.request.octets
        self._held -= len(oldest.text.kept) if oldest.text is not None else 0
        return _result(oldest, ended)


class ImapTransfer:
    """The transfers of one session.

    alone: each command is sent only after the previous one has ended. reading: the number of the mail whose response is
    being read, for the report if the session ends there.
    """

    def __init__(self, stream: ImapStream, folders: Folders) -> None:
        self.alone = False
        self.reading: int | None = None
        self._stream = stream
        self._folders = folders

    async def fetch(
        self,
        section: bytes,
        requests: Sequence[MailRequest],
        max_octets: int,
        stop: Callable[[], bool],
        reserve_memory: ReserveMemory | None,
    ) -> AsyncIterator[Retrieved]:
        """Fetch a section of each mail, in order, until ``stop()`` is true: b"" is the whole mail.

        :param max_octets: the largest text to keep. :param reserve_memory: awaited before a large text grows.
        :raises OutOfStep: a mail is not whole; ``reading`` is its number if it was fetched alone, otherwise None.
        """
        read = partial(self._stream.response, max_octets, reserve_memory)
        for index, group in groupby(requests, lambda request: request.number // UID_LIMIT):
            if stop():
                return
            await self._folders.reopen(self._folders.watched[index])
            window = _Window(section, list(group))
            while not window.is_done:
                if not stop() and (commands := window.fill(1 if self.alone else WINDOW_COMMANDS, self._stream.new_tag)):
                    self._stream.write(commands)
                if not window.asked:
                    return  # stopped
                ended = await self._read_to_end(window, read)
                self.reading = None
                yield window.take(ended)

    async def _read_to_end(self, window: _Window, read: Callable[[], Awaitable[Response]]) -> Response:
        """Read up to the response that ends the oldest command. Texts of the next ones may come before it.

        :raises OutOfStep: another text comes, or something that is no response.
        """
        stream = self._stream
        for _ in range(MAX_UNTAGGED):
            stream.command = f"FETCH of mail {window.next_text.number % UID_LIMIT}"
            self.reading = window.next_text.number
            try:
                response = await read()
                found = _text_of(response, window.name)
            except ReplyTooLong:
                raise
            except (ProtocolError, MalformedResponse) as error:
                raise await self._out_of_step(window, stream.text) from error
            if response.tag == window.asked[0].tag:
                return response
            if response.tag != "*":
                raise await self._out_of_step(window)
            stream.check_bye(response)
            if found is None or window.add_text(*found):
                continue
            if not self.alone or window.asked[0].text is not None:
                raise await self._out_of_step(window)
            # the mail is asked for alone, so the responses are in step nevertheless
            window.asked[0].problem = f"the provider returns another mail ({found[0] or 'without a UID'}) in its place"
        raise ProtocolError(f"{stream.where}: more than {MAX_UNTAGGED} untagged responses")

    async def _out_of_step(self, window: _Window, partial_text: MailText | None = None) -> ProtocolError:
        """Return the error. Only a mail that was fetched alone is at fault, if the end of its command comes behind."""
        stream = self._stream
        oldest = window.asked[0]
        error = f"{stream.where}: another response than has to follow"
        if not self.alone:
            self.reading = None
            return OutOfStep(error, MALFORMED)
        if not await stream.skip_to(oldest.tag, PROOF_SECONDS):
            return ProtocolError(error)
        head, text = b"", oldest.text or partial_text
        if text is not None:
            head = text.head if text.too_large else bytes(memoryview(text.kept)[:HEAD_OCTETS])
        return OutOfStep(error, MALFORMED, head)


def _text_of(response: Response, name: str) -> tuple[int | None, MailText] | None:
    """Return UID and text in a FETCH response; None if it has no text.

    :raises MalformedResponse: it has a text, and something else than has to stand around it.
    """
    if response.kind != "FETCH":
        return None
    try:
        found = fetch_attributes(response)
    except MalformedResponse:
        if any(isinstance(part, MailText) for part in response.parts):
            raise
        return None
    text = _as_text(found.get(name))
    return None if text is None else (number_of(found.get("UID")), text)


def _as_text(value: Value) -> MailText | None:
    if isinstance(value, bytes):  # a short text may come as a quoted string
        text = MailText(len(value) * 2)
        text.add(value)
        text.finish()
        return text
    return value if isinstance(value, MailText) else None


def _result(asked: _Asked, response: Response) -> Retrieved:
    """Return what came. :param response: the one that ended the command."""
    request, text, problem = asked.request, asked.text, asked.problem
    if response.kind != "OK":
        return Retrieved(request.number, None, 0, b"", response.shown, temporary=response.is_temporary)
    if text is not None and not text.octets and request.octets:
        text, problem = None, f"the provider returns an empty text, and announces {request.octets} octets"
    if text is None:
        return Retrieved(request.number, None, 0, b"", problem)
    return Retrieved(request.number, None if text.too_large else text.kept, text.octets, text.sha256, None, text.head)
