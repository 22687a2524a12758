"""The manual's section 4.3 with Alex on IMAP and Jim on POP3."""

from __future__ import annotations

import imaplib
import poplib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default

import pytest

from tests.console import Browser
from tests.e2e.test_manual_4_3 import CUSTOMER, letter
from tests.system import PASSWORD, System, until

ALEX, JIM = "alex@local.com", "jim@local.com"
SUPPORT = "support@company.com"


@contextmanager
def reading(system: System, address: str, folder: str = "INBOX") -> Iterator[imaplib.IMAP4]:
    """A session by IMAP that has selected a folder."""
    with imaplib.IMAP4("127.0.0.1", system.settings.imap_port, timeout=600) as session:
        session.login(address, PASSWORD)
        assert session.select(folder)[0] == "OK"
        yield session


def found(session: imaplib.IMAP4, message: EmailMessage) -> list[bytes]:
    """The UIDs of the mails in the selected folder with the Message-ID of this one."""
    session.noop()
    kind, answer = session.uid("SEARCH", "HEADER", "Message-ID", f'"{message["Message-ID"]}"')
    assert kind == "OK"
    return list(answer[0].split())


def flags_of(session: imaplib.IMAP4, uid: bytes) -> bytes:
    kind, [answer] = session.uid("FETCH", uid.decode(), "(FLAGS)")
    assert kind == "OK" and isinstance(answer, bytes)
    return answer


def by_pop3(system: System, address: str, message: EmailMessage) -> list[bytes]:
    """The mails with the Message-ID of this one, as POP3 shows them."""
    return [mail for mail in system.mails(address) if str(message["Message-ID"]).encode() in mail]


def test_alex_reads_by_imap_and_jim_by_pop3(system: System) -> None:
    system.apply(system.company())
    system.provider.add_mailbox(CUSTOMER, PASSWORD)
    with reading(system, ALEX) as inbox, reading(system, ALEX, "Sent") as sent:
        # a customer writes to support@: both get it, by either protocol
        question = letter(SUPPORT, text="The printer smokes.\n")
        system.provider.put(SUPPORT, question.as_bytes())
        [uid] = until(lambda: found(inbox, question))
        until(lambda: by_pop3(system, JIM, question))
        assert len(by_pop3(system, ALEX, question)) == 1  # POP3 shows the same INBOX
        # Alex answers, and sees the mail in Sent, once and as read
        reply = letter(f"Anna <{CUSTOMER}>", str(question["Message-ID"]), "Alex <alex@local.com>", "Pull the plug.\n")
        system.submit(ALEX, [CUSTOMER], reply)
        [filed] = found(sent, reply)
        assert rb"\Seen" in flags_of(sent, filed)
        inbox.uid("STORE", uid.decode(), "+FLAGS", r"(\Answered)")
        # the copy that the mail client stores takes its place
        assert sent.append("Sent", r"(\Seen $Own)", "", reply.as_bytes().replace(b"\n", b"\r\n"))[0] == "OK"
        [stored] = found(sent, reply)
        assert stored != filed and b"$Own" in flags_of(sent, stored)
        # the customer's answer to "Alex" goes to Alex alone
        [raw] = until(lambda: [m for m in system.provider.mail_of(CUSTOMER) if str(reply["Message-ID"]).encode() in m])
        at_anna = BytesParser(policy=default).parsebytes(raw)
        answer = letter(str(at_anna["From"]), str(reply["Message-ID"]), text="It is quiet now.\n")
        system.provider.put(SUPPORT, answer.as_bytes())
        until(lambda: found(inbox, answer))
        until(lambda: system.json("status")["books"][SUPPORT]["in_flight"] == 0)
        assert by_pop3(system, JIM, answer) == [] and len(by_pop3(system, ALEX, answer)) == 1
        # what Jim deletes stays with Alex
        session = poplib.POP3("127.0.0.1", system.settings.pop3_port, timeout=60)
        session.user(JIM)
        session.pass_(PASSWORD)
        for number in range(session.stat()[0]):
            session.dele(number + 1)
        session.quit()
        assert system.mails(JIM) == []
        [uid] = found(inbox, question)
        assert rb"\Answered" in flags_of(inbox, uid)  # POP3 changes no flag
        # what Alex moves into Archive is not in POP3 any more, and not delivered again
        assert inbox.uid("MOVE", uid.decode(), "Archive")[0] == "OK"
        assert by_pop3(system, ALEX, question) == []
        with reading(system, ALEX, "Archive") as archive:
            assert len(found(archive, question)) == 1


def test_what_the_console_changes_is_seen_in_idle(system: System) -> None:
    system.apply(system.company())
    message = letter(f'"Alex" <{SUPPORT}>', text="Please come back.\n")
    system.provider.put(SUPPORT, message.as_bytes())
    with reading(system, ALEX) as session:
        [uid] = until(lambda: found(session, message))
        session.uid("STORE", uid.decode(), "+FLAGS", r"(\Deleted)")
        session.expunge()
        [deleted] = system.json("undelete", ALEX)
        console = Browser(system.instance.urls()["console"])
        console.sign_in(password=system.settings.admin_password or "")
        session.send(b"idle IDLE\r\n")
        assert session.readline().startswith(b"+ ")
        # when it is brought back by the console, then the session hears of it
        console.post(f"/local/{ALEX}/deleted", {"id": str(deleted["id"])})
        assert re.fullmatch(rb"\* \d+ EXISTS\r\n", session.readline())
        assert session.readline() == b"* 0 RECENT\r\n"
        # and when a colleague's mail is given away, too
        session.send(b"DONE\r\n")
        assert session.readline().startswith(b"idle OK")
        session.send(b"again IDLE\r\n")
        assert session.readline().startswith(b"+ ")
        console.agree(f"/mail/{deleted['id']}", {"do": "give", "to": JIM, "away": ALEX})
        assert re.fullmatch(rb"\* \d+ EXPUNGE\r\n", session.readline())
        session.send(b"DONE\r\n")
        assert session.readline().startswith(b"again OK")
        until(lambda: by_pop3(system, JIM, message))


@pytest.mark.parametrize("folder", ["Drafts", "Trash"])
def test_pop3_shows_nothing_of_other_folders(system: System, folder: str) -> None:
    system.apply(system.company())
    draft = letter(SUPPORT, author="Alex <alex@local.com>", text=f"In {folder}\n")
    with reading(system, ALEX, folder) as session:
        assert session.append(folder, r"(\Draft)", "", draft.as_bytes().replace(b"\n", b"\r\n"))[0] == "OK"
        assert len(found(session, draft)) == 1
    assert by_pop3(system, ALEX, draft) == []
