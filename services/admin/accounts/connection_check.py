"""Check of an external account at its provider (the Test button of the manual), and a forecast of the first poll."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from services.admin.accounts import maildrop_check
from services.admin.accounts.certificates import ShownCertificate, read_certificate
from services.admin.accounts.maildrop_check import STEPS, check_maildrop, credential_for
from services.admin.accounts.tls_watch import TlsWatch
from services.admin.context import AdminContext
from shared.errors import Permanent, Temporary
from shared.model import External, Server
from shared.net.dial import CertificateRefused, host_port
from shared.provider.credentials import Credential
from shared.provider.smtp_connect import connect, probe_smtp
from shared.settings import PrivateHosts
from shared.store import account_changes, accounts, polls, relay_status


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One step of a check."""

    name: str
    ok: bool
    text: str  # the result, or the error and what to change
    seconds: float = 0.0  # duration
    mails: int | None = None  # the number of mails at the provider, of the step that counts them
    server: str = ""  # of a refused certificate: pop3, imap or smtp
    certificate: ShownCertificate | None = None  # the refused one

    def fields(self) -> dict[str, Any]:
        """Return the step as in the JSON of command and REST API."""
        shown: dict[str, Any] = {"step": self.name, "ok": self.ok, "result": self.text}
        shown["seconds"] = round(self.seconds, 3)
        if self.mails is not None:
            shown["mails"] = self.mails
        if self.certificate is not None:
            shown["certificate"] = {"server": self.server} | asdict(self.certificate)
        return shown


async def check_connection(system: AdminContext, external: External, undecided: bool = False) -> list[CheckStep]:
    """Check both directions; no mail is fetched, sent or deleted. A paused direction that works is resumed.

    :param external: may be unsaved (id 0), or saved with other fields. :param undecided: nobody has chosen its
        ``history`` yet, so nothing is said about what happens to the mail that is there.
    """
    try:
        credential = await credential_for(system, external)
    except (Temporary, Permanent, ValueError) as error:
        return [CheckStep("access token" if external.oauth else "password", False, str(error))]
    allow = system.settings.allow_private_upstream
    incoming = external.incoming
    steps = _order(incoming, *STEPS[external.protocol])
    fetching = _Checklist(external.protocol.upper(), incoming, allow, steps)
    login = ("logged in",) if external.smtp_auth else ()
    relaying = _Checklist("SMTP", external.smtp, allow, _order(external.smtp, *login, "accepted"))
    await asyncio.gather(
        fetching.run(check_maildrop(system, external, credential, fetching.done, undecided)),
        relaying.run(
            probe_smtp(
                external,
                credential,
                allow,
                maildrop_check.SECONDS,
                relaying.done,
                system.settings.ehlo_name,
            )
        ),
    )
    await asyncio.gather(
        fetching.show_certificate(_show_incoming(system, external)),
        relaying.show_certificate(_show_smtp(system, external, credential)),
    )
    async with system.database.transaction() as connection:
        saved = [account for account in await accounts.load_externals(connection, [external.id]) if account == external]
        if saved and fetching.well:
            await polls.poll_now(connection, external.id)
        if saved and relaying.well:
            await relay_status.unpause(connection, external.id)
            await account_changes.forget_size(connection, external.id)
    return [*fetching.steps, *relaying.steps]


_NAMES = {
    "resolved": "find the server",
    "connected": "connect",
    "encrypted": "encrypt (TLS)",
    "answered": "greet",
    "logged in": "log in",
    "opened": "open the folders",
    "counted": "count the mails",
    "stable": "list the same mails again",
    "announces": "announce new mail",
    "deletes": "delete mails",
    "accepted": "offer a mail from this address",
}


def _order(server: Server, *further: str) -> list[str]:
    secure = ["encrypted"] if server.tls != "none" else []
    return ["resolved", "connected", *secure, "answered", *further]


class _Checklist:
    """The steps of one direction, with their durations."""

    def __init__(self, protocol: str, server: Server, allow_private: PrivateHosts, order: Sequence[str]) -> None:
        self.steps: list[CheckStep] = []
        self.well = False  # all steps are done
        self._refused = False  # the certificate is why it failed
        self._protocol, self._server, self._place = protocol, server, host_port(server)
        self._watch = TlsWatch(server, allow_private)
        self._order = list(order)
        self._began = time.perf_counter()

    def done(self, step: str, found: str, mails: int | None = None) -> None:
        """Record a step as done."""
        now = time.perf_counter()
        self.steps.append(CheckStep(f"{self._protocol}: {_NAMES[step]}", True, found, now - self._began, mails))
        self._began = now
        self._order = self._order[self._order.index(step) + 1 :]
        self._watch.note(step)

    async def run(self, check: Coroutine[None, None, None]) -> None:
        """Run the check; if it fails, record the step that failed. A silent port is tried for TLS meanwhile."""
        try:
            await self._watch.run(check)
            self.well = True
        except (Temporary, Permanent) as error:
            self._refused = isinstance(error, CertificateRefused)
            text = str(error).removeprefix(f"{self._place}: ")
            name = _NAMES[self._order[0]] if self._order else "end"
            self.steps.append(CheckStep(f"{self._protocol}: {name}", False, text, time.perf_counter() - self._began))

    async def show_certificate(self, look: Coroutine[None, None, None]) -> None:
        """Add the refused certificate to the step that failed, if one did for this reason.

        :param look: connects, and raises CertificateRefused with the certificate before the login.
        """
        if not self._refused:
            look.close()
            return
        try:
            await look
        except CertificateRefused as error:
            if error.certificate is not None:
                failed, shown = self.steps[-1], read_certificate(error.certificate)
                what = failed.text.partition("; ")[0]  # without the advice: console and command offer to trust it
                self.steps[-1] = replace(failed, text=what, server=self._protocol.lower(), certificate=shown)
        except (Temporary, Permanent):
            return  # the failed step says enough


_NO_CERTIFICATE = "0" * 64
"""A fingerprint that no certificate has: the connection shows its certificate and ends before the login."""


async def _show_incoming(system: AdminContext, external: External) -> None:
    pop3 = external.pop3 and replace(external.pop3, tls_fingerprint=_NO_CERTIFICATE)
    imap = external.imap and replace(external.imap, tls_fingerprint=_NO_CERTIFICATE)
    async with maildrop_check.open_maildrop(system, replace(external, pop3=pop3, imap=imap)):
        return


async def _show_smtp(system: AdminContext, external: External, credential: Credential) -> None:
    pinned = replace(external, smtp=replace(external.smtp, tls_fingerprint=_NO_CERTIFICATE))
    client = await connect(pinned, credential, system.settings.allow_private_upstream, maildrop_check.SECONDS)
    client.close()


async def describe_maildrops(system: AdminContext, externals: Sequence[External]) -> list[str]:
    """Describe the maildrops of new or redirected accounts and what happens to their mails, a line each.

    An error is a line, too.
    """

    async def one(external: External) -> str:
        try:
            return f"external account {external.address}: {await maildrop_check.describe_maildrop(system, external)}"
        except (Temporary, Permanent, ValueError) as error:
            return f"external account {external.address}: not reachable now: {error}"

    return list(await asyncio.gather(*(one(external) for external in externals if external.enabled)))
