"""Requests on external accounts, and on the mails that were skipped at their providers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from services.admin.access.users import CurrentUser
from services.admin.accounts import connection_check, export, start, tag_probe
from services.admin.accounts.check_now import request_check
from services.admin.accounts.file_format import ExternalFields
from services.admin.mail import operations
from services.admin.monitoring.found_authors import load_found_authors
from services.admin.monitoring.history_progress import load_history_progress
from services.admin.web.api.account_requests import remove_account, require_external, save_account
from services.admin.web.api.schemas.accounts import (
    ConnectionCheckStep,
    ExternalAccount,
    FoundAuthors,
    HistoryProgress,
    SkippedMailEntry,
    TagProbeState,
)
from services.admin.web.api.schemas.common import (
    AddressInPath,
    ApiText,
    ChangeLines,
    IfMatch,
    MailSelection,
    OperationOutcome,
    PageLimit,
)
from services.admin.web.page_context import Administrator, PageContext, PageDep, Reader
from shared.store import accounts, reply_tags

router = APIRouter()


@router.get(
    "/external-accounts",
    response_model=list[ExternalAccount],
    response_model_exclude_unset=True,
    tags=["accounts"],
)
async def list_externals(
    context: PageDep, user: Reader, after: ApiText = "", q: ApiText = "", limit: PageLimit = 50
) -> Any:
    """List external accounts ordered by address; `q` filters by substring."""
    async with context.system.database.transaction() as connection:
        externals = await accounts.page_of_externals(connection, context.storable(after), context.storable(q), limit)
    return [export.external_fields(external) for external in externals]


@router.get(
    "/external-accounts/{address}",
    response_model=ExternalAccount,
    response_model_exclude_unset=True,
    tags=["accounts"],
)
async def show_external(response: Response, context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Return one external account. ETag: its version, for If-Match."""
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
    response.headers["ETag"] = f'"{export.version_of(external)}"'
    return export.external_fields(external)


@router.put("/external-accounts", response_model=ChangeLines, tags=["accounts"])
async def save_external(context: PageDep, user: Administrator, fields: ExternalFields, if_match: IfMatch = None) -> Any:
    """Add or replace an external account; with If-Match only the version that was read before.

    It is fetched by `pop3` or by `imap`, and sends by `smtp`: one server or a list. Without a password, or without the
    secret or key of `oauth`, the stored one stays, if the servers' hosts do, and so do `history` and `hold`; other
    fields take their default. A new account needs `history`, and its mail is on hold until it is started.
    """
    entry = fields.model_dump(exclude_unset=True, exclude={"password_file"})
    return await save_account(context, user, "external", entry, if_match)


@router.delete("/external-accounts/{address}", response_model=ChangeLines, tags=["accounts"])
async def remove_external(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Remove an external account, unless a local account shares it, or another one uses its access tokens."""
    return await remove_account(context, user, "external", address)


@router.post(
    "/external-accounts/{address}/test",
    response_model=list[ConnectionCheckStep],
    response_model_exclude_none=True,
    tags=["accounts"],
)
async def test_external(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Test both directions step by step, without fetching or sending mail.

    To trust a refused certificate, save the account with its fingerprint as `tls_fingerprint` of that server.
    """
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
    return [step.fields() for step in await connection_check.check_connection(context.system, external)]


@router.post("/external-accounts/{address}/start", response_model=ChangeLines, tags=["accounts"])
async def start_external(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Release the account's mail that is on hold: everybody who shares the account is there."""
    async with context.system.database.transaction() as connection:
        await require_external(connection, address)
        return {"changed": await start.start(connection, context.storable(address), user.name)}


@router.post("/external-accounts/{address}/check", response_model=ChangeLines, tags=["accounts"])
async def check_external(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Check the account for new mail at once, also after failures."""
    async with context.system.database.transaction() as connection:
        await require_external(connection, address)
        return {"changed": [await request_check(connection, context.storable(address), user.name)]}


@router.get("/external-accounts/{address}/history", response_model=HistoryProgress, tags=["accounts"])
async def show_history(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Return how much of the mail that was at the provider at the first contact is fetched."""
    async with context.system.database.transaction() as connection:
        return await load_history_progress(connection, await require_external(connection, address))


@router.get("/external-accounts/{address}/answers", response_model=FoundAuthors, tags=["accounts"])
async def show_found_authors(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Return how the answers of the last 30 days found their authors: numbers of mails that are still kept."""
    async with context.system.database.transaction() as connection:
        return await load_found_authors(connection, (await require_external(connection, address)).id)


@router.post("/external-accounts/{address}/tag-probe", response_model=TagProbeState, tags=["accounts"])
async def send_tag_probe(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Send a probe mail to the account's address with a reply tag; it reaches nobody's mailbox.

    `reply_tag` can be set when its result is `arrived`.
    """
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
    return tag_probe.probe_fields(await tag_probe.send_probe(context.system, external, user.name))


@router.get("/external-accounts/{address}/tag-probe", response_model=TagProbeState, tags=["accounts"])
async def show_tag_probe(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Return what became of the latest probe mail."""
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
        return tag_probe.probe_fields(await reply_tags.load_probe(connection, external.id))


@router.get("/external-accounts/{address}/skipped-mails", response_model=list[SkippedMailEntry], tags=["mail"])
async def skipped(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """List the skipped mails, which stay at the provider, the oldest first."""
    async with context.system.database.transaction() as connection:
        return await operations.list_skipped(connection, await require_external(connection, address))


@router.post("/external-accounts/{address}/skipped-mails/retry", response_model=OperationOutcome, tags=["mail"])
async def retry_skipped(context: PageDep, user: Administrator, address: AddressInPath, chosen: MailSelection) -> Any:
    """Retry these skipped mails at once, however often they failed."""
    return await _skipped(context, user, address, chosen, retries=True)


@router.post("/external-accounts/{address}/skipped-mails/acknowledge", response_model=OperationOutcome, tags=["mail"])
async def acknowledge_skipped(
    context: PageDep, user: Administrator, address: AddressInPath, chosen: MailSelection
) -> Any:
    """Stop reporting these skipped mails as a problem."""
    return await _skipped(context, user, address, chosen, retries=False)


async def _skipped(
    context: PageContext, user: CurrentUser, address: str, chosen: MailSelection, *, retries: bool
) -> operations.OperationResult:
    async with context.system.database.transaction() as connection:
        external = await require_external(connection, address)
        done = await (operations.fetch_again if retries else operations.acknowledge)(connection, external, chosen.ids)
        await operations.record_skipped(connection, user.name, external, retries, done)
    return done
