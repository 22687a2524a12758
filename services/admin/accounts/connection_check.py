"""Check of an external account at its provider (the Test button of the manual), and a forecast of the first poll."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from services.admin.accounts.certificates import ShownCertificate, read_certificate
from services.admin.accounts.forecast import describe_policy
from services.admin.accounts.tls_watch import TlsWatch
from services.admin.context import AdminContext
from services.admin.formatting import counted
from shared.errors import Permanent, Temporary
from shared.model import External, Server
from shared.net.dial import CertificateRefused, ProgressCallback, host_port, no_progress
from shared.provider.credentials import Credential, Credentials
from shared.provider.pop3_client import Pop3Client, open_session
from shared.provider.retrieval import Listing
from shared.provider.smtp_connect import connect, probe_smtp
from shared.settings import PrivateHosts
from shared.store import account_changes, accounts, polls, relay_status, uidl_ledger

T = TypeVar("T")

SECONDS = 20.0
"""Time limit of a step: seconds."""


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
        credential = await _credential(system, external)
    except (Temporary, Permanent, ValueError) as error:
        return [CheckStep("access token" if external.oauth else "password", False, str(error))]
    allow = system.settings.allow_private_upstream
    incoming = external.incoming
    steps = _order(incoming, "logged in", "counted", "stable")
    fetching = _Checklist(external.protocol.upper(), incoming, allow, steps)
    login = ("logged in",) if external.smtp_auth else ()
    relaying = _Checklist("SMTP", external.smtp, allow, _order(external.smtp, *login, "accepted"))
    await asyncio.gather(
        fetching.run(_try_pop3(system, external, credential, fetching, undecided)),
        relaying.run(
            probe_smtp(
                external,
                credential,
                allow,
                SECONDS,
                relaying.done,
                system.settings.ehlo_name,
            )
        ),
    )
    await asyncio.gather(
        fetching.show_certificate(_show_pop3(system, external)),
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
    "counted": "count the mails",
    "stable": "list the same mails again",
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


async def _show_pop3(system: AdminContext, external: External) -> None:
    if external.pop3 is None:
        return
    async with _session(system, replace(external, pop3=replace(external.pop3, tls_fingerprint=_NO_CERTIFICATE))):
        return


async def _show_smtp(system: AdminContext, external: External, credential: Credential) -> None:
    pinned = replace(external, smtp=replace(external.smtp, tls_fingerprint=_NO_CERTIFICATE))
    client = await connect(pinned, credential, system.settings.allow_private_upstream, SECONDS)
    client.close()


async def _try_pop3(
    system: AdminContext, external: External, credential: Credential, checklist: _Checklist, undecided: bool
) -> None:
    """List the mails in two sessions: if their UIDLs change in between, every mail would be fetched again."""
    keys = []
    for again in (False, True):
        progress = no_progress if again else checklist.done
        async with _session(system, external, progress) as session:
            await session.login(credential)
            if not again:
                checklist.done("logged in", f"as {credential.login}")
            count, octets = await session.stat()
            listing = await session.fetch_list()
            keys.append([key for _, key in listing.mails])
            if not again:
                forecast = "" if undecided else f"; {await _expected(system, external, session, listing)}"
                checklist.done("counted", f"{counted(count)}, {counted(octets, 'octet')}{forecast}", count)
            await session.quit()
        if not again and session.capabilities.login_delay:
            checklist.done("stable", "not checked: the server requires a pause between two logins")
            return
    if keys[0] and not set(keys[0]) & set(keys[1]):  # some may have been deleted meanwhile
        raise Permanent(
            "the unique ids (UIDL) of the mails changed between two sessions; every mail would be fetched again and "
            "again. Ask the provider, or delete mails there as soon as they are stored here"
        )
    checklist.done("stable", "their unique ids (UIDL) are the same in a second session")


def _session(
    system: AdminContext, external: External, progress: ProgressCallback = no_progress
) -> AbstractAsyncContextManager[Pop3Client]:
    if external.pop3 is None:
        raise Permanent(f"{host_port(external.incoming)}: mail is not fetched by IMAP yet")
    return open_session(
        external.pop3,
        system.settings.allow_private_upstream,
        connect_seconds=SECONDS,
        read_seconds=SECONDS,
        session_seconds=3 * SECONDS,
        progress=progress,
    )


async def _credential(system: AdminContext, external: External) -> Credential:
    allow = system.settings.allow_private_upstream
    return await Credentials(system.database, system.vault, allow).credential_for(external)


async def count_mails(system: AdminContext, external: External) -> int:
    """Count the mails at the provider. :raises Temporary, Permanent: the error, as a text."""
    count, _ = await _ask(system, external, lambda session: session.stat())
    return count


async def _ask(system: AdminContext, external: External, question: Callable[[Pop3Client], Awaitable[T]]) -> T:
    """Log in, ask, log out. :raises Temporary, Permanent: the error, as a text."""
    credential = await _credential(system, external)
    watch = TlsWatch(external.incoming, system.settings.allow_private_upstream)

    async def work() -> T:
        async with _session(system, external, watch.note) as session:
            await session.login(credential)
            answer = await question(session)
            await session.quit()
        return answer

    return await watch.run(work())


async def _describe_mails(system: AdminContext, external: External) -> str:
    async def describe(session: Pop3Client) -> str:
        count, octets = await session.stat()
        expected = await _expected(system, external, session, await session.fetch_list())
        return f"{counted(count)}, {counted(octets, 'octet')}; {expected}"

    return await _ask(system, external, describe)


async def _expected(system: AdminContext, external: External, session: Pop3Client, listing: Listing) -> str:
    sizes = await session.fetch_sizes([number for number, _ in listing.mails])
    listed = {key: sizes.get(number) for number, key in listing.mails}
    async with system.database.transaction() as connection:
        polled = (await polls.load_poll_states(connection)).get(external.id)
        known = await uidl_ledger.load_entries(connection, external.id)
    return describe_policy(external, listed, known, polled is not None and polled.first_contact_at is not None)


async def describe_maildrop(system: AdminContext, externals: Sequence[External]) -> list[str]:
    """Describe the maildrops of new or redirected accounts and what happens to their mails, a line each.

    An error is a line, too.
    """

    async def one(external: External) -> str:
        try:
            return f"external account {external.address}: {await _describe_mails(system, external)}"
        except (Temporary, Permanent, ValueError) as error:
            return f"external account {external.address}: not reachable now: {error}"

    return list(await asyncio.gather(*(one(external) for external in externals if external.enabled)))
