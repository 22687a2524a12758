"""Reads and changes a mailbox by IMAP with each command-line mail program."""

from __future__ import annotations

import imaplib
import re
import shlex
import sys
from collections import Counter

from tests.interop import imap_sync, programs
from tests.interop.imap_program import ImapProgram, stored
from tests.interop.mails import Letter
from tests.interop.programs import maildir, mails_in, run, run_on_terminal
from tests.interop.stand import Account, compared

# --------------------------------------------------------------------------------------------------------- curl


def _curl(account: Account, path: str, *words: str) -> bytes:
    url = f"imap{'s' if account.tls == 'implicit' else ''}://{account.host}:{account.port}/{path}"
    tls = [] if account.tls == "none" else ["--ssl-reqd", "--cacert", str(account.ca_file)]
    return run(["curl", "-sS", *tls, "-u", f"{account.user}:{account.password}", *words, url], account.folder)


def read_with_curl(account: Account) -> list[bytes]:
    found = _curl(account, "INBOX", "-X", "UID SEARCH ALL").split()[2:]
    return [_curl(account, f"INBOX/;UID={uid.decode()}") for uid in found]


def change_with_curl(account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter]) -> str:
    for letter in letters:
        file = account.folder / letter.token
        file.write_bytes(letter.raw)
        _curl(account, folder, "-T", str(file))
    return compared(letters, [mail for _, mail in stored(session, folder).values()])


# ------------------------------------------------------------------------------------------- fetchmail, getmail6


def read_with_fetchmail(account: Account) -> list[bytes]:
    return programs.read_with_fetchmail(account, "imap")


def read_with_getmail(account: Account) -> list[bytes]:
    return programs.read_with_getmail(account, "SimpleIMAP", 'mailboxes = ("INBOX",)')


# ----------------------------------------------------------------------------------------------------------- mutt


def _mutt(program: str, account: Account, push: str, *words: str) -> None:
    tls = [f'set certificate_file="{account.ca_file}"', "set ssl_force_tls=yes"]
    scheme = "imaps" if account.tls == "implicit" else "imap"
    url = f"{scheme}://{account.host}:{account.port}/"
    clear = ["set ssl_starttls=no ssl_force_tls=no"]
    always = [
        f'set folder="{url}" spoolfile="{url}INBOX" imap_user="{account.user}" imap_pass="{account.password}"',
        "set mbox_type=Maildir move=no confirmappend=no confirmcreate=no wait_key=no mark_old=no delete=yes",
        f"set header_cache='' imap_check_subscribed=no timeout=1 from=\"{account.user}\"",
        *(clear if account.tls == "none" else tls),
    ]
    file = account.folder / "muttrc"
    file.write_text("\n".join([*always, f"push '{push}'"]) + "\n")
    run_on_terminal([program, "-F", str(file), *words], account.folder)


def read_with_mutt(account: Account, program: str = "mutt") -> list[bytes]:
    box = maildir(account.folder / "box")
    copy = f"<tag-pattern>~A<enter><tag-prefix><copy-message><kill-line>{box}<enter><exit>"
    _mutt(program, account, copy)
    return mails_in(box)


def read_with_neomutt(account: Account) -> list[bytes]:
    return read_with_mutt(account, "neomutt")


def change_with_mutt(
    account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter], program: str = "mutt"
) -> str:
    """New mails, a flag and a deletion."""
    one, two, three = letters
    box = maildir(account.folder / "outbox")
    imap_sync.add_new(box, letters)
    copy = f"<tag-pattern>~A<enter><tag-prefix><copy-message><kill-line>={folder}<enter><exit>"
    _mutt(program, account, copy, "-f", str(box))
    if why := compared(letters, [mail for _, mail in stored(session, folder).values()]):
        return why
    marks = f"<delete-pattern>~s {one.token}<enter><limit>~s {two.token}<enter><flag-message><sync-mailbox><quit>"
    _mutt(program, account, marks, "-f", f"={folder}")
    left = stored(session, folder).values()
    flags = [head for head, mail in left if two.token.encode() in mail]
    if len(flags) != 1 or b"\\Flagged" not in flags[0]:
        return f"the mark is not on the server: {flags}"
    return compared([two, three], [mail for _, mail in left])


def change_with_neomutt(account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter]) -> str:
    return change_with_mutt(account, session, folder, letters, "neomutt")


# ----------------------------------------------------------------------------------------------------- IMAPClient


_KNOWN = Counter(
    {
        "test_status": 1,  # it wants RECENT, which is always 0 here: RFC 9051 has abolished the flag
        "test_subscriptions": 1,  # a new mailbox is subscribed here, of which RFC 3501 says nothing
        "test_fetch": 2,  # assertSequenceEqual of objects that are no sequences: it fails whatever the server says
        "test_move": 1,  # without UIDs; Python's imaplib does not know MOVE
    }
)
"""The tests that fail with a server that does what it should, and how many times."""


def pass_livetest(account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter]) -> str:
    """Run the tests for servers that IMAPClient contains; it logs in with STARTTLS and in clear, too.

    Its TestSocketTimeout is about the client alone.
    """
    file = account.folder / "livetest.ini"
    file.write_text(
        f"""\
[DEFAULT]
host = {account.host}
port = {account.port}
username = {account.user}
password = {account.password}
ssl_ca_file = {account.ca_file}
timeout = 60
[starttls]
port = {account.clear_ports[0]}
ssl = false
starttls = true
[clear]
port = {account.clear_ports[0]}
ssl = false
[another password]
password = wrong
expect_failure = AUTHENTICATIONFAILED
"""
    )
    suites = ("TestGeneral", "TestWithUIDs", "TestWithoutUIDs")
    command = [sys.executable, "-m", "imapclient.livetest", str(file), *suites]
    trust = {"SSL_CERT_FILE": str(account.ca_file)}
    said = run(["sh", "-c", f"{shlex.join(command)} 2>&1; true"], account.folder, b"", 600, trust).decode()
    failed = Counter(re.findall(r"^(?:FAIL|ERROR): (\w+)", said, re.M)) - _KNOWN
    if "Ran " not in said:
        return f"it did not run: {said[-300:]}"
    return ", ".join(sorted(failed))


IMAP_PROGRAMS = (
    ImapProgram("curl", ("curl", "--version"), read_with_curl, change_with_curl),
    ImapProgram("fetchmail", ("fetchmail", "--version"), read_with_fetchmail),
    ImapProgram("getmail6", ("getmail", "--version"), read_with_getmail, reads=("none", "implicit")),
    ImapProgram("mbsync", ("mbsync", "--version"), imap_sync.read_with_mbsync, imap_sync.change_with_mbsync),
    ImapProgram(
        "IMAPClient", (sys.executable, "-c", "print(__import__('imapclient').__version__)"), change=pass_livetest
    ),
    ImapProgram("imapsync", ("imapsync", "--version"), change=imap_sync.change_with_imapsync, in_debian=False),
    ImapProgram("mutt", ("mutt", "-v"), read_with_mutt, change_with_mutt),
    ImapProgram("neomutt", ("neomutt", "-v"), read_with_neomutt, change_with_neomutt),
    ImapProgram(
        "offlineimap3",
        ("offlineimap", "--version"),
        imap_sync.read_with_offlineimap,
        imap_sync.change_with_offlineimap,
    ),
)
