"""Reads a mailbox and sends mails with each command-line mail program.

Each program checks the server's certificate against the given file.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import tempfile
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from tests.interop.mails import Letter
from tests.interop.stand import WAYS, Account, Tls

SECONDS = 180.0
"""Limit of a program: seconds; none takes 20 on an idle machine."""

Read = Callable[[Account], list[bytes]]
Send = Callable[[Account, list[Letter]], None]


@dataclass(frozen=True, slots=True)
class Client:
    """A mail client."""

    name: str
    version: tuple[str, ...]  # the command that prints the version
    read: Read | None = None  # fetches all mails without deleting them, as the client stores them; None: cannot
    send: Send | None = None  # sends letters, each to all of its recipients; None: cannot
    composes: bool = False  # the client writes the mail itself, from the letter's text and attachment
    reads: tuple[Tls, ...] = WAYS  # TLS modes for POP3
    sends: tuple[Tls, ...] = WAYS  # TLS modes for SMTP


class Failed(Exception):
    """A program failed or did not end. The text is its output."""


def run(
    command: Sequence[str],
    folder: Path,
    stdin: bytes = b"",
    seconds: float = SECONDS,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Run a command and return its output. :raises Failed: it ends with an error, or takes too long."""
    environment = _environment(folder) | dict(variables)
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, input=stdin, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"still runs after {seconds:g} s: {_last_lines(error.stderr or error.stdout or b'')}") from error
    if done.returncode:
        raise Failed(f"status {done.returncode}: {_last_lines(done.stderr or done.stdout)}")
    return done.stdout


def version_of(command: Sequence[str]) -> str:
    """Return the first number with dots, or date, in the output of a version command; "?" if there is none."""
    with tempfile.TemporaryDirectory(prefix="interop-") as folder:
        found = re.search(r"\d+\.[\w.]*\d|\d{8}", run(command, Path(folder)).decode())
    return found.group() if found else "?"


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", "TERM": "xterm"}


def run_on_terminal(
    command: Sequence[str],
    folder: Path,
    seconds: float = SECONDS,
    variables: Mapping[str, str] = MappingProxyType({}),
    typed: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Run a command on a pseudo-terminal. :raises Failed: as ``run``.

    :param typed: keys, each after a pattern of what the program shows before.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # a new terminal has no lines, which mutt does not accept
    shown = bytearray()

    def watch() -> None:
        left, seen = list(typed), 0
        with suppress(OSError):  # reading fails when the last program closes the terminal
            while data := os.read(ours, 65536):
                shown.extend(data)
                while left and (at := re.compile(left[0][0]).search(shown, seen)):
                    seen = at.end()
                    os.write(ours, left.pop(0)[1])

    watcher = threading.Thread(target=watch, daemon=True)
    program = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(folder) | dict(variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    watcher.start()
    try:
        status = program.wait(seconds)
    except subprocess.TimeoutExpired as error:
        program.kill()
        program.wait()
        raise Failed(f"still runs after {seconds:g} s: {_last_lines(bytes(shown))}") from error
    finally:
        watcher.join(5)
        os.close(ours)
    if status:
        raise Failed(f"status {status}: {_last_lines(bytes(shown))}")


def _last_lines(output: bytes) -> str:
    return " | ".join(output.decode("utf-8", "replace").split("\n")[-4:])[-400:].strip(" |")


def maildir(path: Path) -> Path:
    """Create an empty Maildir and return its path."""
    for name in ("tmp", "new", "cur"):
        (path / name).mkdir(parents=True)
    return path


def mails_in(path: Path) -> list[bytes]:
    """Return the mails of a Maildir."""
    return [file.read_bytes() for name in ("new", "cur") for file in sorted((path / name).glob("*"))]


# --------------------------------------------------------------------------------------------------------- curl


def _curl(account: Account, scheme: str, *words: str) -> bytes:
    url = f"{scheme}{'s' if account.tls == 'implicit' else ''}://{account.host}:{account.port}"
    tls = [] if account.tls == "none" else ["--ssl-reqd", "--cacert", str(account.ca_file)]
    common = ["curl", "-sS", *tls, "-u", f"{account.user}:{account.password}"]
    return run([*common, *words[1:], url + words[0]], account.folder)


def read_with_curl(account: Account) -> list[bytes]:
    numbers = [line.split()[0] for line in _curl(account, "pop3", "/").decode().splitlines()]
    return [_curl(account, "pop3", f"/{number}") for number in numbers]


def send_with_curl(account: Account, letters: list[Letter]) -> None:
    for letter in letters:
        file = account.folder / letter.token
        file.write_bytes(letter.raw)
        people = [word for recipient in letter.recipients for word in ("--mail-rcpt", recipient)]
        _curl(account, "smtp", "", "--mail-from", letter.author, *people, "-T", str(file))


# ---------------------------------------------------------------------------------------------------- fetchmail


def delivery(account: Account) -> tuple[Path, Path]:
    """Return a program that writes its standard input to a new file, and the folder of these files."""
    box = account.folder / "mails"
    box.mkdir()
    deliver = account.folder / "deliver"
    deliver.write_text(f'#!/bin/sh\nexec cat >"$(mktemp {shlex.quote(str(box))}/XXXXXXXX)"\n')
    deliver.chmod(0o755)
    return deliver, box


def read_with_fetchmail(account: Account, protocol: str = "pop3") -> list[bytes]:
    """:param protocol: as in fetchmailrc."""
    deliver, box = delivery(account)
    tls = {
        "none": "sslproto ''",
        "starttls": f"sslproto 'TLS1.2+' sslcertck sslcertfile {account.ca_file}",
        "implicit": f"ssl sslcertck sslcertfile {account.ca_file}",
    }[account.tls]
    configuration = account.folder / "fetchmailrc"
    configuration.write_text(
        f"poll {account.host} protocol {protocol} service {account.port} {'uidl' if protocol == 'pop3' else ''}\n"
        f"  user '{account.user}' password '{account.password}' mda '{deliver}' keep fetchall {tls}\n"
    )
    configuration.chmod(0o600)
    run(["fetchmail", "-f", str(configuration), "-i", str(account.folder / "ids"), "--invisible"], account.folder)
    return [file.read_bytes() for file in sorted(box.iterdir())]


# -------------------------------------------------------------------------------------------------------- getmail


def read_with_getmail(account: Account, retriever: str = "SimplePOP3", more: str = "") -> list[bytes]:
    """:param retriever: its class in getmailrc, without SSLRetriever. :param more: lines of its section."""
    deliver, box = delivery(account)  # getmail refuses to deliver into a Maildir as root
    tls = f"ca_certs = {account.ca_file}" if account.tls == "implicit" else ""
    (account.folder / "getmailrc").write_text(
        f"""\
[retriever]
type = {retriever}{"SSL" if account.tls == "implicit" else ""}Retriever
server = {account.host}
port = {account.port}
username = {account.user}
password = {account.password}
{tls}
{more}
[destination]
type = MDA_external
path = {deliver}
allow_root_commands = true
[options]
read_all = true
delete = false
"""
    )
    run(["getmail", "--getmaildir", str(account.folder), "--rcfile", "getmailrc"], account.folder)
    return [file.read_bytes() for file in sorted(box.iterdir())]


# ----------------------------------------------------------------------------------------------- mpop and msmtp


def _marlam(account: Account, *more: str) -> Path:
    """Write the configuration file of mpop or msmtp, which share a format, and return its path."""
    tls = {"none": ["tls off"], "starttls": ["tls on", "tls_starttls on"], "implicit": ["tls on", "tls_starttls off"]}
    trust = [] if account.tls == "none" else [f"tls_trust_file {account.ca_file}"]
    lines = [f"host {account.host}", f"port {account.port}", f"user {account.user}", f"password {account.password}"]
    file = account.folder / "configuration"
    file.write_text("\n".join(["account default", *lines, *tls[account.tls], *trust, *more]) + "\n")
    file.chmod(0o600)
    return file


def read_with_mpop(account: Account) -> list[bytes]:
    box = maildir(account.folder / "box")
    file = _marlam(account, "auth plain", f"delivery maildir {box}", f"uidls_file {account.folder}/uidls", "keep on")
    run(["mpop", f"--file={file}"], account.folder)
    return mails_in(box)


def send_with_msmtp(account: Account, letters: list[Letter]) -> None:
    file = _marlam(account, "auth plain", "allow_from_override off", f"from {account.user}")
    for letter in letters:
        run(["msmtp", f"--file={file}", "--", *letter.recipients], account.folder, letter.raw.replace(b"\r\n", b"\n"))


# --------------------------------------------------------------------------------------------------------- swaks


def send_with_swaks(account: Account, letters: list[Letter]) -> None:
    tls = {"none": [], "starttls": ["--tls"], "implicit": ["--tls-on-connect"]}[account.tls]
    trust = [] if account.tls == "none" else ["--tls-verify", "--tls-ca-path", str(account.ca_file)]
    for letter in letters:
        file = account.folder / letter.token
        file.write_bytes(letter.raw.replace(b"\r\n", b"\n") + b".\n")  # swaks removes the final dot and adds its own
        run(
            [
                *("swaks", "--server", account.host, "--port", str(account.port), *tls, *trust),
                *("--auth", "PLAIN", "--auth-user", account.user, "--auth-password", account.password),
                *("--from", letter.author, "--to", ",".join(letter.recipients), "--data", f"@{file}", "--hide-all"),
            ],
            account.folder,
        )


# ---------------------------------------------------------------------------------------------------------- mutt


def _mutt(account: Account, *lines: str) -> str:
    tls = [f'set certificate_file="{account.ca_file}"', "set ssl_force_tls=yes"]
    clear = ["set ssl_starttls=no ssl_force_tls=no"]
    file = account.folder / "muttrc"
    always = [f'set from="{account.user}"', "set use_from=yes", "set header_cache=''", f'set folder="{account.folder}"']
    file.write_text("\n".join([*always, *(clear if account.tls == "none" else tls), *lines]) + "\n")
    return str(file)


def read_with_mutt(account: Account) -> list[bytes]:
    box = maildir(account.folder / "box")
    scheme = "pops" if account.tls == "implicit" else "pop"
    file = _mutt(
        account,
        f'set pop_host="{scheme}://{account.host}:{account.port}"',
        f'set pop_user="{account.user}" pop_pass="{account.password}" pop_delete=no pop_last=no',
        f'set mbox_type=Maildir spoolfile="{box}" move=no confirmappend=no wait_key=no mark_old=no',
        "push '<fetch-mail><quit>'",
    )
    run_on_terminal(["mutt", "-F", file], account.folder)
    return mails_in(box)


def send_with_mutt(account: Account, letters: list[Letter]) -> None:
    scheme = "smtps" if account.tls == "implicit" else "smtp"
    file = _mutt(
        account,
        f'set smtp_url="{scheme}://{account.user}@{account.host}:{account.port}" smtp_pass="{account.password}"',
        'set copy=no use_envelope_from=yes smtp_authenticators="plain" hostname="interop.example"',
    )
    for letter in letters:
        attached = _attachment(account, letter)
        words = ["-s", f"{letter.kind} {letter.token}", *(["-a", attached] if attached else []), "--"]
        run(["mutt", "-F", file, *words, *letter.recipients], account.folder, letter.text.encode())


# -------------------------------------------------------------------------------------------------------- s-nail


def _s_nail(account: Account, *words: str) -> list[str]:
    options = ["v15-compat=yes", f"from={account.user}", "tls-verify=strict", "tls-ca-no-defaults"]
    options += [f"tls-ca-file={account.ca_file}", "hostname=interop.example", "smtp-auth=plain", "stealthmua=noagent"]
    if account.tls == "starttls":
        options += ["pop3-use-starttls", "smtp-use-starttls"]
    return ["s-nail", "-:/", *(word for option in options for word in ("-S", option)), *words]


def _s_nail_url(account: Account, protocol: str) -> str:
    scheme = {("pop3", "implicit"): "pop3s", ("smtp", "implicit"): "smtps"}.get((protocol, account.tls), protocol)
    return f"{scheme}://{quote(account.user)}:{quote(account.password)}@{account.host}:{account.port}"


def read_with_s_nail(account: Account) -> list[bytes]:
    box = account.folder / "box"
    url = _s_nail_url(account, "pop3")
    script = f"copy * {shlex.quote(f'maildir://{box}')}\nexit\n"
    run(_s_nail(account, "-S", "newfolders=maildir", "-R", "-f", url), account.folder, script.encode())
    # s-nail adds an empty line after each mail that does not end with one, as between the mails of an mbox.
    return [mail.removesuffix(b"\n") if mail.partition(b"\n\n")[2] else mail for mail in mails_in(box)]


def send_with_s_nail(account: Account, letters: list[Letter]) -> None:
    for letter in letters:
        attached = _attachment(account, letter)
        words = ["-S", f"mta={_s_nail_url(account, 'smtp')}", "-s", f"{letter.kind} {letter.token}"]
        words += [*(["-a", attached] if attached else []), *letter.recipients]
        run(_s_nail(account, "-S", "sendwait", *words), account.folder, letter.text.encode())


def _attachment(account: Account, letter: Letter) -> str:
    """Write the attachment to a file and return its path; "" without an attachment."""
    if letter.attachment is None:
        return ""
    file = account.folder / "large.bin"
    file.write_bytes(letter.attachment)
    return str(file)


PROGRAMS = (
    Client("curl", ("curl", "--version"), read_with_curl, send_with_curl),
    Client("fetchmail", ("fetchmail", "--version"), read_with_fetchmail),
    Client("getmail6", ("getmail", "--version"), read_with_getmail, reads=("none", "implicit")),
    Client("mpop", ("mpop", "--version"), read_with_mpop),
    Client("msmtp", ("msmtp", "--version"), send=send_with_msmtp),
    Client("mutt", ("mutt", "-v"), read_with_mutt, send_with_mutt, composes=True),
    Client("s-nail", ("s-nail", "-:/", "-V"), read_with_s_nail, send_with_s_nail, composes=True),
    Client("swaks", ("swaks", "--version"), send=send_with_swaks),
)
