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
from shared.languages.stored_texts import shown
from shared.languages.translation import gettext, marked
from shared.model import External, Server
from shared.net.dial import CertificateRefused, host_port
from shared.provider.credentials import Credential, Credentials
from shared.provider.smtp_connect import connect, probe_smtp
from shared.settings import PrivateHosts
from shared.store import accounts, polls, relays

TOKEN, PASSWORD, _END = marked("access token"), marked("password"), marked("end")
"""Names of further steps."""


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One step of a check."""

    name: str
    ok: bool
    text: str  # the result, or the error and what to change
    seconds: float = 0.0  # duration
    mails: int | None = None  # the number of mails at the provider, of the step that counts them
    server: str = ""  # of a refused certificate: pop3, imap, smtp, or smtp[1] for a further relay
    certificate: ShownCertificate | None = None  # the refused one

    def fields(self) -> dict[str, Any]:
        """Return the step as in the JSON of command and REST API."""
        found: dict[str, Any] = {"step": self.name, "ok": self.ok, "result": self.text}
        found["seconds"] = round(self.seconds, 3)
        if self.mails is not None:
            found["mails"] = self.mails
        if self.certificate is not None:
            found["certificate"] = {"server": self.server} | asdict(self.certificate)
        return found


async def check_connection(system: AdminContext, external: External, undecided: bool = False) -> list[CheckStep]:
    """Check both directions; no mail is fetched, sent or deleted. A paused direction that works is resumed.

    :param external: may be unsaved (id 0), or saved with other fields. :param undecided: nobody has chosen its
        ``history`` yet, so nothing is said about what happens to the mail that is there.
    """
    try:
        credential = await credential_for(system, external)
    except (Temporary, Permanent, ValueError) as error:
        return [CheckStep(gettext(TOKEN if external.oauth else PASSWORD), False, shown(str(error)))]
    allow = system.settings.allow_private_upstream
    incoming = external.incoming
    steps = _order(incoming, *STEPS[external.protocol])
    fetching = _Checklist(external.protocol.upper(), incoming, allow, steps)
    relaying = [_RelayCheck(system, external.through(relay.position), credential) for relay in external.relays]
    await asyncio.gather(
        fetching.run(check_maildrop(system, external, credential, fetching.done, undecided)),
        *(check.run() for check in relaying),
    )
    await asyncio.gather(
        fetching.show_certificate(_show_incoming(system, external)),
        *(check.show_certificate() for check in relaying),
    )
    async with system.database.transaction() as connection:
        saved = [account for account in await accounts.load_externals(connection, [external.id]) if account == external]
        if saved and fetching.well:
            await polls.poll_now(connection, external.id)
        if saved and (well := [check.position for check in relaying if check.steps.well]):
            await relays.unpause(connection, external.id, well)
            await relays.forget_sizes(connection, external.id)
    return [*fetching.steps, *(step for check in relaying for step in check.steps.steps)]


class _RelayCheck:
    """The check of one relay: the first one of ``external``."""

    def __init__(self, system: AdminContext, external: External, credential: Credential) -> None:
        """:param credential: of the account."""
        relay = external.relay
        self.position = relay.position
        self._system, self._external, self._credential = system, external, credential
        self._problem = ""
        if relay.login is not None and relay.password is not None:
            try:
                self._credential = Credential(relay.login, system.vault.open(relay.password))
            except (Permanent, ValueError) as error:
                self._problem = str(error)
        login = ("logged in",) if relay.auth else ()
        protocol = "SMTP" if len(external.relays) == 1 else f"SMTP {relay.position + 1} ({relay.server.host})"
        server = "smtp" if relay.position == 0 else f"smtp[{relay.position}]"
        order = _order(relay.server, *login, "accepted")
        self.steps = _Checklist(protocol, relay.server, system.settings.allow_private_upstream, order, server)

    async def run(self) -> None:
        """Test the relay up to MAIL."""
        settings = self._system.settings
        if self._external.relay.tokens_of is not None:
            tokens = Credentials(self._system.database, self._system.vault, settings.allow_private_upstream)
            try:
                self._credential = await tokens.credential_for_relay(self._external)
            except (Temporary, Permanent, ValueError) as error:
                self.steps.fail(TOKEN, str(error))
                return
        if self._problem:
            self.steps.fail(PASSWORD, self._problem)
            return
        probe = probe_smtp(
            self._external,
            self._credential,
            settings.allow_private_upstream,
            maildrop_check.SECONDS,
            self.steps.done,
            settings.ehlo_name,
        )
        await self.steps.run(probe)

    async def show_certificate(self) -> None:
        """Add a refused certificate to the step that failed."""
        await self.steps.show_certificate(_show_smtp(self._system, self._external, self._credential))


_NAMES = {
    "resolved": marked("find the server"),
    "connected": marked("connect"),
    "encrypted": marked("encrypt (TLS)"),
    "answered": marked("greet"),
    "logged in": marked("log in"),
    "opened": marked("open the folders"),
    "counted": marked("count the mails"),
    "stable": marked("list the same mails again"),
    "announces": marked("announce new mail"),
    "deletes": marked("delete mails"),
    "accepted": marked("offer a mail from this address"),
}


def _order(server: Server, *further: str) -> list[str]:
    secure = ["encrypted"] if server.tls != "none" else []
    return ["resolved", "connected", *secure, "answered", *further]


class _Checklist:
    """The steps of one direction, with their durations."""

    def __init__(
        self, protocol: str, server: Server, allow_private: PrivateHosts, order: Sequence[str], name: str = ""
    ) -> None:
        """:param name: of the server in the accounts file; '': the protocol in lower case."""
        self._name = name or protocol.lower()
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
        self.steps.append(CheckStep(self._title(_NAMES[step]), True, shown(found), now - self._began, mails))
        self._began = now
        self._order = self._order[self._order.index(step) + 1 :]
        self._watch.note(step)

    def _title(self, step: str) -> str:
        """Return the name of a step in the language that applies: English for commands and the REST API."""
        return f"{self._protocol}: {gettext(step)}"

    def fail(self, step: str, why: str) -> None:
        """Record that the check cannot begin."""
        self.steps.append(CheckStep(self._title(step), False, shown(why)))

    async def run(self, check: Coroutine[None, None, None]) -> None:
        """Run the check; if it fails, record the step that failed. A silent port is tried for TLS meanwhile."""
        try:
            await self._watch.run(check)
            self.well = True
        except (Temporary, Permanent) as error:
            self._refused = isinstance(error, CertificateRefused)
            text = shown(str(error).removeprefix(f"{self._place}: "))
            title = self._title(_NAMES[self._order[0]] if self._order else _END)
            self.steps.append(CheckStep(title, False, text, time.perf_counter() - self._began))

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
                failed, certificate = self.steps[-1], read_certificate(error.certificate)
                what = failed.text.partition("; ")[0]  # without the advice: console and command offer to trust it
                self.steps[-1] = replace(failed, text=what, server=self._name, certificate=certificate)
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
    relay = external.relay
    pinned = replace(relay, server=replace(relay.server, tls_fingerprint=_NO_CERTIFICATE))
    external = replace(external, relays=(pinned, *external.relays[1:]))
    client = await connect(external, credential, system.settings.allow_private_upstream, maildrop_check.SECONDS)
    client.close()


async def describe_maildrops(system: AdminContext, externals: Sequence[External]) -> list[str]:
    """Describe the maildrops of new or redirected accounts and what happens to their mails, a line each.

    An error is a line, too.
    """

    async def one(external: External) -> str:
        try:
            found = await maildrop_check.describe_maildrop(system, external)
            return f"{shown(f'external account {external.address}')}: {found}"
        except (Temporary, Permanent, ValueError) as error:
            return shown(f"external account {external.address}: not reachable now: {error}")

    return list(await asyncio.gather(*(one(external) for external in externals if external.enabled)))
