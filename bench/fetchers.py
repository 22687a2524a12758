"""The fetchers that mailgroup is compared with: mpop with pipelining, and fetchmail with maildrop as its MDA.

Both run as the user ``mail``, read a whole maildrop by POP3, delete nothing, and deliver into a Maildir.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Literal

from bench import Wrong
from bench.baselines import PASSWORD
from bench.processes import Run, measured

Fetcher = Literal["mpop", "fetchmail"]
_LONGEST_SECONDS = 170.0


def fetch(tool: Fetcher, folder: Path, port: int, user: str, mails: int) -> Run:
    """Fetch and deliver a maildrop of ``mails`` mails.

    :param folder: is emptied first. :raises Wrong: mails are missing.
    """
    shutil.rmtree(folder, ignore_errors=True)
    maildir = folder / "Maildir"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    words = _mpop(folder, maildir, port, user) if tool == "mpop" else _fetchmail(folder, maildir, port, user)
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
        if (found := len(os.listdir(maildir / "new"))) != mails:
            raise Wrong(f"{tool} delivered {found} of {mails} mails: {(done.stderr or done.stdout).strip()[-300:]}")
        return Run(mails, seconds)

    return measured(work, partial(_used, tool))


def _used(tool: Fetcher) -> dict[str, float]:
    """Return the processor seconds of all ended child processes; fetchmail waits for maildrop, which is included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {{"mpop": "mpop", "fetchmail": "fetchmail, maildrop"}[tool]: ended.ru_utime + ended.ru_stime}


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


def _fetchmail(folder: Path, maildir: Path, port: int, user: str) -> list[str]:
    rule = _write(folder / "mailfilter", f'to "{maildir}"\n')
    settings = (
        f'poll 127.0.0.1 service {port} protocol pop3 user "{user}" password "{PASSWORD}" sslproto "" '
        f'is "alex" here keep fetchall mda "/usr/bin/maildrop {rule}"\n'
    )
    return ["fetchmail", "-f", _write(folder / "fetchmailrc", settings), "--silent", "--nodetach"]


def _write(file: Path, text: str) -> str:
    file.write_text(text, encoding="ascii")
    file.chmod(0o600)
    return str(file)
