"""Runs Thunderbird without a screen: it discovers its settings, and does what people do with mail."""

from __future__ import annotations

import os
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from deploy.machine import ports
from tests.interop.imap_program import ImapProgram
from tests.interop.mails import Letter
from tests.interop.marionette import Marionette, Refused
from tests.interop.programs import Client, Failed, mails_in
from tests.interop.stand import Account
from tests.interop.work import Desk, WorkProgram, command_version

_START_SECONDS = 180.0
_SECONDS = 180.0
_HEADLESS = ("--headless", "--marionette", "--remote-allow-system-access", "--no-remote")
_LIBRARY = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def read(account: Account) -> list[bytes]:
    with _set_up(account, "pop3") as thunderbird:
        folder = thunderbird.run(_LIBRARY, "getMail")
        return mails_in(Path(folder))


def read_by_imap(account: Account) -> list[bytes]:
    with _set_up(account, "imap") as thunderbird:
        folder = thunderbird.run(_LIBRARY, "download")
        return mails_in(Path(folder))


def send(account: Account, letters: list[Letter]) -> None:
    with _set_up(account, "pop3") as thunderbird:
        for letter in letters:
            attached = account.folder / "large.bin"
            attached.write_bytes(letter.attachment or b"")
            file = str(attached) if letter.attachment is not None else None
            subject = f"{letter.kind} {letter.token}"
            thunderbird.run(_LIBRARY, "sendMail", ", ".join(letter.recipients), subject, letter.text, file)


class _Desk:
    """Thunderbird at work."""

    def __init__(self, thunderbird: Marionette) -> None:
        self._thunderbird = thunderbird

    def read(self, subject: str) -> str:
        shown: str = self._run("readMail", subject)
        return shown

    def answer(self, subject: str, text: str) -> None:
        self._run("answerMail", subject, text)

    def search(self, text: str) -> list[str]:
        found: list[str] = self._run("searchText", text)
        return found

    def save_draft(self, recipient: str, subject: str, text: str) -> None:
        self._run("saveDraft", recipient, subject, text)

    def move(self, subject: str, folder: str) -> None:
        self._run("moveMail", subject, folder)

    def delete(self, subject: str) -> None:
        self._run("deleteMail", subject)

    def unread(self) -> list[str]:
        found: list[str] = self._run("unreadMails")
        return found

    def _run(self, function: str, *arguments: str) -> Any:
        return self._thunderbird.run(_LIBRARY, function, *arguments)


@contextmanager
def _at_work(account: Account, outgoing: Account) -> Iterator[Desk]:
    with _set_up(account, "imap") as thunderbird:
        yield _Desk(thunderbird)


@contextmanager
def _set_up(account: Account, protocol: Literal["pop3", "imap"]) -> Iterator[Marionette]:
    """Run a Thunderbird for the block that has discovered the settings of the account, in the account's TLS mode."""
    profile = account.folder / "profile"
    profile.mkdir()
    (profile / "user.js").write_text(_preferences(account, control := ports.choose(1, str(profile), ports.OURS)[0]))
    environment = {"PATH": os.environ["PATH"], "HOME": str(account.folder), "LC_ALL": "C.UTF-8", "MOZ_HEADLESS": "1"}
    with (account.folder / "thunderbird.log").open("wb") as log:
        program = subprocess.Popen(
            ["thunderbird", *_HEADLESS, "--profile", str(profile)],
            cwd=account.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            thunderbird = _connect(program, control)
            try:
                name = account.user.partition("@")[0].capitalize()
                certificate = b64encode(account.certificate).decode()
                words = (account.user, name, account.password, protocol, account.tls, account.clear_ports, certificate)
                thunderbird.run(_LIBRARY, "setUp", *words)
                yield thunderbird
            finally:
                thunderbird.close()
        except (Refused, OSError) as error:
            raise Failed(str(error)) from error
        finally:
            program.kill()  # a normal end takes longer; the profile is deleted with its folder
            program.wait()


def _connect(program: subprocess.Popen[bytes], control: int) -> Marionette:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if program.poll() is not None:
            raise Failed(f"Thunderbird ended with status {program.returncode} during its start")
        try:
            return Marionette(control, _SECONDS)
        except ConnectionRefusedError as error:
            if time.monotonic() > deadline:
                raise Failed(f"Thunderbird does not answer after {_START_SECONDS:g} s") from error
        time.sleep(0.2)


def _preferences(account: Account, control: int) -> str:
    """Return preferences that map every host name to 127.0.0.1 and port 80 to the console, as a LAN's DNS would."""
    values: dict[str, str | int | bool] = {
        "marionette.port": control,
        "network.dns.forceResolve": "127.0.0.1",
        "network.socket.forcePort": f"80={account.console_port}",
        "network.connectivity-service.enabled": False,
        "network.captive-portal-service.enabled": False,
        "mail.serverDefaultStoreContractID": "@mozilla.org/msgstore/maildirstore;1",
        "mail.provider.suppress_dialog_on_startup": True,
        "mailnews.start_page.enabled": False,
        "mailnews.mark_message_read.auto": True,
        "mail.spotlight.firstRunDone": True,
        "datareporting.policy.dataSubmissionEnabled": False,
        "toolkit.telemetry.enabled": False,
        "app.update.enabled": False,
        "app.donation.eoy.version.viewed": 999,
        "dom.security.https_only_mode": False,
    }
    words = {True: "true", False: "false"}
    shown = {
        name: words[value] if isinstance(value, bool) else value if isinstance(value, int) else f'"{value}"'
        for name, value in values.items()
    }
    return "".join(f'user_pref("{name}", {value});\n' for name, value in shown.items())


_VERSION = ("thunderbird", "--version")
THUNDERBIRD = Client("Thunderbird", _VERSION, read, send, composes=True)
THUNDERBIRD_BY_IMAP = ImapProgram("Thunderbird", _VERSION, read_by_imap)
THUNDERBIRD_AT_WORK = WorkProgram("Thunderbird", command_version(*_VERSION), _at_work, (Refused,))
