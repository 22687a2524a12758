"""A day's work in a mail program by IMAP: what a person does, and what server and customer have then."""

from __future__ import annotations

import imaplib
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.interop.programs import Failed, version_of
from tests.interop.stand import CUSTOMER, SUPPORT, Account, Stand
from tests.interop.table import WorkRow
from tests.system import until

STEPS = ("read", "answered", "in Sent once", "found", "draft", "moved", "deleted", "seen elsewhere")
_SECONDS = 180.0
"""Limit of each wait for the server and the customer: seconds."""


class Desk(Protocol):
    """A running mail program, set up for one person. Mails are named by their subjects."""

    def read(self, subject: str) -> str:
        """Open a mail in INBOX, and return the text that is shown."""

    def answer(self, subject: str, text: str) -> None:
        """Answer a mail in INBOX, and send the answer."""

    def search(self, text: str) -> list[str]:
        """Search the texts of INBOX. :return: the subjects of the mails that were found."""

    def save_draft(self, recipient: str, subject: str, text: str) -> None:
        """Write a mail, and keep it in Drafts."""

    def move(self, subject: str, folder: str) -> None:
        """Move a mail from INBOX to a folder."""

    def delete(self, subject: str) -> None:
        """Delete a mail in INBOX."""

    def unread(self) -> list[str]:
        """Return the subjects of the mails in INBOX that are shown as unread."""


@dataclass(frozen=True, slots=True)
class WorkProgram:
    """A mail program. open: starts it with the settings for IMAP and SMTP, in an empty folder."""

    name: str
    version: Callable[[], str]
    open: Callable[[Account, Account], AbstractContextManager[Desk]]
    errors: tuple[type[Exception], ...]  # what the desk raises if the program does not do what it should


@dataclass(frozen=True, slots=True)
class Question:
    """A mail of the customer to the team, for the reader. word: only its text has it."""

    subject: str
    word: str
    message_id: str


class _Mailbox:
    """The reader's mailbox, by a session of the test."""

    def __init__(self, session: imaplib.IMAP4) -> None:
        self._session = session

    def mails(self, folder: str, subject: str) -> list[tuple[str, bytes]]:
        """Return flags and octets of the mails of a folder that have the subject and are not deleted."""
        if self._session.select(folder, readonly=True)[0] != "OK":
            return []
        found = []
        for uid in self._session.uid("SEARCH", "NOT DELETED SUBJECT", f'"{subject}"')[1][0].split():
            [(head, mail), *rest] = self._session.uid("FETCH", uid.decode(), "(FLAGS BODY.PEEK[])")[1]
            flags = re.search(rb"FLAGS \(([^)]*)\)", head + b"".join(each for each in rest if isinstance(each, bytes)))
            found.append((flags[1].decode() if flags else "", mail))
        self._session.unselect()
        return found

    def count(self, folder: str, subject: str) -> int:
        return len(self.mails(folder, subject))

    def has_flag(self, folder: str, subject: str, flag: str) -> bool:
        return any(flag in flags.split() for flags, _ in self.mails(folder, subject))


def work(stand: Stand, program: WorkProgram) -> list[str]:
    """Let a program do every step. :return: the problem of each step; "": none."""
    folder = f"Orders{secrets.token_hex(3)}"
    session = stand.session()
    session.create(folder)
    session.subscribe(folder)
    mailbox = _Mailbox(session)
    asked, other, moved, deleted = _questions(stand, mailbox)
    draft = f"Offer {secrets.token_hex(4)}"
    outcomes: list[str] = []
    tried = _Tried((Failed, OSError, AssertionError, *program.errors), outcomes)
    try:
        with _desk(stand, program) as desk:
            tried(lambda: _read(desk, mailbox, asked))
            tried(lambda: _answer(stand, desk, mailbox, asked))
            tried(lambda: _once(mailbox, "Sent", asked.subject))
            tried(lambda: _same(desk.search(other.word), [other.subject]))
            tried(lambda: _draft(desk, mailbox, draft))
            tried(lambda: _move(desk, mailbox, moved, folder))
            tried(lambda: _delete(desk, mailbox, deleted))
        outcomes[2] = outcomes[2] or _outcome(tried.errors, lambda: _once(mailbox, "Sent", asked.subject))
        with _desk(stand, program) as second:
            tried(lambda: _seen_elsewhere(second.unread(), asked, other))
    except tried.errors as error:  # it does not start
        outcomes += [str(error)] * (len(STEPS) - len(outcomes))
    finally:
        session.logout()
    return outcomes


def work_row(stand: Stand, program: WorkProgram) -> WorkRow:
    """Test a program."""
    return WorkRow(program.name, program.version(), work(stand, program))


def command_version(*command: str) -> Callable[[], str]:
    """Return the version of a program by the command that prints it."""
    return lambda: version_of(command)


@contextmanager
def _desk(stand: Stand, program: WorkProgram) -> Iterator[Desk]:
    with tempfile.TemporaryDirectory(prefix="interop-") as name:
        folder = Path(name)
        accounts = stand.account("imap", "implicit", folder), stand.account("smtp", "implicit", folder)
        with program.open(*accounts) as desk:
            yield desk


@dataclass(frozen=True, slots=True)
class _Tried:
    errors: tuple[type[Exception], ...]
    outcomes: list[str]

    def __call__(self, step: Callable[[], None]) -> None:
        self.outcomes.append(_outcome(self.errors, step))


def _outcome(errors: tuple[type[Exception], ...], step: Callable[[], None]) -> str:
    try:
        step()
    except errors as error:
        return str(error) or repr(error)
    return ""


def _questions(stand: Stand, mailbox: _Mailbox) -> list[Question]:
    """Let the customer write four mails, and wait until they are in the reader's INBOX."""
    questions = []
    for topic in ("Order", "Invoice", "Address", "Advertisement"):
        token, word = secrets.token_hex(5), f"w{secrets.token_hex(6)}"
        question = Question(f"{topic} {token}", word, f"<{token}@customer.example>")
        lines = [
            f"From: Anna Customer <{CUSTOMER}>",
            f'To: "Alex" <{SUPPORT}>',
            f"Subject: {question.subject}",
            f"Message-ID: {question.message_id}",
            "Date: Thu, 26 Nov 2026 10:00:00 +0000",
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=utf-8",
            "Content-Transfer-Encoding: 8bit",
            "",
            f"Grüße, wo bleibt {word}?",
        ]
        stand.system.provider.put(SUPPORT, "".join(f"{line}\r\n" for line in lines).encode())
        questions.append(question)
    until(lambda: all(mailbox.count("INBOX", question.subject) for question in questions))
    return questions


def _read(desk: Desk, mailbox: _Mailbox, question: Question) -> None:
    shown = desk.read(question.subject)
    if f"Grüße, wo bleibt {question.word}?" not in shown:
        raise Failed(f"it shows {shown[:80]!r}")
    _wait("the mail is not marked as read", lambda: mailbox.has_flag("INBOX", question.subject, "\\Seen"))


def _answer(stand: Stand, desk: Desk, mailbox: _Mailbox, question: Question) -> None:
    text = f"It is on its way, {secrets.token_hex(6)}."
    desk.answer(question.subject, text)
    mails: list[bytes] = []

    def arrived() -> bool:
        mails[:] = [mail for mail in stand.system.provider.mail_of(CUSTOMER) if text.encode() in mail]
        return bool(mails)

    _wait("the customer has no answer", arrived)
    [mail] = mails
    head = mail.replace(b"\r\n", b"\n").partition(b"\n\n")[0].decode()
    sender = re.search(r"^From: (.*)$", head, re.M)
    if sender is None or SUPPORT not in sender[1]:
        raise Failed(f"the answer is from {sender and sender[1]}")
    if question.message_id not in head:
        raise Failed("the answer does not refer to the question")
    _wait("the question is not marked as answered", lambda: mailbox.has_flag("INBOX", question.subject, "\\Answered"))


def _once(mailbox: _Mailbox, folder: str, subject: str) -> None:
    found: list[int] = []

    def once() -> bool:
        found[:] = [mailbox.count(folder, subject)]
        return found == [1]

    _wait(lambda: f"the mail is {found[0]} times in {folder}", once)


def _draft(desk: Desk, mailbox: _Mailbox, subject: str) -> None:
    text = f"An offer, {secrets.token_hex(6)}."
    desk.save_draft(CUSTOMER, subject, text)
    _once(mailbox, "Drafts", subject)
    [(_, mail)] = mailbox.mails("Drafts", subject)  # not every program sets the flag \Draft
    if text.encode() not in mail:
        raise Failed("the draft has another text")


def _move(desk: Desk, mailbox: _Mailbox, question: Question, folder: str) -> None:
    desk.move(question.subject, folder)
    _once(mailbox, folder, question.subject)
    _wait("the mail is still in INBOX", lambda: not mailbox.count("INBOX", question.subject))


def _delete(desk: Desk, mailbox: _Mailbox, question: Question) -> None:
    desk.delete(question.subject)
    _once(mailbox, "Trash", question.subject)
    _wait("the mail is still in INBOX", lambda: not mailbox.count("INBOX", question.subject))


def _seen_elsewhere(unread: list[str], asked: Question, other: Question) -> None:
    if asked.subject in unread:
        raise Failed("the mail that was read is unread elsewhere")
    if other.subject not in unread:
        raise Failed("a mail that was not read is read elsewhere")


def _same(got: list[str], expected: list[str]) -> None:
    if got != expected:
        raise Failed(f"found {got}, expected {expected}")


def _wait(problem: str | Callable[[], str], done: Callable[[], bool]) -> None:
    try:
        until(done, _SECONDS)
    except AssertionError as error:
        raise Failed(problem if isinstance(problem, str) else problem()) from error
