"""The fetchers that mailgroup is compared with: mpop with pipelining and fetchmail with maildrop as its MDA, by POP3;
fetchmail, getmail6 and mbsync by IMAP.

All run as the user ``mail``, read a whole mailbox, delete nothing, and deliver into a Maildir.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from bench import Wrong
from bench.baselines import PASSWORD
from bench.processes import Run, measured

Fetcher = Literal["mpop", "fetchmail", "fetchmail by IMAP", "getmail6", "mbsync"]
_LONGEST_SECONDS = 170.0


def fetch(tool: Fetcher, folder: Path, port: int, user: str, mails: int) -> Run:
    """Fetch and deliver a mailbox of ``mails`` mails.

    :param folder: is emptied first. :param port: of the protocol that the tool uses. :raises Wrong: mails are missing.
    """
    shutil.rmtree(folder, ignore_errors=True)
    maildir = folder / "Maildir"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    words = _WORDS[tool](folder, maildir, port, user)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, "mail", "mail")
    environment = {
        **os.environ, "HOME": str(folder), "FETCHMAILHOME": str(folder), "USER": "mail", "LOGNAME": "mail"
    }  # fmt: skip

    def work() -> Run:
        began = time.perf_counter()
        done = subprocess.run(
            ["setpriv", "--reuid=mail", "--regid=mail", "--clear-groups", *words],
            cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        if (found := sum(len(os.listdir(maildir / name)) for name in ("new", "cur"))) != mails:
            raise Wrong(f"{tool} delivered {found} of {mails} mails: {(done.stderr or done.stdout).strip()[-300:]}")
        return Run(mails, seconds)

    return measured(work, partial(_used, tool))


def _used(tool: Fetcher) -> dict[str, float]:
    """Return the processor seconds of all ended child processes; fetchmail waits for maildrop, which is included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    name = "fetchmail, maildrop" if tool.startswith("fetchmail") else tool
    return {name: ended.ru_utime + ended.ru_stime}


def _mpop(folder: Path, maildir: Path, port: int, user: str) -> list[str]:
    settings = f"""\
account bench
host 127.0.0.1
port {port}
user {user}
password {PASSWORD}
auth user
tls off
pipelining on
keep on
uidls_file {folder}/uidls
only_new off
delivery maildir {maildir}
account default : bench
"""
    return ["mpop", "-C", _write(folder / "mpoprc", settings), "-q"]


def _fetchmail(folder: Path, maildir: Path, port: int, user: str, protocol: str = "pop3") -> list[str]:
    rule = _write(folder / "mailfilter", f'to "{maildir}"\n')
    settings = (
        f'poll 127.0.0.1 service {port} protocol {protocol} user "{user}" password "{PASSWORD}" sslproto "" '
        f'is "alex" here keep fetchall mda "/usr/bin/maildrop {rule}"\n'
    )
    return ["fetchmail", "-f", _write(folder / "fetchmailrc", settings), "--silent", "--nodetach"]


def _getmail(folder: Path, maildir: Path, port: int, user: str) -> list[str]:
    settings = f"""\
[retriever]
type = SimpleIMAPRetriever
server = 127.0.0.1
port = {port}
username = {user}
password = {PASSWORD}
[destination]
type = Maildir
path = {maildir}/
[options]
verbose = 0
read_all = true
delete = false
"""
    return ["getmail", f"--getmaildir={folder}", f"--rcfile={_write(folder / 'getmailrc', settings)}"]


def _mbsync(folder: Path, maildir: Path, port: int, user: str) -> list[str]:
    settings = f"""\
IMAPStore far
Host 127.0.0.1
Port {port}
User {user}
Pass {PASSWORD}
SSLType None
AuthMechs LOGIN

MaildirStore near
Inbox {maildir}

Channel bench
Far :far:
Near :near:
Sync PullNew
SyncState {folder}/state-
"""
    return ["mbsync", "-q", "-c", _write(folder / "mbsyncrc", settings), "bench"]


_WORDS: Mapping[Fetcher, Callable[[Path, Path, int, str], list[str]]] = {
    "mpop": _mpop,
    "fetchmail": _fetchmail,
    "fetchmail by IMAP": partial(_fetchmail, protocol="imap"),
    "getmail6": _getmail,
    "mbsync": _mbsync,
}
"""The command that each tool is run with, by folder, Maildir, port and user."""


def _write(file: Path, text: str) -> str:
    file.write_text(text, encoding="ascii")
    file.chmod(0o600)
    return str(file)
