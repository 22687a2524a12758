"""The REST API under /api/v1: what the console does, for scripts. Forms are those of the command line's JSON.

A script shows a token (``Authorization: Bearer …``); a browser that is signed in may look, too.
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
    "Accounts, mail and the state of a mailgroup. Make a token in the console under *Users and tokens*. Times are "
    "ISO 8601 in UTC; lists come in pages, the next one begins `after` or `before` the last entry of the one before."
)

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": ApiError, "description": "The request cannot be read."},
    401: {"model": ApiError, "description": "Nobody is signed in, and no good token was shown."},
    403: {"model": ApiError, "description": "The role of who asks does not allow it."},
    404: {"model": ApiError, "description": "There is no such thing."},
    409: {"model": ApiError, "description": "The state of things does not allow it."},
    413: {"description": "More was sent than is taken."},
    422: {"model": ApiError, "description": "Something is not as it may be; it is named."},
    503: {"model": ApiError, "description": "The database does not answer now."},
}
_bearer = HTTPBearer(auto_error=False, description="A token made in the console.")
router = APIRouter(prefix="/api/v1", responses=_PROBLEMS, dependencies=[Depends(_bearer)])


# ------------------------------------------------------------------------------------------ state


@router.get("/status", response_model=SystemStatus, tags=["state"])
async def status(context: PageDep, user: Reader) -> Any:
    """Whether mail flows: services, queues, accounts and books, and what is wrong in words."""
    return await context.status.get_fresh()


@router.get("/audit", response_model=list[AuditRecord], tags=["state"])
async def show_audit(
    context: PageDep, user: Reader, q: ApiText = "", before: Before = None, limit: PageLimit = 100
) -> Any:
    """Who did what, the latest first. q: a user, an address or a mail's id."""
    async with context.system.database.transaction() as connection:
        return await audit.page(connection, before, context.storable(q), limit)


# ------------------------------------------------------------------------------------------ accounts


@router.get("/external-accounts", response_model=list[ExternalAccount], tags=["accounts"])
async def list_externals(
    context: PageDep, user: Reader, after: ApiText = "", q: ApiText = "", limit: PageLimit = 50
) -> Any:
    """By address. q: a part of it."""
    async with context.system.database.transaction() as connection:
        found = await accounts.page_of_externals(connection, context.storable(after), context.storable(q), limit)
    return [export.external_fields(external) for external in found]


@router.get("/external-accounts/{address}", response_model=ExternalAccount, tags=["accounts"])
async def show_external(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """One."""
    async with context.system.database.transaction() as connection:
        return export.external_fields(await _external(connection, address))


@router.put("/external-accounts", response_model=ChangeLines, tags=["accounts"])
async def save_external(context: PageDep, user: Administrator, fields: ExternalFields) -> Any:
    """Make it what is given, added if it is not there. A password left out stays, other fields take their default."""
    return await _save(context, user, "external", fields.model_dump(exclude_unset=True, exclude={"password_file"}))


@router.delete("/external-accounts/{address}", response_model=ChangeLines, tags=["accounts"])
async def remove_external(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Remove it, unless somebody shares it."""
    return await _remove(context, user, "external", address)


@router.post("/external-accounts/{address}/test", response_model=list[ConnectionCheckStep], tags=["accounts"])
async def test_external(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Try both directions step by step. Nothing is fetched or sent."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    steps = await connection_check.check_connection(context.system, external)
    return [{"step": s.name, "ok": s.ok, "result": s.text, "seconds": round(s.seconds, 3)} for s in steps]


@router.post("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def authorize(request: Request, context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Begin to authorize an account with access tokens, or join the authorization that waits already."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    return await oauth_flow.start_authorization(context.system, external, user.name, redirect_uri(request, context))


@router.get("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def show_authorization(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """The one that waits for a person, or how the latest one ended."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    progress = await oauth_flow.load_progress(context.system, external)
    if progress is None:
        raise NotFound(f"{address}: nobody has begun to authorize it here")
    return progress


@router.post("/external-accounts/{address}/authorization/answer", response_model=AuthorizationState, tags=["accounts"])
async def answer_authorization(
    context: PageDep, user: Administrator, address: AddressInPath, brought: RedirectAddress
) -> Any:
    """Give the address to which the provider sent the browser, where that could not be reached."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    return await oauth_flow.complete_redirect(context.system, external, brought.url)


@router.delete("/external-accounts/{address}/authorization", response_model=AuthorizationState, tags=["accounts"])
async def stop_authorization(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Wait for nobody any more; what was authorized before stays."""
    async with context.system.database.transaction() as connection:
        external = await _external(connection, address)
    await oauth_flow.stop_authorization(context.system, external, user.name)
    return await show_authorization(context, user, address)


@router.get("/external-accounts/{address}/skipped-mails", response_model=list[SkippedMailEntry], tags=["mail"])
async def skipped(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """The mails that could not be fetched and stay at the provider, the oldest first."""
    async with context.system.database.transaction() as connection:
        return await operations.list_skipped(connection, await _external(connection, address))


@router.post("/external-accounts/{address}/skipped-mails/retry", response_model=OperationOutcome, tags=["mail"])
async def retry_skipped(context: PageDep, user: Administrator, address: AddressInPath, chosen: MailSelection) -> Any:
    """Try to fetch these at once, however often that failed."""
    return await _skipped(context, user, address, chosen, retries=True)


@router.post("/external-accounts/{address}/skipped-mails/acknowledge", response_model=OperationOutcome, tags=["mail"])
async def acknowledge_skipped(
    context: PageDep, user: Administrator, address: AddressInPath, chosen: MailSelection
) -> Any:
    """It is known that these stay there: no problem any more."""
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
    """By address. q: a part of it, or of the user name."""
    async with context.system.database.transaction() as connection:
        found = await accounts.page_of_locals(connection, context.storable(after), context.storable(q), limit=limit)
        externals = await accounts.load_externals(connection, sorted({person.external_id for person in found}))
        delegates = await accounts.load_locals(connection, [p.delegate_id for p in found if p.delegate_id])
    return [export.local_fields(person, externals, delegates) for person in found]


@router.get("/local-accounts/{address}", response_model=LocalAccount, tags=["accounts"])
async def show_local(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """One."""
    async with context.system.database.transaction() as connection:
        person = await _local(connection, address)
        externals = await accounts.load_externals(connection, [person.external_id])
        delegates = await accounts.load_locals(connection, [person.delegate_id] if person.delegate_id else [])
    return export.local_fields(person, externals, delegates)


@router.get("/local-accounts/{address}/logins", response_model=AccountLogins, tags=["accounts"])
async def logins(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """When this person's mail client logged in last, by POP3 and by SMTP, and who is signed in to the console so."""
    async with context.system.database.transaction() as connection:
        person = await _local(connection, address)
        last = await last_logins.load_last_logins(connection, person.id)
        sessions = await users.list_sessions(connection, person.id)
    return {"last": last, "sessions": sessions}


@router.put("/local-accounts", response_model=ChangeLines, tags=["accounts"])
async def save_local(context: PageDep, user: Administrator, fields: LocalFields) -> Any:
    """Make it what is given, added if it is not there. A password left out stays, other fields take their default."""
    return await _save(context, user, "local", fields.model_dump(exclude_unset=True, exclude={"password_file"}))


@router.delete("/local-accounts/{address}", response_model=ChangeLines, tags=["accounts"])
async def remove_local(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Remove it; its mail is kept for the retention time."""
    return await _remove(context, user, "local", address)


@router.post("/local-accounts/{address}/restore", response_model=ChangeLines, tags=["accounts"])
async def restore_local(context: PageDep, user: Administrator, address: AddressInPath) -> Any:
    """Bring back one that was removed, with its mail."""
    async with context.system.database.transaction() as connection:
        person = await operations.restore_account(connection, context.storable(address))
        await audit.record_change(connection, user.name, "restored local account", person.address)
    return {"changed": [f"local account {person.address}: restored"]}


@router.post("/local-accounts/{address}/names", response_model=ChangeLines, tags=["accounts"])
async def add_name(context: PageDep, user: Administrator, address: AddressInPath, taken: NewName) -> Any:
    """Give a person a further name, for example one that customers write and that nobody has."""
    async with context.system.database.transaction() as connection:
        person = await _local(connection, address)
        wanted = await edit.add_name(connection, person.address, taken.name)
        outcome = await context.apply(connection, wanted, user)
    return {"changed": outcome.lines}


@router.get("/local-accounts/{address}/deleted-mails", response_model=list[DeletedMailEntry], tags=["mail"])
async def deleted(context: PageDep, user: Reader, address: AddressInPath) -> Any:
    """Mail that this person deleted and that is still kept."""
    async with context.system.database.transaction() as connection:
        await _local(connection, address)
        return await operations.list_deleted(connection, context.storable(address))


@router.post("/local-accounts/{address}/undelete", response_model=OperationOutcome, tags=["mail"])
async def undelete(context: PageDep, user: Administrator, address: AddressInPath, chosen: MailSelection) -> Any:
    """Bring some of it back, as new mail."""
    async with context.system.database.transaction() as connection:
        await _local(connection, address)
        done = await operations.undelete(connection, context.storable(address), chosen.ids)
        await audit.record_mails(connection, user.name, "brought back deleted mail", done.done, f"of {address}")
    return done


@router.get("/accounts-file", tags=["accounts"], responses={200: {"content": {"application/yaml": {}}}})
async def export_accounts(context: PageDep, user: Administrator) -> Response:
    """The accounts file, passwords left out."""
    async with context.system.database.transaction() as connection:
        text = export.as_yaml(await export.build_document(connection))
    return Response(text, media_type="application/yaml")


async def _external(connection: Connection, address: str) -> External:
    """:raises NotFound: there is none."""
    found = await accounts.external_by_address(connection, PageContext.storable(address))
    if found is None:
        raise NotFound(f"{address}: there is no such external account")
    return found


async def _local(connection: Connection, address: str) -> Local:
    """:raises NotFound: there is none."""
    found = await accounts.local_by_login(connection, PageContext.storable(address))
    if found is None:
        raise NotFound(f"{address}: there is no such local account")
    return found


async def _save(context: PageContext, user: CurrentUser, kind: export.Kind, entry: dict[str, Any]) -> Any:
    wanted = edit.check_entry(kind, entry)
    async with context.system.database.transaction() as connection:
        outcome = await context.apply(connection, wanted, user)
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
    """The latest mail with all of these words in its subject, names and addresses; or of an account's address."""
    async with context.system.database.transaction() as connection:
        return await search_index.search(connection, q, day, before, limit)


@router.get("/mails/{id}", response_model=MailDetails, tags=["mail"])
async def show_mail(context: PageDep, user: Reader, id: Id) -> Any:
    """One mail: who got it and why, and what happened when."""
    async with context.system.database.transaction() as connection:
        story = await _story(connection, id)
        [traced] = await trace.trace(connection, str(id))
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
    responses={200: {"content": {"message/rfc822": {}}, "description": "The mail itself."}},
)
async def raw(context: PageDep, user: Administrator, id: Id) -> Response:
    """The whole mail. That it was looked into is written down."""
    async with context.system.database.transaction() as connection:
        story = await _story(connection, id)
        await audit.record_mails(connection, user.name, "looked into a mail", [id], story.summary.author)
    return StreamingResponse(blobs.stream(context.system.database, story.blob_id), media_type="message/rfc822")


@router.post("/mails/{id}/give", response_model=ChangeLines, tags=["mail"])
async def give(context: PageDep, user: Administrator, id: Id, given: CopyRequest) -> Any:
    """Put a mail that was delivered into a person's mailbox, as new mail; and take it from another one."""
    async with context.system.database.transaction() as connection:
        await operations.give_copy(connection, id, given.to, given.away_from)
        await audit.record_mails(connection, user.name, "gave a mail", [id], f"to {given.to}")
    return {"changed": [f"mail {id}: {given.to} has it"]}


@router.post("/submissions/resend", response_model=OperationOutcome, tags=["mail"])
async def resend(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Send submissions again to those outside who did not get them."""
    return await _act(context, user, "sent again", operations.resend, chosen)


@router.get("/queue", response_model=list[QueuedSubmissionEntry], tags=["mail"])
async def queue(context: PageDep, user: Reader) -> Any:
    """What waits to be sent, the oldest first."""
    async with context.system.database.transaction() as connection:
        return await operations.list_queue(connection)


@router.post("/queue/retry", response_model=OperationOutcome, tags=["mail"])
async def retry(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Try these now."""
    return await _act(context, user, "tried now", operations.retry, chosen)


@router.post("/queue/cancel", response_model=OperationOutcome, tags=["mail"])
async def cancel(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """End these without a further try; their authors are told."""
    async with context.system.database.transaction() as connection:
        done = await operations.cancel(connection, chosen.ids, chosen.reason or operations.CANCELLED)
        await audit.record_mails(connection, user.name, "cancelled", done.done, chosen.reason)
    return done


@router.get("/held", response_model=list[HeldMail], tags=["mail"])
async def held(context: PageDep, user: Reader) -> Any:
    """What nobody is there to get."""
    async with context.system.database.transaction() as connection:
        return await operations.list_held(connection)


@router.get("/parked", response_model=list[ParkedMail], tags=["mail"])
async def parked(context: PageDep, user: Reader) -> Any:
    """What is set apart until somebody decides."""
    async with context.system.database.transaction() as connection:
        return await operations.list_parked(connection)


@router.post("/parked/requeue", response_model=OperationOutcome, tags=["mail"])
async def requeue(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """Give these another five tries."""
    return await _act(context, user, "given five more tries", operations.requeue, chosen)


@router.post("/parked/discard", response_model=OperationOutcome, tags=["mail"])
async def discard(context: PageDep, user: Administrator, chosen: MailSelection) -> Any:
    """End parked or held mails undelivered, for a reason."""
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
    """For what takes nothing but the mails."""
    async with context.system.database.transaction() as connection:
        done = await act(connection, chosen.ids)
        await audit.record_mails(connection, user.name, did, done.done)
    return done
