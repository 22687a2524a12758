"""Synchronises folders by IMAP with each program that does so."""

from __future__ import annotations

import imaplib
from collections.abc import Sequence
from pathlib import Path

from tests.interop.imap_program import stored
from tests.interop.mails import Letter
from tests.interop.programs import maildir, mails_in, run
from tests.interop.stand import Account, compared

_DATE = '"25-Nov-2026 08:09:10 +0000"'


# --------------------------------------------------------------------------------------------------------- mbsync


def _mbsync(account: Account, folder: str) -> Path:
    """Synchronise a folder with a Maildir both ways, and return the Maildir."""
    tls = {"none": "None", "starttls": "STARTTLS", "implicit": "IMAPS"}[account.tls]
    box = account.folder / "boxes" / folder
    box.parent.mkdir(exist_ok=True)
    if not box.exists():
        maildir(box)
    (account.folder / "mbsyncrc").write_text(
        f"""\
IMAPAccount a
Host {account.host}
Port {account.port}
User {account.user}
Pass "{account.password}"
SSLType {tls}
CertificateFile {account.ca_file}
AuthMechs *

IMAPStore far
Account a

MaildirStore near
Path {account.folder}/boxes/
Inbox {account.folder}/boxes/INBOX
SubFolders Verbatim

Channel c
Far :far:
Near :near:
Patterns {folder}
Create Near
Expunge Both
SyncState *
CopyArrivalDate yes
"""
    )
    run(["mbsync", "-c", str(account.folder / "mbsyncrc"), "c"], account.folder)
    return box


def read_with_mbsync(account: Account) -> list[bytes]:
    return mails_in(_mbsync(account, "INBOX"))


def add_new(box: Path, letters: Sequence[Letter]) -> None:
    """Put new mails into a Maildir."""
    for number, letter in enumerate(letters):
        (box / "new" / f"1.{number}.here").write_bytes(letter.raw.replace(b"\r\n", b"\n"))


def change_with_mbsync(account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter]) -> str:
    """New mails, flags and deletions in both directions."""
    one, two, three = letters
    session.append(folder, "(\\Flagged)", "", one.raw)
    box = _mbsync(account, folder)
    [file] = box.glob("[nc]*/*")
    add_new(box, (two, three))
    file.rename(box / "cur" / (file.name.partition(":2,")[0] + ":2,FRS"))
    _mbsync(account, folder)
    found = stored(session, folder)
    # mbsync adds a field of its own to what it stores; other fields may be between
    if why := compared(letters, [mail for _, mail in found.values()]):
        return why
    uids = {
        letter.token: uid for uid, (_, mail) in found.items() for letter in letters if letter.token.encode() in mail
    }
    flags = found[uids[one.token]][0]
    if not all(flag in flags for flag in (b"\\Seen", b"\\Flagged", b"\\Answered")):
        return f"the flags of the Maildir are not on the server: {flags!r}"
    # a deletion here and one there
    session.select(folder)
    session.uid("STORE", str(uids[two.token]), "+FLAGS", "(\\Deleted)")
    session.expunge()
    session.unselect()
    [file] = [file for file in box.glob("cur/*") if ":2,FRS" in file.name]
    file.rename(file.with_name(file.name + "T"))
    _mbsync(account, folder)
    left = mails_in(box), [mail for _, mail in stored(session, folder).values()]
    return "; ".join(why for mails in left if (why := compared([three], mails)))


# -------------------------------------------------------------------------------------------------- offlineimap3


def _offlineimap(account: Account, folder: str) -> Path:
    """Synchronise a folder with a Maildir both ways, and return the Maildir."""
    tls = {"none": "ssl = no\nstarttls = no", "starttls": "ssl = no\nstarttls = yes", "implicit": "ssl = yes"}
    trust = "" if account.tls == "none" else f"sslcacertfile = {account.ca_file}"
    (account.folder / "offlineimaprc").write_text(
        f"""\
[general]
accounts = a
metadata = {account.folder}/state
ui = quiet
[Account a]
localrepository = near
remoterepository = far
[Repository near]
type = Maildir
localfolders = {account.folder}/boxes
[Repository far]
type = IMAP
remotehost = {account.host}
remoteport = {account.port}
remoteuser = {account.user}
remotepass = {account.password}
auth_mechanisms = PLAIN, LOGIN
{tls[account.tls]}
{trust}
folderfilter = lambda name: name == {folder!r}
"""
    )
    run(["offlineimap", "-o", "-c", str(account.folder / "offlineimaprc")], account.folder)
    return account.folder / "boxes" / folder


def read_with_offlineimap(account: Account) -> list[bytes]:
    return mails_in(_offlineimap(account, "INBOX"))


def change_with_offlineimap(account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter]) -> str:
    """New mails in both directions, and a flag from the Maildir."""
    one, two, three = letters
    session.append(folder, "", "", one.raw)
    box = _offlineimap(account, folder)
    [file] = box.glob("[nc]*/*")
    add_new(box, (two, three))
    file.rename(box / "cur" / (file.name.partition(":2,")[0] + ":2,FS"))
    _offlineimap(account, folder)
    found = stored(session, folder)
    [flags] = [flags for flags, mail in found.values() if one.token.encode() in mail]
    if b"\\Seen" not in flags or b"\\Flagged" not in flags:
        return f"the flags of the Maildir are not on the server: {flags!r}"
    return compared(letters, [mail for _, mail in found.values()])


# ------------------------------------------------------------------------------------------------------ imapsync


def change_with_imapsync(account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter]) -> str:
    """Copy mails, flags and dates from another folder; a second time nothing is copied."""
    source = f"{folder}Source"
    session.create(source)
    for letter in letters:
        session.append(source, "(\\Flagged \\Seen)", _DATE, letter.raw)
    words = ["imapsync", "--nolog", "--nofoldersizes", "--no-modulesversion", "--noreleasecheck", "--automap"]
    for side in "12":
        words += [f"--host{side}", account.host, f"--port{side}", str(account.port)]
        words += [f"--user{side}", account.user, f"--password{side}", account.password, f"--ssl{side}"]
        words += [f"--sslargs{side}", f"SSL_ca_file={account.ca_file}", f"--sslargs{side}", "SSL_verify_mode=1"]
    words += ["--folder", source, "--f1f2", f"{source}={folder}"]
    run(words, account.folder, seconds=120)
    once = stored(session, folder)
    run(words, account.folder, seconds=120)
    if stored(session, folder) != once:
        return "the second run changed the folder"
    for head, _ in once.values():
        if b"\\Flagged" not in head or b"\\Seen" not in head:
            return f"the flags were not copied: {head!r}"
    session.select(folder, readonly=True)
    dates = b" ".join(each for each in session.fetch("1:*", "INTERNALDATE")[1] if isinstance(each, bytes))
    session.unselect()
    if dates.count(_DATE.strip('"').encode()) != len(letters):
        return f"the dates were not copied: {dates!r}"
    return compared(letters, [mail for _, mail in once.values()])
