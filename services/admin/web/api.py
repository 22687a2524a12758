"""The REST API under /api/v1: the functions of the console for scripts. Fields are those of the command line's JSON.

A script sends a token (``Authorization: Bearer …``). A signed-in browser may call the API, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.security import HTTPBearer

from services.admin.access import audit, users
from services.admin.access.users import CurrentUser
from services.admin.accounts import connection_check, edit, export, oauth_flow
from services.admin.accounts.file_format import ExternalFields, LocalFields
from services.admin.mail import history, operations, search_index, trace
from services.admin.monitoring.status import iso
from services.admin.web.api_schemas import (
    AccountLogins,
    AddressInPath,
    ApiError,
    ApiText,
    AuditRecord,
    AuthorizationState,
    Before,
    ChangeLines,
    ConnectionCheckStep,
    CopyRequest,
    Day,
    DeletedMailEntry,
    ExternalAccount,
    HeldMail,
    IfMatch,
    LocalAccount,
    MailDetails,
    MailListEntry,
    MailSelection,
    NewName,
    OperationOutcome,
    PageLimit,
    ParkedMail,
    QueuedSubmissionEntry,
    RedirectAddress,
    SkippedMailEntry,
    SystemStatus,
)
from services.admin.web.authorization import redirect_uri
from services.admin.web.mail import Id
from services.admin.web.page_context import Administrator, NotFound, PageContext, PageDep, Reader
from shared.db.database import Connection
from shared.errors import Permanent
from shared.model import External, Local
from shared.store import accounts, blobs, last_logins

DESCRIPTION = (
    "Accounts, mail and the status of a mailgroup. Create a token in the console under *Users and tokens*. Times are "
    "ISO 8601 in UTC. Lists come in pages: pass the last entry of a page as `after` or `before` to get the next one."
)

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": ApiError, "description": "The request is malformed."},
    401: {"model": ApiError, "description": "The request has neither a session nor a valid token."},
    403: {"model": ApiError, "description": "The role of the user or token does not allow this."},
    404: {"model": ApiError, "description": "The account or mail does not exist."},
    409: {"model": ApiError, "description": "The current state does not allow this."},
    412: {"model": ApiError, "description": "If-Match names another version: the account was changed meanwhile."},
    413: {"description": "The request is too large."},
    422: {"model": ApiError, "description": "A field is invalid; the answer names it."},
    503: {"model": ApiError, "description": "The database is unavailable."},
}
MAX_EVENTS = 2_000
"""Events of a mail in a response, at most: the first ones; a mail to a thousand people has a thousand."""
_bearer = HTTPBearer(auto_error=False, description="A token created in the console.")
router = APIRouter(prefix="/api/v1", responses=_PROBLEMS, dependencies=[Depends(_bearer)])


# ------------------------------------------------------------------------------------------ state


@router.get("/status", response_model=SystemStatus, tags=["state"])
async def status(context: PageDep, user: Reader) -> Any:
    """Return the status of services, queues and accounts, the reconciliation, and the problems as texts."""
    return await context.status.get_fresh()


@router.get("/audit", response_model=list[AuditRecord], tags=["state"])
async def show_audit(
    context: PageDep, user: Reader, q: ApiText = "", before: Before = None, limit: PageLimit = 100
) -> Any:
    """List the audit, the latest entry first; `q` filters by user, address or id of a mail."""
    async with context.system.database.transaction() as connection:
        return await audit.page(connection, before, context.storable(q), limit)


# ------------------------------------------------------------------------------------------ accounts


@router.get("/external-accounts", response_model=list[ExternalAccount], tags=["accounts"])
async def list_externals(
    context: PageDep, user: Reader, after: ApiText = "", q: ApiText = "", limit: PageLimit = 50
) -> Any:
    """List external accounts ordered by address; `q` filters by substring."""
    async with context.system.database.transaction() as connection:
        externals = await accounts.page_of_externals(connection, context.storable(after), context.storable(q), limit)
    return [export.external_fields(external) for external in externals]


@router.get("/external-accounts/{address}", response_model=ExternalAccount, tags=["accounts"])
async def show_external(response: Response, context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Return one external account. ETag: its version, for If-Match."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    response.headers["ETag"] = f'"{export.version_of(external)}"'
    return export.external_fields(external)


@router.put("/external-accounts", response_model=ChangeLines, tags=["accounts"])
async def save_external(context: PageDep, user: Administrator, fields: ExternalFields, if_match: IfMatch = None) -> Any:
    """Add or replace an external account; with If-Match only the version that was read before.

    Without a password the stored one stays, if the servers' hosts do; other fields take their default.
    """
    entry = fields.model_dump(exclude_unset=True, exclude={"password_file"})
    return await _save(context, user, "external", entry, if_match)


@router.delete("/external-accounts/{address}", response_model=ChangeLines, tags=["accounts"])
async def remove_external(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Remove an external account, unless a local account shares it."""
    return await _remove(context, user, "external", address)


@router.post("/external-accounts/{address}/test", response_model=list[ConnectionCheckStep], tags=["accounts"])
async def test_external(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Test both directions step by step, without fetching or sending mail."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    steps = await connection_check.check_connection(context.system, external)
    return [{"step": s.name, "ok": s.ok, "result": s.text, "seconds": round(s.seconds, 3)} for s in steps]


@router.post("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def authorize(request: Request, context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Begin the OAuth authorization of an account, or return the pending one."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    return await oauth_flow.start_authorization(context.system, external, user.name, redirect_uri(request, context))


@router.get("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def show_authorization(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Return the pending authorization, or the result of the latest one."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    progress = await oauth_flow.load_progress(context.system, external)
    if progress is None:
        raise NotFound(f"{address}: there is no authorization")
    return progress


@router.post("/external-accounts/{address}/authorization/answer", response_model=AuthorizationState, tags=["accounts"])
async def answer_authorization(
    context: PageDep, user: Administrator, address: AddressInPath, brought: RedirectAddress
) -> Any:
    """Complete an authorization with the redirect address of the browser, if that page could not be reached."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    return await oauth_flow.complete_redirect(context.system, external, brought.url)


@router.delete("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def stop_authorization(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Stop the pending authorization; an earlier one stays valid."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    await oauth_flow.stop_authorization(context.system, external, user.name)
    return await show_authorization(context, user, address)


@router.get("/external-accounts/{address}/skipped-mails", response_model=list[SkippedMailEntry], tags=["mail"])
async def skipped(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """List the skipped mails, which stay at the provider, the oldest first."""
    async with context.system.database.transaction() as connection:
        return await operations.list_skipped(connection, await _external(connection, address))


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
        external = await _external(connection, address)
        done = await (operations.fetch_again if retries else operations.acknowledge)(connection, external, chosen.ids)
        await operations.record_skipped(connection, user.name, external, retries, done)
    return done


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
        person = await _local(connection, address)
        externals = await accounts.load_externals(connection, [person.external_id])
        delegates = await accounts.load_locals(connection, [person.delegate_id] if person.delegate_id else [])
    response.headers["ETag"] = f'"{export.version_of(person)}"'
    return export.local_fields(person, externals, delegates)


@router.get("/local-accounts/{address}/logins", response_model=AccountLogins, tags=["accounts"])
async def logins(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Return the last logins of the account by POP3 and SMTP, and its console sessions."""
    async with context.system.database.transaction() as connection:
        person = await _local(connection, address)
        last = await last_logins.load_last_logins(connection, person.id)
        sessions = await users.list_sessions(connection, person.id)
    return {"last": last, "sessions": sessions}


@router.put("/local-accounts", response_model=ChangeLines, tags=["accounts"])
async def save_local(context: PageDep, user: Administrator, fields: LocalFields, if_match: IfMatch = None) -> Any:
    """Add or replace a local account; with If-Match only the version that was read before.

    Without a password the stored one stays; other fields take their default.
    """
    entry = fields.model_dump(exclude_unset=True, exclude={"password_file"})
    return await _save(context, user, "local", entry, if_match)


@router.delete("/local-accounts/{address}", response_model=ChangeLines, tags=["accounts"])
async def remove_local(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Remove a local account; its mail is kept for the retention time."""
    return await _remove(context, user, "local", address)


@router.post("/local-accounts/{address}/restore", response_model=ChangeLines, tags=["accounts"])
async def restore_local(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Restore a removed local account with its mail."""
    async with context.system.database.transaction() as connection:
        person = await operations.restore_account(connection, context.storable(address))
        await audit.record_change(connection, user.name, "restored local account", person.address)
    return {"changed": [f"local account {person.address}: restored"]}


@router.post("/local-accounts/{address}/names", response_model=ChangeLines, tags=["accounts"])
async def add_name(context: PageDep, user: Administrator, address: AddressInPath, taken: NewName) -> Any:
    """Add a further name to a local account, for example one from the list of unknown names."""
    async with context.system.database.transaction() as connection:
        person = await _local(connection, address)
        requested = await edit.add_name(connection, person.address, taken.name)
        outcome = await context.apply(connection, requested, user)
    return {"changed": outcome.lines}


@router.get("/local-accounts/{address}/deleted-mails", response_model=list[DeletedMailEntry], tags=["mail"])
async def deleted(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """List the deleted mail of a local account that is still kept."""
    async with context.system.database.transaction() as connection:
        await _local(connection, address)
        return await operations.list_deleted(connection, context.storable(address))


@router.post("/local-accounts/{address}/undelete", response_model=OperationOutcome, tags=["mail"])
async def undelete(context: PageDep, user: Administrator, address: AddressInPath, chosen: MailSelection) -> Any:
    """Undelete mails: they become new mail."""
    async with context.system.database.transaction() as connection:
        await _local(connection, address)
        done = await operations.undelete(connection, context.storable(address), chosen.ids)
        await audit.record_mails(connection, user.name, "brought back deleted mail", done.done, f"of {address}")
    return done


@router.get("/accounts-file", tags=["accounts"], responses={200: {"content": {"application/yaml": {}}}})
async def export_accounts(context: PageDep, user: Administrator) -> Response:
    """Export the accounts file without passwords."""
    async with context.system.database.transaction() as connection:
        text = export.as_yaml(await export.build_document(connection))
    return Response(text, media_type="application/yaml")


async def _external(connection: Connection, address: str) -> External:
    """:raises NotFound: there is none."""
    external = await accounts.external_by_address(connection, PageContext.storable(address))
    if external is None:
        raise NotFound(f"{address}: there is no such external account")
    return external


async def _local(connection: Connection, address: str) -> Local:
    """:raises NotFound: there is none."""
    person = await accounts.local_by_login(connection, PageContext.storable(address))
    if person is None:
        raise NotFound(f"{address}: there is no such local account")
    return person


async def _save(
    context: PageContext, user: CurrentUser, kind: export.Kind, entry: dict[str, Any], if_match: str | None
) -> Any:
    requested = edit.check_entry(kind, entry)
    async with context.system.database.transaction() as connection:
        if if_match is not None:
            version = if_match.strip().removeprefix("W/").strip('"')
            await edit.require_version(connection, kind, entry["address"], version)
        outcome = await context.apply(connection, requested, user)
    return {"changed": outcome.lines}


async def _remove(context: PageContext, user: CurrentUser, kind: export.Kind, address: str) -> Any:
    async with context.system.database.transaction() as connection:
        if kind == "external":
            await _external(connection, address)
        else:
            await _local(connection, address)
        lines = await edit.remove(connection, kind, address)
        await audit.record_change(connection, user.name, f"removed {kind} account", address)
    return {"changed": lines}


# ------------------------------------------------------------------------------------------ mail


@router.get("/mails", response_model=list[MailListEntry], tags=["mail"])
async def search(
    context: PageDep,
    user: Reader,
    q: ApiText = "",
    day: Day | None = None,
    before: Before = None,
    limit: PageLimit = 50,
) -> Any:
    """Search mail, the latest first: all words of `q` in subject, names and addresses; or the address of an account."""
    async with context.system.database.transaction() as connection:
        return await search_index.search(connection, q, day, before, limit)


@router.get("/mails/{id}", response_model=MailDetails, tags=["mail"])
async def show_mail(context: PageDep, user: Reader, id: Id) -> Any:
    """Return one mail with its recipients, the reasons, and its history: the first 2,000 events."""
    async with context.system.database.transaction() as connection:
        story = await _story(connection, id)
        arrived, sent = story.arrived, story.sent
        [traced] = await trace.describe(
            connection, {id: arrived.message_id} if arrived else {}, {id: sent.message_id} if sent else {}, MAX_EVENTS
        )
    return {
        **traced,
        "at": iso(story.at),
        "sender": story.summary.author,
        "subject": story.summary.subject,
        "octets": story.octets,
        "state": story.state,
        "status": story.status,
        "sentences": story.sentences,
    }


@router.get(
    "/mails/{id}/raw",
    tags=["mail"],
    response_class=StreamingResponse,
    responses={200: {"content": {"message/rfc822": {}}, "description": "The mail as received (RFC 5322)."}},
)
async def raw(context: PageDep, user: Administrator, id: Id) -> Response:
    """Return the whole mail. The audit records the access."""
    async with context.system.database.transaction() as connection:
        story = await _story(connection, id)
        await audit.record_mails(connection, user.name, "looked into a mail", [id], story.summary.author)
    return StreamingResponse(blobs.stream(context.system.database, story.blob_id), media_type="message/rfc822")


@router.post("/mails/{id}/give", response_model=ChangeLines, tags=["mail"])
async def give(context: PageDep, user: Administrator, id: Id, given: CopyRequest) -> Any:
    """Copy a delivered mail into a mailbox as new mail, and optionally remove it from another one."""
    async with context.system.database.transaction() as connection:
        await operations.give_copy(connection, id, given.to, given.away_from)
        await audit.record_mails(connection, user.name, "gave a mail", [id], f"to {given.to}")
    return {"changed": [f"mail {id}: {given.to} has it"]}


@router.post("/submissions/resend", response_model=OperationOutcome, tags=["mail"])
async def resend(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Send submissions again to the external recipients that did not get them."""
    return await _act(context, user, "sent again", operations.resend, chosen)


@router.get("/queue", response_model=list[QueuedSubmissionEntry], tags=["mail"])
async def queue(context: PageDep, user: Reader) -> Any:
    """List the submissions that wait to be sent, the oldest first."""
    async with context.system.database.transaction() as connection:
        return await operations.list_queue(connection)


@router.post("/queue/retry", response_model=OperationOutcome, tags=["mail"])
async def retry(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Try to send these submissions now."""
    return await _act(context, user, "tried now", operations.retry, chosen)


@router.post("/queue/cancel", response_model=OperationOutcome, tags=["mail"])
async def cancel(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Cancel these submissions; their authors get a failure notice."""
    async with context.system.database.transaction() as connection:
        done = await operations.cancel(connection, chosen.ids, chosen.reason or operations.CANCELLED)
        await audit.record_mails(connection, user.name, "cancelled", done.done, chosen.reason)
    return done


@router.get("/held", response_model=list[HeldMail], tags=["mail"])
async def held(context: PageDep, user: Reader) -> Any:
    """List mail on hold (held): no enabled user shares the account."""
    async with context.system.database.transaction() as connection:
        return await operations.list_held(connection)


@router.get("/parked", response_model=list[ParkedMail], tags=["mail"])
async def parked(context: PageDep, user: Reader) -> Any:
    """List mail that needs attention (parked)."""
    async with context.system.database.transaction() as connection:
        return await operations.list_parked(connection)


@router.post("/parked/requeue", response_model=OperationOutcome, tags=["mail"])
async def requeue(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Requeue these mails with five more tries."""
    return await _act(context, user, "given five more tries", operations.requeue, chosen)


@router.post("/parked/discard", response_model=OperationOutcome, tags=["mail"])
async def discard(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Discard mails that are parked or on hold, for a reason."""
    if not chosen.reason.strip():
        raise Permanent("reason: is needed to discard a mail")
    async with context.system.database.transaction() as connection:
        done = await operations.discard(connection, chosen.ids, chosen.reason)
        await audit.record_mails(connection, user.name, "discarded", done.done, chosen.reason)
    return done


async def _story(connection: Connection, mail_id: int) -> history.MailHistory:
    """:raises NotFound: there is none."""
    story = await history.load_mail_history(connection, mail_id)
    if story is None:
        raise NotFound(f"{mail_id}: there is no such mail")
    return story


async def _act(
    context: PageContext,
    user: CurrentUser,
    did: str,
    act: Callable[[Connection, list[int]], Awaitable[operations.OperationResult]],
    chosen: MailSelection,
) -> Any:
    """Run an operation that takes nothing but the ids of mails."""
    async with context.system.database.transaction() as connection:
        done = await act(connection, chosen.ids)
        await audit.record_mails(connection, user.name, did, done.done)
    return done
