"""Talking to the provider for the operator: the Test button of the manual, and what a first contact will do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.admin.system import System
from shared import ledger, relays
from shared.accounts import External, Server
from shared.credentials import Credential, Credentials
from shared.failures import Permanent, Temporary
from shared.pop3_client import open_session
from shared.smtp_client import probe_smtp

SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a test. text: what was found, or what is wrong and what to change."""

    name: str
    ok: bool
    text: str


async def test(system: System, external: External) -> list[Step]:
    """Try both directions; nothing is fetched, sent or deleted. A direction that works is resumed if it was paused."""
    try:
        credential = await _credential(system, external)
    except (Temporary, Permanent, ValueError) as error:
        return [Step("access token" if external.oauth else "password", False, str(error))]

    async def pop3() -> str:
        return f"login accepted; {await _pop3(system, external, credential)}"

    async def smtp() -> str:
        await probe_smtp(external, credential, system.settings.allow_private_upstream, SECONDS)
        return "login and sender accepted" if external.smtp_auth else "sender accepted"

    steps = list(await asyncio.gather(_try("POP3", external.pop3, pop3), _try("SMTP", external.smtp, smtp)))
    async with system.database.transaction() as connection:
        if steps[0].ok:
            await ledger.resume(connection, external.id)
        if steps[1].ok:
            await relays.resume(connection, external.id)
    return steps


async def _try(protocol: str, server: Server, step: Callable[[], Awaitable[str]]) -> Step:
    place = f"{server.host}:{server.port}"
    try:
        return Step(f"{protocol} {place}", True, await step())
    except (Temporary, Permanent) as error:
        return Step(f"{protocol} {place}", False, str(error).removeprefix(f"{place}: "))


async def _credential(system: System, external: External) -> Credential:
    allow = system.settings.allow_private_upstream
    return await Credentials(system.database, system.vault, allow).of(external)


async def _pop3(system: System, external: External, credential: Credential) -> str:
    """Log in and count. :raises Temporary, Permanent: what is wrong, in words."""
    async with open_session(
        external.pop3,
        system.settings.allow_private_upstream,
        connect_seconds=SECONDS,
        read_seconds=SECONDS,
        session_seconds=3 * SECONDS,
    ) as session:
        await session.login(credential)
        count, octets = await session.stat()
        listed = await session.listing()
        await session.quit()
    async with system.database.transaction() as connection:
        polled = (await ledger.polled(connection)).get(external.id)
        known = await ledger.known(connection, external.id)
    met = polled is not None and polled.first_contact_at is not None
    return f"{count} mails, {octets} octets; {expectation(external, [key for _, key in listed.mails], known, met)}"


def expectation(external: External, listed: Sequence[str], known: Sequence[ledger.Known], met: bool) -> str:
    """What happens to the mails that lie there: how many are delivered, what is deleted when. Pure.

    :param met: the first contact has been; what it found and is not wanted is history.
    """
    ours = {row.key: row.state for row in known}
    fetched = sum(ours.get(key) in ("fetched", "deleting") for key in listed)
    skipped = sum(ours.get(key) == "skipped" for key in listed)
    unknown = sum(key not in ours for key in listed)
    history = sum(ours.get(key) == "history" for key in listed)
    if not met:  # what a first contact finds is history, but for what was fetched before
        unknown, history = 0, history + unknown
    words = f"{unknown + (history if external.history == 'all' else 0)} of them will be delivered"
    if not external.enabled:
        words += " once the account is enabled"
    if fetched:
        words += f", {fetched} were fetched already"
    if skipped:
        words += f", {skipped} could not be fetched"
    if external.history == "from_now" and history:
        words += f", {history} lay there at the first contact and stay there (history: from_now)"
    if external.delete_after_days is None:
        return words + "; nothing will be deleted at the provider"
    when = (
        "as soon as it is stored here"
        if external.delete_after_days == 0
        else (f"{external.delete_after_days} days after it was fetched")
    )
    kept = "" if external.delete_history else "; what lay there at the first contact is never deleted"
    return f"{words}; fetched mail will be deleted at the provider {when}{kept}"


async def describe(system: System, externals: Sequence[External]) -> list[str]:
    """For new or redirected accounts, what lies there and what will happen to it; a line each. Never fails."""

    async def one(external: External) -> str:
        try:
            credential = await _credential(system, external)
            return f"external account {external.address}: {await _pop3(system, external, credential)}"
        except (Temporary, Permanent, ValueError) as error:
            return f"external account {external.address}: not reachable now: {error}"

    return list(await asyncio.gather(*(one(external) for external in externals if external.enabled)))
