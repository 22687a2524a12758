"""Looks at an external account's maildrop by POP3 or IMAP: whether the login works, which mails are there, and what
happens to them. No mail is fetched, marked or deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from services.admin.accounts.forecast import Identity, describe_policy, identity_of
from services.admin.accounts.tls_watch import TlsWatch
from services.admin.context import AdminContext
from services.admin.formatting import counted
from shared.db.database import Connection
from shared.errors import Permanent
from shared.mime.headers import header_end
from shared.model import External, LedgerEntry
from shared.net.dial import ProgressCallback, no_progress
from shared.provider import imap_client, pop3_client
from shared.provider.credentials import Credential, Credentials
from shared.provider.imap_client import ImapClient
from shared.provider.imap_deletion import WITHOUT_UIDPLUS
from shared.provider.maildrop import MaildropSession
from shared.provider.pop3_client import Pop3Client
from shared.provider.retrieval import Listing
from shared.store import polls, uidl_ledger

SECONDS = 20.0
"""Time limit of a step: seconds."""
COMPARED_HEADERS = 200
"""Limits the headers that are read to compare them with fetched mails: mails; a distant server takes some seconds."""
COMPARED_ROWS = 1000
"""Limits the fetched mails with which they are compared: mails, together 16 MB."""
HEADER_OCTETS = 64 * 1024
"""Limits a header that is read from the provider: octets."""
HEAD_OCTETS = 16 * 1024
"""Limits the header of a fetched mail: octets; nearly every one is shorter."""
STEPS = {
    "pop3": ("logged in", "counted", "stable"),
    "imap": ("logged in", "opened", "counted", "stable", "announces", "deletes"),
}
"""The steps of ``check_maildrop`` behind the greeting, by protocol."""
_IDS = {"pop3": "unique ids (UIDL)", "imap": "numbers (UIDVALIDITY)"}

T = TypeVar("T")


class StepDone(Protocol):
    """Records a step as done. mails: the number of mails at the provider, of the step that counts them."""

    def __call__(self, step: str, found: str, mails: int | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Maildrop:
    """The mails at a provider. sizes: octets by number, as far as the server reports them."""

    listing: Listing
    sizes: Mapping[int, int]
    identities: Mapping[int, Identity] = field(default_factory=dict)  # of mails that may be known by another key

    @property
    def shown(self) -> str:
        """Number and octets of the mails, for people."""
        octets = f", {counted(sum(self.sizes.values()), 'octet')}" if self.sizes or not self.listing.mails else ""
        return f"{counted(len(self.listing.mails))}{octets}"


def open_maildrop(
    system: AdminContext, external: External, progress: ProgressCallback = no_progress
) -> AbstractAsyncContextManager[Pop3Client | ImapClient]:
    """Open a session, which is not logged in. Errors as ``open_session`` of both clients."""
    allow = system.settings.allow_private_upstream
    if external.imap is not None:
        return imap_client.open_session(
            external.imap,
            allow,
            folders=external.imap.folders,
            connect_seconds=SECONDS,
            read_seconds=SECONDS,
            session_seconds=3 * SECONDS,
            progress=progress,
        )
    return pop3_client.open_session(
        external.incoming,
        allow,
        connect_seconds=SECONDS,
        read_seconds=SECONDS,
        session_seconds=3 * SECONDS,
        progress=progress,
    )


async def credential_for(system: AdminContext, external: External) -> Credential:
    """Return the account's credential. :raises Temporary, Permanent: there is none, as ``Credentials``."""
    allow = system.settings.allow_private_upstream
    if external.oauth is not None and not external.oauth.needs_consent and external.oauth.same_as is None:
        # Its tokens need nothing that is stored, and the fields that are not saved yet are to be tested. A refresh
        # token, however, may be good once: it is read from the database, and its successor stored there.
        external = replace(external, id=0)
    return await Credentials(system.database, system.vault, allow).credential_for(external)


async def count_mails(system: AdminContext, external: External) -> int:
    """Count the mails at the provider. :raises Temporary, Permanent: the error, as a text."""
    return len((await _ask(system, external, _read_list)).mails)


async def describe_maildrop(system: AdminContext, external: External) -> str:
    """Count the mails at the provider and say what happens to them. Errors as ``count_mails``."""

    async def read(session: MaildropSession) -> Maildrop:
        return await _identify(system, external, session, await _read_maildrop(session))

    found = await _ask(system, external, read)
    words = f"{found.shown}; {await _forecast(system, external, found)}"
    return words if found.listing.complete else f"{words}; the list is incomplete: {found.listing.problem}"


async def _ask(system: AdminContext, external: External, question: Callable[[MaildropSession], Awaitable[T]]) -> T:
    """Log in, ask, log out. :raises Temporary, Permanent: the error, as a text."""
    credential = await credential_for(system, external)
    watch = TlsWatch(external.incoming, system.settings.allow_private_upstream)

    async def work() -> T:
        async with open_maildrop(system, external, watch.note) as session:
            await session.login(credential)
            answer = await question(session)
            await session.quit()
        return answer

    return await watch.run(work())


async def check_maildrop(
    system: AdminContext, external: External, credential: Credential, done: StepDone, undecided: bool
) -> None:
    """List the mails in two sessions: if their ids change in between, every mail would be fetched again.

    :param done: called for each step, those of the connection too. :param undecided: as ``check_connection``.
    :raises Temporary, Permanent: a step failed.
    """

    def progress(step: str, found: str) -> None:
        # the capabilities that hold are known after the login
        done(step, "speaks IMAP" if step == "answered" and external.imap is not None else found)

    async with open_maildrop(system, external, progress) as session:
        await session.login(credential)
        if isinstance(session, ImapClient):
            done("logged in", f"as {credential.login}; {session.capabilities.shown()}")
        else:
            done("logged in", f"as {credential.login}")
        first = await _read_maildrop(session)
        if not undecided:
            first = await _identify(system, external, session, first)
        if isinstance(session, ImapClient):
            done("opened", _describe_folders(session, first.listing))
        forecast = "" if undecided else f"; {await _forecast(system, external, first)}"
        done("counted", f"{first.shown}{forecast}", len(first.listing.mails))
        await session.quit()
    ids = _IDS[external.protocol]
    if session.login_delay:
        done("stable", "not checked: the server requires a pause between two logins")
    elif await _has_other_ids(system, external, credential, first.listing):
        raise Permanent(
            f"the {ids} of the mails changed between two sessions; every mail would be fetched again and again. Ask "
            "the provider, or delete mails there as soon as they are stored here"
        )
    else:
        done("stable", f"their {ids} are the same in a second session")
    if isinstance(session, ImapClient):
        _check_abilities(external, session, done)


def _describe_folders(session: ImapClient, listing: Listing) -> str:
    """Describe the folders that were opened. :raises Permanent: one of them cannot be."""
    if not listing.complete:
        raise Permanent(listing.problem)
    return "; ".join(
        f"{each.name}{' (junk mail)' if each.junk else ''}: {counted(each.exists)}, UIDVALIDITY {each.uidvalidity}"
        for each in session.folders
    )


async def _has_other_ids(system: AdminContext, external: External, credential: Credential, first: Listing) -> bool:
    """Return whether no mail of a list has its id in another session. Some may have been deleted meanwhile."""
    async with open_maildrop(system, external) as session:
        await session.login(credential)
        second = await _read_list(session)
        await session.quit()
    return bool(first.mails) and {key for _, key in first.mails}.isdisjoint(key for _, key in second.mails)


def _check_abilities(external: External, session: ImapClient, done: StepDone) -> None:
    """Say what the server offers beside reading. :raises Permanent: it cannot delete what the account wants deleted."""
    done("announces", "IDLE is offered" if session.idles else f"no IDLE: polled every {external.poll_seconds} s")
    if session.capabilities.has("UIDPLUS"):
        done("deletes", "single mails can be deleted (UIDPLUS)")
    elif external.delete_after_days is None:
        done("deletes", "no UIDPLUS: the server cannot delete single mails; the account deletes none")
    else:
        raise Permanent(WITHOUT_UIDPLUS)


async def _read_maildrop(session: MaildropSession) -> Maildrop:
    listing = await _read_list(session)
    return Maildrop(listing, await session.fetch_sizes([number for number, _ in listing.mails]))


async def _read_list(session: MaildropSession) -> Listing:
    reply = await session.fetch_list_reply()
    return await asyncio.to_thread(reply.parse)


async def _identify(system: AdminContext, external: External, session: MaildropSession, found: Maildrop) -> Maildrop:
    """Read the headers of mails that may be fetched ones under another key, as after a change of the protocol.

    At most COMPARED_HEADERS, the latest; first those with the size of a mail that is missing.
    """
    async with system.database.transaction() as connection:
        known = await uidl_ledger.load_entries(connection, external.id)
    keys = {key for _, key in found.listing.mails}
    sizes = {row.octets for row in known if row.state == "vanished" and row.sha256 is not None and row.key not in keys}
    if not sizes:
        return found
    rows = {row.key for row in known}
    unknown = sorted((number for number, key in found.listing.mails if key not in rows), reverse=True)
    unknown.sort(key=lambda number: found.sizes.get(number) not in sizes)
    identities = {}
    async for got in session.fetch_headers(sorted(unknown[:COMPARED_HEADERS]), HEADER_OCTETS):
        identity = identity_of(bytes(got.body)) if got.body is not None else None
        if identity is not None:
            identities[got.number] = identity
    return replace(found, identities=identities)


async def _load_identities(
    connection: Connection, external: External, known: Sequence[LedgerEntry], found: Maildrop
) -> dict[int, Identity]:
    """Return the identities of fetched mails that are missing, by id of the row; first those with a listed size."""
    if not found.identities:
        return {}
    listed = {found.sizes.get(number) for number in found.identities}
    missing = [row for row in known if row.state == "vanished" and row.sha256 is not None]
    missing.sort(key=lambda row: (row.octets not in listed, -row.id))
    heads = await uidl_ledger.load_heads(
        connection, external.id, [row.id for row in missing[:COMPARED_ROWS]], HEAD_OCTETS
    )
    identities = {row: identity_of(head[: header_end(head)]) for row, head in heads.items()}
    return {row: identity for row, identity in identities.items() if identity is not None}


async def _forecast(system: AdminContext, external: External, found: Maildrop) -> str:
    listed = {key: found.sizes.get(number) for number, key in found.listing.mails}
    async with system.database.transaction() as connection:
        polled = (await polls.load_poll_states(connection)).get(external.id)
        known = await uidl_ledger.load_entries(connection, external.id)
        known_as = await _load_identities(connection, external, known, found)
    listed_as = {key: found.identities[number] for number, key in found.listing.mails if number in found.identities}
    met = polled is not None and polled.first_contact_at is not None
    return describe_policy(external, listed, known, met, listed_as, known_as)
