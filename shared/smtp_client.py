"""The client's side of SMTP towards a provider (RFC 5321): connecting, TLS, AUTH, and a DATA stage that streams.

aiosmtplib speaks the protocol line by line; the way there is guarded by shared/upstream.py. Its own DATA wants the
whole mail in memory and tells nobody when the final dot goes out, so that stage is here. Only CRLF line ends leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import aiosmtplib

from shared import upstream
from shared.accounts import External
from shared.failures import Temporary

CONNECT_SECONDS = 60.0
"""For TCP, greeting, TLS and AUTH together."""
COMMAND_SECONDS = 300.0
"""RFC 5321 4.5.3.2: MAIL and RCPT."""
DATA_SECONDS = 120.0
BLOCK_SECONDS = 180.0
"""For one piece of the mail to be taken."""
ANSWER_SECONDS = 600.0
"""From the final dot to the reply: giving up earlier makes duplicates."""

MECHANISMS = ("plain", "login", "cram-md5")
"""In order of preference. One is tried, so a wrong password costs one failed login and not three."""
SERVER_FULL = 421
CREDENTIALS_WANTED = 530
MECHANISM_UNKNOWN = 504
REPLY_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered. text: without the code, in one line, at most 500 characters."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip()

    @property
    def accepted(self) -> bool:
        """2xx: done."""
        return 200 <= self.code < 300  # RFC 5321 4.2.1

    @property
    def refused(self) -> bool:
        """5xx: not now and not later."""
        return 500 <= self.code < 600  # RFC 5321 4.2.1

    @property
    def status(self) -> str:
        """The enhanced status code (RFC 3463), made from the code where there is none."""
        found = re.match(r"([245]\.\d{1,3}\.\d{1,3})(?!\S)", self.text)
        return found[1] if found else f"{self.code // 100}.0.0"


class Lost(Temporary):
    """The connection ended before the final dot: the provider does not have the mail."""

    kind: ClassVar[str] = "connection"


class Unanswered(Temporary):
    """The connection ended, or ten minutes passed, between the final dot and the reply: nobody knows."""

    kind: ClassVar[str] = "connection"


class Unwilling(Temporary):
    """The server is there and does not serve us now. reply_code: what it answered."""

    kind: ClassVar[str] = "server"

    def __init__(self, text: str, reply_code: int = 0) -> None:
        super().__init__(text)
        self.reply_code = reply_code


class LoginRefused(Temporary):
    """The credentials are wrong, or some are wanted: waiting does not help, a person has to correct the account."""

    kind: ClassVar[str] = "credentials"


class Wire:
    """What goes over the wire in the DATA stage: CRLF line ends only, dots doubled (RFC 5321 2.3.8 and 4.5.2).

    A lone CR or LF becomes CRLF, wherever the pieces are cut; so nobody finds a second end of the mail in it.
    """

    _ODD = re.compile(rb"\r(?!\n)|(?<!\r)\n")

    def __init__(self) -> None:
        self._line_start = True
        self._held = b""  # a CR at the end of a piece: the next one may begin with its LF

    def feed(self, piece: bytes) -> bytes:
        """What to send for the next piece."""
        data = self._held + piece
        self._held = b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        if not data:
            return b""
        if not data.count(b"\r\n") == data.count(b"\r") == data.count(b"\n"):
            data = self._ODD.sub(b"\r\n", data)
        first = self._line_start and data.startswith(b".")
        self._line_start = data.endswith(b"\r\n")
        return (b"." if first else b"") + data.replace(b"\r\n.", b"\r\n..")

    def finish(self) -> bytes:
        """What to send after the last piece, so that the final dot stands on a line of its own."""
        ends = self._line_start and not self._held
        self._line_start, self._held = True, b""
        return b"" if ends else b"\r\n"


class SmtpClient:
    """An SMTP connection that is logged in. extensions: what the server announced, lower-case name to parameters."""

    def __init__(self, smtp: aiosmtplib.SMTP, where: str) -> None:
        """:param smtp: connected, EHLO and AUTH done. :param where: host and port, for messages."""
        if smtp.protocol is None or smtp.transport is None:
            raise Unwilling(f"{where}: the server ended the connection behind the login")
        self._smtp = smtp
        self._protocol = smtp.protocol
        self._where = where
        # Only for its drain(): aiosmtplib's protocol has the flow control and no way to wait for it. Kept as long as
        # the connection, which it would close when collected.
        self._writer = asyncio.StreamWriter(
            cast(asyncio.WriteTransport, smtp.transport), smtp.protocol, None, asyncio.get_running_loop()
        )
        self.extensions: dict[str, str] = dict(smtp.esmtp_extensions)

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as is known here."""
        return self._smtp.is_connected

    async def command(self, line: bytes, seconds: float = COMMAND_SECONDS) -> Reply:
        """Send a command and wait for its reply. :raises Lost: no reply; the connection is closed."""
        try:
            code, text = await self._smtp.execute_command(line, timeout=seconds)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            self.close()
            verb = line.split(b" ")[0].decode("ascii", "replace")
            raise Lost(f"{self._where}: {_why(error)} after {verb}") from error
        except BaseException:
            self.close()  # a reply may still come: it must not be taken for that of the next command
            raise
        return Reply(code, _line(text))

    async def data(self, pieces: AsyncIterator[bytes], before_dot: Callable[[], Awaitable[None]]) -> Reply:
        """Send a mail after MAIL and RCPT. Whatever ``before_dot`` and ``pieces`` raise ends the connection first.

        :param pieces: the mail, in pieces of any size. :param before_dot: awaited when only the final dot is missing.
        :raises Lost: the connection ended before the dot. :raises Unanswered: … after it.
        """
        reply = await self.command(b"DATA", DATA_SECONDS)
        if reply.code != 354:  # RFC 5321 4.3.2
            return reply
        # Waited for from now on: a server may refuse before it has read everything, and the reply must not be lost.
        answer = asyncio.ensure_future(self._protocol.read_response())
        try:
            async with asyncio.timeout(None) as deadline:
                early = await self._stream(pieces, answer, deadline)
                if early is None:
                    deadline.reschedule(None)
                    await before_dot()
                    if answer.done():
                        early = self._early(answer)
                if early is not None:
                    self.close()
                    return early
                self._writer.write(b".\r\n")
        except BaseException as error:
            answer.cancel()
            self.close()
            if isinstance(error, OSError):  # TimeoutError is one
                raise Lost(f"{self._where}: {_why(error)} while the mail was sent") from error
            raise
        return await self._answer(answer)

    async def _stream(
        self, pieces: AsyncIterator[bytes], answer: asyncio.Future[aiosmtplib.SMTPResponse], deadline: asyncio.Timeout
    ) -> Reply | None:
        """Everything but the dot; the reply, if one came too early. Never more than a piece waits in memory."""
        wire = Wire()
        loop = asyncio.get_running_loop()
        async for piece in pieces:
            self._writer.write(wire.feed(piece))
            deadline.reschedule(loop.time() + BLOCK_SECONDS)
            drained = asyncio.ensure_future(self._writer.drain())
            either: set[asyncio.Future[Any]] = {drained, answer}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if answer.done():
                    return self._early(answer)
                await drained
            finally:
                drained.cancel()
            deadline.reschedule(None)  # the store has its own deadlines
        self._writer.write(wire.finish())
        return None

    def _early(self, answer: asyncio.Future[aiosmtplib.SMTPResponse]) -> Reply:
        try:
            code, text = answer.result()
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Lost(f"{self._where}: {_why(error)} while the mail was sent") from error
        if not 400 <= code < 600:  # RFC 5321 4.2.1
            raise Lost(f"{self._where}: a reply {code} came before the end of the mail")
        return Reply(code, _line(text))

    async def _answer(self, answer: asyncio.Future[aiosmtplib.SMTPResponse]) -> Reply:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                code, text = await answer
        except TimeoutError as error:
            self.close()
            raise Unanswered(f"{self._where}: no reply within {ANSWER_SECONDS:g} s after the mail was sent") from error
        except (aiosmtplib.SMTPException, OSError) as error:
            self.close()
            raise Unanswered(f"{self._where}: {_why(error)} after the mail was sent, before the reply") from error
        except BaseException:
            self.close()
            raise
        if code == SERVER_FULL:
            self.close()
        return Reply(code, _line(text))

    async def reset(self) -> None:
        """Forget the mail that was begun (RSET). :raises Lost: the connection is not usable any more."""
        reply = await self.command(b"RSET", DATA_SECONDS)
        if not reply.accepted:
            self.close()
            raise Lost(f"{self._where}: RSET was answered {reply.code}")

    async def quit(self) -> None:
        """Say goodbye, briefly, and close."""
        if self.alive:
            with contextlib.suppress(Lost):  # it is closed anyway
                await self.command(b"QUIT", 5.0)
        self.close()

    def close(self) -> None:
        """End the connection at once."""
        self._smtp.close()
        self._writer.close()


async def connect(
    external: External, password: str, allow_private: bool, seconds: float = CONNECT_SECONDS
) -> SmtpClient:
    """Connect to the account's SMTP server, encrypt as it is configured (never less), and log in if it is to.

    :raises upstream.Unreachable: (Temporary) no connection. :raises upstream.Untrusted: (Temporary) TLS failed.
    :raises upstream.Forbidden: (Permanent) the operator does not allow the address.
    :raises Unwilling: it does not serve us now; ``reply_code`` 421: too many connections.
    :raises LoginRefused: wrong credentials.
    """
    server = external.smtp
    where = upstream.place(server)
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    sock = await upstream.connect_socket(server, allow_private, seconds)
    smtp = aiosmtplib.SMTP(
        hostname=server.host.strip("[]"),
        sock=sock,
        use_tls=server.tls == "implicit",
        start_tls=False,
        tls_context=upstream.client_context(server),
        local_hostname=_own_name(sock.getsockname()[0]),
        timeout=seconds,
    )
    try:
        async with asyncio.timeout_at(ends):
            await _greet(smtp, external, where)
            if external.smtp_auth:
                await _log_in(smtp, external.login, password, where)
        return SmtpClient(smtp, where)
    except TimeoutError as error:
        raise upstream.Late(f"{where}: the server did not answer within {seconds:g} s") from error
    except ssl.SSLError as error:
        raise upstream.explain_tls(server, error) from error
    except aiosmtplib.SMTPResponseException as error:
        raise Unwilling(f"{where}: the server answered {error.code}", error.code) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise upstream.explain_tls(server, error.__cause__) from error
        raise Unwilling(f"{where}: the connection ended before the login was done") from error


async def _greet(smtp: aiosmtplib.SMTP, external: External, where: str) -> None:
    """Greeting, EHLO, TLS, and EHLO again. What is not a mail server's answer is never shown: only its code is."""
    server = external.smtp
    try:
        await smtp.connect()
        if server.tls == "implicit":
            _check_certificate(smtp, external)
        await _hello(smtp)
        if server.tls == "starttls":
            if not smtp.supports_extension("starttls"):
                raise upstream.Untrusted(
                    f"{where}: the server does not offer STARTTLS; the login and the mail are not "
                    "sent without; check port and tls"
                )
            await smtp.starttls()
            _check_certificate(smtp, external)
            await _hello(smtp)
    except BaseException:
        smtp.close()
        raise


async def _hello(smtp: aiosmtplib.SMTP) -> None:
    try:
        await smtp.ehlo()
    except aiosmtplib.SMTPHeloError:
        if not smtp.is_connected:
            raise
        await smtp.helo()


def _check_certificate(smtp: aiosmtplib.SMTP, external: External) -> None:
    tls = smtp.get_transport_info("ssl_object")
    upstream.check_fingerprint(external.smtp, tls.getpeercert(binary_form=True) if tls else None)


async def _log_in(smtp: aiosmtplib.SMTP, login: str, password: str, where: str) -> None:
    offered = [name for name in MECHANISMS if name in smtp.server_auth_methods]
    try:
        if not offered:
            raise Unwilling(
                f"{where}: the server takes no login here (none of {', '.join(MECHANISMS).upper()}); "
                "check port and tls, or set auth to false"
            )
        for name in offered:
            log_in = {"plain": smtp.auth_plain, "login": smtp.auth_login, "cram-md5": smtp.auth_crammd5}[name]
            try:
                await log_in(login, password)
                return
            except aiosmtplib.SMTPAuthenticationError as error:
                if error.code == MECHANISM_UNKNOWN and name != offered[-1]:
                    continue
                reply = Reply(error.code, _line(error.message))
                if reply.refused:
                    raise LoginRefused(f"{where}: the login was refused ({reply}); check login and password") from error
                raise Unwilling(f"{where}: the login does not work now ({reply})", error.code) from error
    except BaseException:
        smtp.close()
        raise


async def probe_smtp(external: External, password: str, allow_private: bool, seconds: float) -> None:
    """Test an account's SMTP side as far as a mail's envelope, without sending one (manual 4.1, "Test").

    :raises Temporary: (also ``LoginRefused``) or Permanent: what is wrong, in words for the operator.
    """
    where = upstream.place(external.smtp)
    client = await connect(external, password, allow_private, seconds)
    try:
        async with asyncio.timeout(seconds):
            reply = await client.command(b"MAIL FROM:<" + external.address.encode() + b">")
            if reply.code == CREDENTIALS_WANTED:
                raise LoginRefused(f"{where}: the server wants a login ({reply}); set auth to true")
            if not reply.accepted:
                raise Unwilling(f"{where}: {external.address} is not accepted as the sender ({reply})", reply.code)
            await client.reset()
            await client.quit()
    except TimeoutError as error:
        raise upstream.Late(f"{where}: no answer within {seconds:g} s") from error
    finally:
        client.close()


def _own_name(address: str) -> str:
    """RFC 5321 4.1.3 and 4.1.4: an address literal, where there is no name that others could look up."""
    address = address.partition("%")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _line(text: str) -> str:
    """A reply's text in one printable line; the enhanced status code is not repeated for every line of the reply."""
    lines = [part.strip() for part in text.split("\n")]
    found = re.match(r"[245]\.\d{1,3}\.\d{1,3} ", lines[0])
    prefix = found[0] if found else "\0"
    words = " ".join([lines[0], *(part.removeprefix(prefix) for part in lines[1:])])
    clean = words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in clean).strip()[:REPLY_CHARACTERS]


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return "an answer that is none of SMTP"
    return "the connection was lost"
