"""Reads and changes a mailbox by IMAP with each command-line mail program."""

from __future__ import annotations

import imaplib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.interop import programs
from tests.interop.mails import Letter
from tests.interop.programs import maildir, mails_in, run, run_on_terminal
from tests.interop.stand import WAYS, Account, Tls, compared

Read = Callable[[Account], list[bytes]]
Change = Callable[[Account, imaplib.IMAP4, str, list[Letter]], str]
"""Stores the letters in the folder of this name, and changes there what the program can. The session, which is not the
program's, sees whether it is so. Returns the problem; "": there is none."""


@dataclass(frozen=True, slots=True)
class ImapProgram:
    """A mail program. reads: TLS modes; ``change`` uses the last of them."""

    name: str
    version: tuple[str, ...]
    read: Read | None = None  # fetches all mails of INBOX without deleting them
    change: Change | None = None
    reads: tuple[Tls, ...] = WAYS


def stored(session: imaplib.IMAP4, folder: str) -> dict[int, tuple[bytes, bytes]]:
    """Return flags and octets of each mail of a folder, by UID."""
    session.select(folder, readonly=True)
    found = {}
    for uid in session.uid("SEARCH", "ALL")[1][0].split():
        [(head, mail), *_] = session.uid("FETCH", uid.decode(), "(FLAGS BODY.PEEK[])")[1]
        found[int(uid)] = head, mail
    session.unselect()
    return found


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


def _add_new(box: Path, letters: Sequence[Letter]) -> None:
    """Put new mails into a Maildir."""
    for number, letter in enumerate(letters):
        (box / "new" / f"1.{number}.here").write_bytes(letter.raw.replace(b"\r\n", b"\n"))


def change_with_mbsync(account: Account, session: imaplib.IMAP4, folder: str, letters: list[Letter]) -> str:
    """New mails, flags and deletions in both directions."""
    one, two, three = letters
    session.append(folder, "(\\Flagged)", "", one.raw)
    box = _mbsync(account, folder)
    [file] = box.glob("[nc]*/*")
    _add_new(box, (two, three))
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


# ----------------------------------------------------------------------------------------------------------- mutt


def _mutt(program: str, account: Account, push: str, *lines: str) -> None:
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
    file.write_text("\n".join([*always, *lines, f"push '{push}'"]) + "\n")
    run_on_terminal([program, "-F", str(file)], account.folder)


def read_with_mutt(account: Account, program: str = "mutt") -> list[bytes]:
    box = maildir(account.folder / "box")
    copy = f"<tag-pattern>~A<enter><tag-prefix><copy-message><kill-line>{box}<enter><exit>"
    _mutt(program, account, copy)
    return mails_in(box)


def read_with_neomutt(account: Account) -> list[bytes]:
    return read_with_mutt(account, "neomutt")


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
    _add_new(box, (two, three))
    file.rename(box / "cur" / (file.name.partition(":2,")[0] + ":2,FS"))
    _offlineimap(account, folder)
    found = stored(session, folder)
    [flags] = [flags for flags, mail in found.values() if one.token.encode() in mail]
    if b"\\Seen" not in flags or b"\\Flagged" not in flags:
        return f"the flags of the Maildir are not on the server: {flags!r}"
    return compared(letters, [mail for _, mail in found.values()])


IMAP_PROGRAMS = (
    ImapProgram("curl", ("curl", "--version"), read_with_curl, change_with_curl),
    ImapProgram("fetchmail", ("fetchmail", "--version"), read_with_fetchmail),
    ImapProgram("getmail6", ("getmail", "--version"), read_with_getmail, reads=("none", "implicit")),
    ImapProgram("mbsync", ("mbsync", "--version"), read_with_mbsync, change_with_mbsync),
    ImapProgram("mutt", ("mutt", "-v"), read_with_mutt),
    ImapProgram("neomutt", ("neomutt", "-v"), read_with_neomutt),
    ImapProgram("offlineimap3", ("offlineimap", "--version"), read_with_offlineimap, change_with_offlineimap),
)
