"""The whole system with a provider's junk folder: who wants it gets junk there, everybody else in INBOX."""

from __future__ import annotations

import imaplib

from tests.company import local
from tests.e2e.test_manual_4_3 import letter
from tests.system import PASSWORD, System, until

SUPPORT = "support@company.com"
ALEX, JIM = "alex@local.com", "jim@local.com"


def count(session: imaplib.IMAP4, folder: str) -> int:
    return int(session.select(folder, readonly=True)[1][0] or b"0")


def test_junk_of_the_provider_is_junk_until_somebody_moves_it_there(system: System) -> None:
    # given a provider with a junk folder that is fetched, too; Alex, who wants it, and Jim
    entry = system.external_by_imap(SUPPORT, imap={"folders": ["INBOX", "Junk"]})
    with imaplib.IMAP4(system.provider.host, system.provider.imap_port) as provider:
        provider.login(SUPPORT, PASSWORD)
        provider.create("Junk")
        system.apply({"external_accounts": [entry], "local_accounts": [local("Alex", junk=True), local("Jim")]})
        alex = imaplib.IMAP4("127.0.0.1", system.settings.imap_port, timeout=60)
        alex.login(ALEX, PASSWORD)
        assert count(alex, "Junk") == 0
        # when Alex waits in Junk (IDLE), and a mail comes into the provider's
        alex.send(b"W1 IDLE\r\n")
        assert alex.readline().startswith(b"+")
        spam = letter(SUPPORT, text="Junk or not\n")
        provider.append("Junk", "", "", spam.as_bytes())
        # then Alex hears of it there, and Jim has it in INBOX
        while not (line := alex.readline()).endswith(b"EXISTS\r\n"):
            assert line.startswith(b"*"), line
        alex.send(b"DONE\r\n")
        while not (line := alex.readline()).startswith(b"W1"):
            assert line.startswith(b"*"), line
        assert count(alex, "INBOX") == 0
        assert until(lambda: [mail for mail in system.mails(JIM) if b"Junk or not" in mail])
        # when somebody moves it at the provider
        provider.select("Junk")
        provider.copy("1", "INBOX")
        provider.store("1", "+FLAGS", r"\Deleted")
        provider.expunge()
        # then it moves for Alex, too, and nobody has it twice
        until(lambda: count(alex, "INBOX") == 1)
        assert count(alex, "Junk") == 0
        assert len(system.mails(JIM)) == 1
        alex.logout()
