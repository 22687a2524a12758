"""The states of an IMAP session and the order of its commands (RFC 3501 sections 3 and 5.5).

Commands run one after the other. Each is followed by the updates of the selected folder that it allows: EXPUNGE and
VANISHED never follow FETCH, STORE, SEARCH, SORT and THREAD by message numbers (RFC 3501 section 7.4.1).
"""

from __future__ import annotations

import structlog

from services.imap_out import commands
from services.imap_out.append import MailUpload
from services.imap_out.capabilities import capability_code
from services.imap_out.context import ImapContext, TaggedAnswer
from services.imap_out.grammar.command_input import (
    BEFORE_LOGIN,
    CommandInput,
    InputLimits,
    ReadLiteral,
    ReceiveMail,
    RefuseCommand,
    RunCommand,
)
from services.imap_out.grammar.commands import AppendArguments, ImapCommand
from services.imap_out.grammar.errors import CommandError
from services.imap_out.login import current_capabilities
from services.imap_out.responses import status
from shared.errors import Permanent, Temporary
from shared.model import Local
from shared.store.folders import FolderRefused

MAX_BAD_COMMANDS = 20
"""Invalid commands one after the other before the connection is closed."""
MAX_COMMANDS_BEFORE_LOGIN = 100
LITERAL_SECONDS = 60.0
"""Longest pause of a client that sends a literal of a command: seconds."""
STOPPING = status.untagged("BYE", "the server is going down, try again later", status.UNAVAILABLE)

log = structlog.get_logger()


class ImapSession:
    """One client's session.

    :ivar context: its state. :ivar stopping: the server stops: the next command gets BYE.
    """

    def __init__(self, context: ImapContext) -> None:
        """Begin in the state that is not authenticated."""
        self.context = context
        self.stopping = False
        self._input = CommandInput(BEFORE_LOGIN)
        self._upload: MailUpload | None = None  # the mail of the APPEND whose end is awaited
        self._refusal: TaggedAnswer | None = None  # of that APPEND
        self._bad_commands = 0
        self._commands_before_login = 0

    @property
    def local(self) -> Local | None:
        """The account that is logged in; None before the login."""
        return self.context.local

    @property
    def committing(self) -> bool:
        """Whether a change is being committed: the command must not be cancelled."""
        return self.context.committing

    def release_memory(self) -> None:
        """Drop the mails that are read ahead: the client pauses or has disconnected."""
        self.context.release_memory()

    async def run(self) -> None:
        """Serve the client until the session ends. :raises ConnectionError: the client has disconnected."""
        context = self.context
        code = capability_code(current_capabilities(context))
        context.transport.write(status.untagged("OK", "mailgroup IMAP server ready", code))
        try:
            while not context.ended:
                await self._next()
            if context.farewell:
                context.transport.write(status.untagged("BYE", context.farewell))
        finally:
            self.release_memory()
            await self._close_upload()

    async def _next(self) -> None:
        """Read a line, and do what the command needs next."""
        transport = self.context.transport
        line = await transport.read_line(self._input.limits.line_octets)
        if line is None:
            self._end("the line is too long")
            return
        if self.stopping:
            transport.write(STOPPING)
            self.context.ended = True
            return
        match self._input.feed_line(line):
            case ReadLiteral() as literal:
                await self._read_literal(literal)
            case ReceiveMail() as mail:
                await self._receive_mail(mail)
            case RunCommand(command):
                await self._run(command)
            case RefuseCommand(tag, error, ends):
                await self._close_upload()
                self._answer(tag, "", TaggedAnswer(str(error), error.code, error.kind))
                if ends:
                    self.context.end_after_answer("a literal of a refused command is too long")

    def _end(self, text: str) -> None:
        self.context.transport.write(status.untagged("BYE", text))
        self.context.ended = True

    async def _read_literal(self, literal: ReadLiteral) -> None:
        transport = self.context.transport
        if literal.waits:
            transport.write(status.continuation("go on"))
        left, kept = literal.octets, []
        while left:
            piece = await transport.read_octets(left, LITERAL_SECONDS)
            left -= len(piece)
            if not literal.dropped:
                kept.append(piece)
        if not literal.dropped:
            self._input.feed_literal(b"".join(kept))

    # ------------------------------------------------------------------------------------------ APPEND

    async def _receive_mail(self, step: ReceiveMail) -> None:
        """Receive the mail of APPEND. What is refused is answered after its last line, or before it is sent."""
        arguments = step.command.arguments
        assert isinstance(arguments, AppendArguments)
        self._refusal = None
        try:
            folder = await self.context.find_folder(arguments.mailbox, create=True)
        except (CommandError, Temporary) as failure:
            refusal = self._explain(step.command, failure)
            if step.waits:
                self._input.abandon_mail()
                self._answer(step.command.tag, step.command.shown, refusal)
                return
            self._refusal = refusal
            left = step.octets
            while left:
                left -= len(await self.context.transport.read_octets(left, LITERAL_SECONDS))
            return
        self._upload = MailUpload(self.context, step, folder)
        if step.waits:
            self.context.transport.write(status.continuation("send the mail"))
        try:
            await self._upload.receive()
        except (CommandError, Temporary) as failure:
            self._refusal = self._explain(step.command, failure)
            await self._upload.skip()

    async def _finish_append(self, context: ImapContext, command: ImapCommand) -> TaggedAnswer:
        try:
            if self._refusal is not None:
                return self._refusal
            assert self._upload is not None
            return await self._upload.finish()
        finally:
            await self._close_upload()

    async def _close_upload(self) -> None:
        upload, self._upload, self._refusal = self._upload, None, None
        if upload is not None:
            await upload.close()

    # ------------------------------------------------------------------------------------------ commands

    async def _run(self, command: ImapCommand) -> None:
        context = self.context
        context.stats.commands += 1
        if context.local is None:
            self._commands_before_login += 1
            if self._commands_before_login > MAX_COMMANDS_BEFORE_LOGIN:
                self._end("too many commands before the login")
                return
        try:
            if command.name == "APPEND" and context.local is not None:
                answer = await self._finish_append(context, command)
            else:
                answer = await self._find(command)(context, command)
            if context.selected is not None and command.name not in commands.WITHOUT_UPDATES:
                await self._send_updates(command)
        except ConnectionError:
            raise
        except Exception as failure:  # a defect ends this session, and no other
            if context.in_response:
                log.warning("response failed, connection closed", error=str(failure), **self._fields())
                raise ConnectionResetError("a response is incomplete") from failure
            answer = self._explain(command, failure)
        self._input.utf8 = context.utf8
        if context.local is not None:
            self._input.limits = InputLimits(mail_octets=context.max_mail_octets)
        self._answer(command.tag, command.shown, answer)
        await context.transport.end_answer()

    def _find(self, command: ImapCommand) -> commands.RunCommand:
        """Return what runs a command in this state. :raises CommandError: BAD."""
        context = self.context
        run = commands.ANY_STATE.get(command.name)
        if run is not None:
            return run
        if command.name in commands.NOT_AUTHENTICATED:
            if context.local is not None:
                raise CommandError("you are logged in already")
            return commands.NOT_AUTHENTICATED[command.name]
        if context.local is None:
            raise CommandError("log in first")
        run = commands.AUTHENTICATED.get(command.name)
        if run is None:
            run = commands.SELECTED.get(command.name)
            if run is None:
                raise CommandError("this command is not supported")
            if context.selected is None:
                raise CommandError("select a mailbox first")
        return run

    async def _send_updates(self, command: ImapCommand) -> None:
        by_number = command.name in commands.BY_NUMBER and not command.uid
        try:
            asks = command.name in commands.ASKING
            await self.context.sync(may_expunge=not by_number, uid=command.uid, asks=asks)
        except Temporary as failure:  # the command is done; the next one brings the updates
            log.warning("updates not read", error=str(failure), **self._fields())

    def _explain(self, command: ImapCommand, failure: Exception) -> TaggedAnswer:
        """Return the answer to a command that failed."""
        match failure:
            case CommandError():
                return TaggedAnswer(str(failure), failure.code, failure.kind)
            case FolderRefused():
                return TaggedAnswer(str(failure), failure.reason, "NO")
            case Temporary():
                log.warning(
                    "command failed, try again later", command=command.shown, error=str(failure), **self._fields()
                )
                return TaggedAnswer("not available now, try again later", status.UNAVAILABLE, "NO")
            case Permanent():
                log.error("command failed", command=command.shown, error=str(failure), **self._fields())
                return TaggedAnswer("this failed; the administrator finds the reason in the log", "", "NO")
        log.error("command failed unexpectedly", command=command.shown, exc_info=failure, **self._fields())
        self.context.end_after_answer("internal error")
        return TaggedAnswer("internal error", "SERVERBUG", "NO")

    def _fields(self) -> dict[str, str]:
        local = self.context.local
        return {"peer": self.context.client.peer} | ({"local": local.address} if local is not None else {})

    def _answer(self, tag: str, shown: str, answer: TaggedAnswer) -> None:
        context = self.context
        if not answer.kind:  # it has been sent
            return
        if answer.kind == "BAD":
            self._bad_commands += 1
            if self._bad_commands >= MAX_BAD_COMMANDS:
                self._end("too many invalid commands")
        else:
            self._bad_commands = 0
        text = f"{shown}: {answer.text}" if shown else answer.text
        kind = "BAD" if tag == "*" else answer.kind
        context.transport.write(status.tagged(tag, kind, text, answer.code))
