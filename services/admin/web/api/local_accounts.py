"""Requests on local accounts and their deleted mail."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from services.admin.access import audit, users
from services.admin.accounts import edit, export
from services.admin.accounts.errors import AccountProblem, AccountsError
from services.admin.accounts.passwords import generate_password
from services.admin.formatting import counted
from services.admin.mail import operations, retirement
from services.admin.mail.retirement import RETIRE_SECONDS, Retirement
from services.admin.web.api.account_requests import remove_account, require_local, save_account
from services.admin.web.api.schemas.accounts import (
    AccountLogins,
    Colleague,
    LocalAccount,
    LocalChange,
    LocalRequest,
    NewName,
    RemovedAccount,
    RetirementRequest,
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
from services.admin.web.api.schemas.mails import DeletedMailEntry
from services.admin.web.page_context import Administrator, PageDep, Reader
from shared.store import accounts, last_logins

router = APIRouter()


@router.get("/local-accounts", response_model=list[LocalAccount], tags=["accounts"])
async def list_locals(
    context: PageDep, user: Reader, after: ApiText = "", q: ApiText = "", limit: PageLimit = 50
) -> Any:
    """List local accounts ordered by address; `q` filters by substring of address or user name."""
    async with context.system.database.transaction() as connection:
        people = await accounts.page_of_locals(connection, context.storable(after), context.storable(q), limit=limit)
        externals = await accounts.load_externals(connection, sorted({person.external_id for person in people}))
        delegates = await accounts.load_locals(connection, [p.delegate_id for p in people if p.delegate_id])
    return [export.local_fields(person, externals, delegates) for person in people]


@router.get("/local-accounts/{address}", response_model=LocalAccount, tags=["accounts"])
async def show_local(response: Response, context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Return one local account. ETag: its version, for If-Match."""
    async with context.system.database.transaction() as connection:
        person = await require_local(connection, address)
        externals = await accounts.load_externals(connection, [person.external_id])
        delegates = await accounts.load_locals(connection, [person.delegate_id] if person.delegate_id else [])
    response.headers["ETag"] = f'"{export.version_of(person)}"'
    return export.local_fields(person, externals, delegates)


@router.get("/local-accounts/{address}/logins", response_model=AccountLogins, tags=["accounts"])
async def logins(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Return the last logins of the account by IMAP, POP3 and SMTP, and its console sessions."""
    async with context.system.database.transaction() as connection:
        person = await require_local(connection, address)
        last = await last_logins.load_last_logins(connection, person.id)
        sessions = await users.list_sessions(connection, person.id)
    return {"last": last, "sessions": sessions}


@router.put("/local-accounts", response_model=LocalChange, response_model_exclude_none=True, tags=["accounts"])
async def save_local(context: PageDep, user: Administrator, fields: LocalRequest, if_match: IfMatch = None) -> Any:
    """Add or replace a local account; with If-Match only the version that was read before.

    Without a password the stored one stays; other fields take their default. A new password has at least 10 characters;
    with `generate_password` the response has a random one.
    """
    entry = fields.model_dump(exclude_unset=True, exclude={"password_file", "generate_password"})
    password = None
    if fields.generate_password:
        if "password" in entry or "password_hash" in entry:
            words = "a password is given, too"
            raise AccountsError([AccountProblem(words, "local", address=fields.address, field=("generate_password",))])
        entry["password"] = password = generate_password()
    return {**await save_account(context, user, "local", entry, if_match), "password": password}


@router.delete("/local-accounts/{address}", response_model=ChangeLines, tags=["accounts"])
async def remove_local(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Remove a local account; its mail is kept for the retention time."""
    return await remove_account(context, user, "local", address)


@router.post("/local-accounts/{address}/restore", response_model=ChangeLines, tags=["accounts"])
async def restore_local(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Restore a removed local account with its mail."""
    async with context.system.database.transaction() as connection:
        person = await operations.restore_account(connection, context.storable(address))
        await audit.record_change(connection, user.name, "restored local account", person.address)
    return {"changed": [f"local account {person.address}: restored"]}


@router.post("/local-accounts/{address}/retire", response_model=ChangeLines, tags=["accounts"])
async def retire_local(context: PageDep, user: Administrator, address: AddressInPath, given: RetirementRequest) -> Any:
    """Copy the mailbox to a colleague, send future mail to a delegate, and disable or remove the account, all at once.

    Of a removed account the delegate gets the names and addresses as further ones.
    """
    system = context.system
    async with system.database.transaction(RETIRE_SECONDS) as connection:
        await require_local(connection, address)
        wanted = Retirement(context.storable(address), given.mailbox_to, given.delegate, given.then)
        days = system.settings.retention_days
        lines = await retirement.retire(connection, wanted, system.vault, system.passwords, user.name, days)
    await system.announce_changes([given.mailbox_to] if given.mailbox_to else [])
    return {"changed": [str(line) for line in lines]}


@router.post("/local-accounts/{address}/names", response_model=ChangeLines, tags=["accounts"])
async def add_name(context: PageDep, user: Administrator, address: AddressInPath, taken: NewName) -> Any:
    """Add a further name to a local account, for example one from the list of unknown names."""
    async with context.system.database.transaction() as connection:
        person = await require_local(connection, address)
        requested = await edit.add_name(connection, person.address, taken.name)
        outcome = await context.apply(connection, requested, user)
    return {"changed": outcome.lines}


@router.get("/removed-local-accounts", response_model=list[RemovedAccount], tags=["accounts"])
async def list_removed(context: PageDep, user: Reader) -> Any:
    """List the removed local accounts that can be restored, the latest first."""
    async with context.system.database.transaction() as connection:
        removed = await accounts.removed_locals(connection)
    return [{"address": p.address, "user_name": p.user_name, "removed_at": at} for p, at in removed]


@router.post("/local-accounts/{address}/sign-out", response_model=ChangeLines, tags=["accounts"])
async def sign_out(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """End every console session of a local account."""
    async with context.system.database.transaction() as connection:
        person = await require_local(connection, address)
        count = await users.end_sessions_of(connection, person.id)
        await audit.record_change(connection, user.name, "signed out everywhere", person.address)
    return {"changed": [f"local account {person.address}: signed out of {counted(count, 'browser')}"]}


@router.post("/local-accounts/{address}/hand-over", response_model=ChangeLines, tags=["mail"])
async def hand_over(context: PageDep, user: Administrator, address: AddressInPath, given: Colleague) -> Any:
    """Copy every mail of a local account into the mailbox of a colleague, as new mail."""
    async with context.system.database.transaction(operations.HAND_OVER_SECONDS) as connection:
        person = await require_local(connection, address)
        count = await operations.copy_mailbox_to(connection, person.address, given.to)
        await audit.record_change(
            connection, user.name, "handed mail over", person.address, f"{counted(count)} to {given.to}"
        )
    await context.system.announce_changes([given.to])
    return {"changed": [f"local account {given.to}: has {counted(count)} of {person.address}, as new mail"]}


@router.get("/local-accounts/{address}/deleted-mails", response_model=list[DeletedMailEntry], tags=["mail"])
async def deleted(context: PageDep, user: Reader, address: AddressInPath, q: ApiText = "") -> Any:
    """List the deleted mail of a local account that is still kept; `q` as in the search of mail."""
    async with context.system.database.transaction() as connection:
        await require_local(connection, address)
        return await operations.list_deleted(connection, context.storable(address), q)


@router.post("/local-accounts/{address}/undelete", response_model=OperationOutcome, tags=["mail"])
async def undelete(context: PageDep, user: Administrator, address: AddressInPath, chosen: MailSelection) -> Any:
    """Undelete mails: they become new mail."""
    async with context.system.database.transaction() as connection:
        await require_local(connection, address)
        done = await operations.undelete(connection, context.storable(address), chosen.ids)
        await audit.record_mails(connection, user.name, "brought back deleted mail", done.done, f"of {address}")
    await context.system.announce_changes([context.storable(address)] if done.done else [])
    return done
