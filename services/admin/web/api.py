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
from services.admin.accounts import connection_check, edit, oauth_flow
from services.admin.accounts import export as documents
from services.admin.accounts.file_format import ExternalFields, LocalFields
from services.admin.mail import history, operations, search_index
from services.admin.mail import trace as trace_page
from services.admin.monitoring.status import iso
from services.admin.web.api_schemas import (
    At,
    AuditShown,
    AuthorizationShown,
    Before,
    Brought,
    Changed,
    Chosen,
    Day,
    Deleted,
    DoneShown,
    ExternalAccount,
    Given,
    Held,
    Limit,
    LocalAccount,
    LoginsShown,
    MailShown,
    NameTaken,
    Parked,
    Problem,
    SkippedShown,
    Status,
    StepShown,
    StoryShown,
    Text,
    WaitingShown,
)
from services.admin.web.authorization import redirect_for
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
    400: {"model": Problem, "description": "The request cannot be read."},
    401: {"model": Problem, "description": "Nobody is signed in, and no good token was shown."},
    403: {"model": Problem, "description": "The role of who asks does not allow it."},
    404: {"model": Problem, "description": "There is no such thing."},
    409: {"model": Problem, "description": "The state of things does not allow it."},
    413: {"description": "More was sent than is taken."},
    422: {"model": Problem, "description": "Something is not as it may be; it is named."},
    503: {"model": Problem, "description": "The database does not answer now."},
}
_bearer = HTTPBearer(auto_error=False, description="A token made in the console.")
router = APIRouter(prefix="/api/v1", responses=_PROBLEMS, dependencies=[Depends(_bearer)])


# ------------------------------------------------------------------------------------------ state


@router.get("/status", response_model=Status, tags=["state"])
async def status(here: PageDep, who: Reader) -> Any:
    """Whether mail flows: services, queues, accounts and books, and what is wrong in words."""
    return await here.status.first()


@router.get("/audit", response_model=list[AuditShown], tags=["state"])
async def show_audit(here: PageDep, who: Reader, q: Text = "", before: Before = None, limit: Limit = 100) -> Any:
    """Who did what, the latest first. q: a user, an address or a mail's id."""
    async with here.system.database.transaction() as connection:
        return await audit.page(connection, before, here.text(q), limit)


# ------------------------------------------------------------------------------------------ accounts


@router.get("/external-accounts", response_model=list[ExternalAccount], tags=["accounts"])
async def list_externals(here: PageDep, who: Reader, after: Text = "", q: Text = "", limit: Limit = 50) -> Any:
    """By address. q: a part of it."""
    async with here.system.database.transaction() as connection:
        found = await accounts.page_of_externals(connection, here.text(after), here.text(q), limit)
    return [documents.external_fields(external) for external in found]


@router.get("/external-accounts/{address}", response_model=ExternalAccount, tags=["accounts"])
async def show_external(here: PageDep, who: Reader, address: At) -> Any:
    """One."""
    async with here.system.database.transaction() as connection:
        return documents.external_fields(await _external(connection, address))


@router.put("/external-accounts", response_model=Changed, tags=["accounts"])
async def save_external(here: PageDep, who: Administrator, fields: ExternalFields) -> Any:
    """Make it what is given, added if it is not there. A password left out stays, other fields take their default."""
    return await _save(here, who, "external", fields.model_dump(exclude_unset=True, exclude={"password_file"}))


@router.delete("/external-accounts/{address}", response_model=Changed, tags=["accounts"])
async def remove_external(here: PageDep, who: Administrator, address: At) -> Any:
    """Remove it, unless somebody shares it."""
    return await _remove(here, who, "external", address)


@router.post("/external-accounts/{address}/test", response_model=list[StepShown], tags=["accounts"])
async def test_external(here: PageDep, who: Administrator, address: At) -> Any:
    """Try both directions step by step. Nothing is fetched or sent."""
    async with here.system.database.transaction() as connection:
        external = await _external(connection, address)
    steps = await connection_check.check_connection(here.system, external)
    return [{"step": s.name, "ok": s.ok, "result": s.text, "seconds": round(s.seconds, 3)} for s in steps]


@router.post("/external-accounts/{address}/authorization", response_model=AuthorizationShown, tags=["accounts"])
async def authorize(request: Request, here: PageDep, who: Administrator, address: At) -> Any:
    """Begin to authorize an account with access tokens, or join the authorization that waits already."""
    async with here.system.database.transaction() as connection:
        external = await _external(connection, address)
    return await oauth_flow.start_authorization(here.system, external, who.name, redirect_for(request, here))


@router.get("/external-accounts/{address}/authorization", response_model=AuthorizationShown, tags=["accounts"])
async def show_authorization(here: PageDep, who: Administrator, address: At) -> Any:
    """The one that waits for a person, or how the latest one ended."""
    async with here.system.database.transaction() as connection:
        external = await _external(connection, address)
    progress = await oauth_flow.load_progress(here.system, external)
    if progress is None:
        raise NotFound(f"{address}: nobody has begun to authorize it here")
    return progress


@router.post("/external-accounts/{address}/authorization/answer", response_model=AuthorizationShown, tags=["accounts"])
async def answer_authorization(here: PageDep, who: Administrator, address: At, brought: Brought) -> Any:
    """Give the address to which the provider sent the browser, where that could not be reached."""
    async with here.system.database.transaction() as connection:
        external = await _external(connection, address)
    return await oauth_flow.complete_redirect(here.system, external, brought.url)


@router.delete("/external-accounts/{address}/authorization", response_model=AuthorizationShown, tags=["accounts"])
async def stop_authorization(here: PageDep, who: Administrator, address: At) -> Any:
    """Wait for nobody any more; what was authorized before stays."""
    async with here.system.database.transaction() as connection:
        external = await _external(connection, address)
    await oauth_flow.stop_authorization(here.system, external, who.name)
    return await show_authorization(here, who, address)


@router.get("/external-accounts/{address}/skipped-mails", response_model=list[SkippedShown], tags=["mail"])
async def skipped(here: PageDep, who: Reader, address: At) -> Any:
    """The mails that could not be fetched and stay at the provider, the oldest first."""
    async with here.system.database.transaction() as connection:
        return await operations.list_skipped(connection, await _external(connection, address))


@router.post("/external-accounts/{address}/skipped-mails/retry", response_model=DoneShown, tags=["mail"])
async def retry_skipped(here: PageDep, who: Administrator, address: At, chosen: Chosen) -> Any:
    """Try to fetch these at once, however often that failed."""
    return await _skipped(here, who, address, chosen, retries=True)


@router.post("/external-accounts/{address}/skipped-mails/acknowledge", response_model=DoneShown, tags=["mail"])
async def acknowledge_skipped(here: PageDep, who: Administrator, address: At, chosen: Chosen) -> Any:
    """It is known that these stay there: no problem any more."""
    return await _skipped(here, who, address, chosen, retries=False)


async def _skipped(
    here: PageContext, who: CurrentUser, address: str, chosen: Chosen, *, retries: bool
) -> operations.OperationResult:
    async with here.system.database.transaction() as connection:
        external = await _external(connection, address)
        done = await (operations.fetch_again if retries else operations.acknowledge)(connection, external, chosen.ids)
        await operations.record_skipped(connection, who.name, external, retries, done)
    return done


@router.get("/local-accounts", response_model=list[LocalAccount], tags=["accounts"])
async def list_locals(here: PageDep, who: Reader, after: Text = "", q: Text = "", limit: Limit = 50) -> Any:
    """By address. q: a part of it, or of the user name."""
    async with here.system.database.transaction() as connection:
        found = await accounts.page_of_locals(connection, here.text(after), here.text(q), limit=limit)
        externals = await accounts.load_externals(connection, sorted({person.external_id for person in found}))
        delegates = await accounts.load_locals(connection, [p.delegate_id for p in found if p.delegate_id])
    return [documents.local_fields(person, externals, delegates) for person in found]


@router.get("/local-accounts/{address}", response_model=LocalAccount, tags=["accounts"])
async def show_local(here: PageDep, who: Reader, address: At) -> Any:
    """One."""
    async with here.system.database.transaction() as connection:
        person = await _local(connection, address)
        externals = await accounts.load_externals(connection, [person.external_id])
        delegates = await accounts.load_locals(connection, [person.delegate_id] if person.delegate_id else [])
    return documents.local_fields(person, externals, delegates)


@router.get("/local-accounts/{address}/logins", response_model=LoginsShown, tags=["accounts"])
async def logins(here: PageDep, who: Reader, address: At) -> Any:
    """When this person's mail client logged in last, by POP3 and by SMTP, and who is signed in to the console so."""
    async with here.system.database.transaction() as connection:
        person = await _local(connection, address)
        last = await last_logins.load_last_logins(connection, person.id)
        sessions = await users.list_sessions(connection, person.id)
    return {"last": last, "sessions": sessions}


@router.put("/local-accounts", response_model=Changed, tags=["accounts"])
async def save_local(here: PageDep, who: Administrator, fields: LocalFields) -> Any:
    """Make it what is given, added if it is not there. A password left out stays, other fields take their default."""
    return await _save(here, who, "local", fields.model_dump(exclude_unset=True, exclude={"password_file"}))


@router.delete("/local-accounts/{address}", response_model=Changed, tags=["accounts"])
async def remove_local(here: PageDep, who: Administrator, address: At) -> Any:
    """Remove it; its mail is kept for the retention time."""
    return await _remove(here, who, "local", address)


@router.post("/local-accounts/{address}/restore", response_model=Changed, tags=["accounts"])
async def restore_local(here: PageDep, who: Administrator, address: At) -> Any:
    """Bring back one that was removed, with its mail."""
    async with here.system.database.transaction() as connection:
        person = await operations.restore_account(connection, here.text(address))
        await audit.record_change(connection, who.name, "restored local account", person.address)
    return {"changed": [f"local account {person.address}: restored"]}


@router.post("/local-accounts/{address}/names", response_model=Changed, tags=["accounts"])
async def add_name(here: PageDep, who: Administrator, address: At, taken: NameTaken) -> Any:
    """Give a person a further name, for example one that customers write and that nobody has."""
    async with here.system.database.transaction() as connection:
        person = await _local(connection, address)
        wanted = await edit.add_name(connection, person.address, taken.name)
        outcome = await here.apply(connection, wanted, who)
    return {"changed": outcome.lines}


@router.get("/local-accounts/{address}/deleted-mails", response_model=list[Deleted], tags=["mail"])
async def deleted(here: PageDep, who: Reader, address: At) -> Any:
    """Mail that this person deleted and that is still kept."""
    async with here.system.database.transaction() as connection:
        await _local(connection, address)
        return await operations.list_deleted(connection, here.text(address))


@router.post("/local-accounts/{address}/undelete", response_model=DoneShown, tags=["mail"])
async def undelete(here: PageDep, who: Administrator, address: At, chosen: Chosen) -> Any:
    """Bring some of it back, as new mail."""
    async with here.system.database.transaction() as connection:
        await _local(connection, address)
        done = await operations.undelete(connection, here.text(address), chosen.ids)
        await audit.record_mails(connection, who.name, "brought back deleted mail", done.done, f"of {address}")
    return done


@router.get("/accounts-file", tags=["accounts"], responses={200: {"content": {"application/yaml": {}}}})
async def export(here: PageDep, who: Administrator) -> Response:
    """The accounts file, passwords left out."""
    async with here.system.database.transaction() as connection:
        text = documents.as_yaml(await documents.build_document(connection))
    return Response(text, media_type="application/yaml")


async def _external(connection: Connection, address: str) -> External:
    """:raises NotFound: there is none."""
    found = await accounts.external_by_address(connection, PageContext.text(address))
    if found is None:
        raise NotFound(f"{address}: there is no such external account")
    return found


async def _local(connection: Connection, address: str) -> Local:
    """:raises NotFound: there is none."""
    found = await accounts.local_by_login(connection, PageContext.text(address))
    if found is None:
        raise NotFound(f"{address}: there is no such local account")
    return found


async def _save(here: PageContext, who: CurrentUser, kind: documents.Kind, entry: dict[str, Any]) -> Any:
    wanted = edit.check_entry(kind, entry)
    async with here.system.database.transaction() as connection:
        outcome = await here.apply(connection, wanted, who)
    return {"changed": outcome.lines}


async def _remove(here: PageContext, who: CurrentUser, kind: documents.Kind, address: str) -> Any:
    async with here.system.database.transaction() as connection:
        if kind == "external":
            await _external(connection, address)
        else:
            await _local(connection, address)
        lines = await edit.remove(connection, kind, address)
        await audit.record_change(connection, who.name, f"removed {kind} account", address)
    return {"changed": lines}


# ------------------------------------------------------------------------------------------ mail


@router.get("/mails", response_model=list[MailShown], tags=["mail"])
async def search(
    here: PageDep, who: Reader, q: Text = "", day: Day | None = None, before: Before = None, limit: Limit = 50
) -> Any:
    """The latest mail with all of these words in its subject, names and addresses; or of an account's address."""
    async with here.system.database.transaction() as connection:
        return await search_index.search(connection, q, day, before, limit)


@router.get("/mails/{id}", response_model=StoryShown, tags=["mail"])
async def show_mail(here: PageDep, who: Reader, id: Id) -> Any:
    """One mail: who got it and why, and what happened when."""
    async with here.system.database.transaction() as connection:
        story = await _story(connection, id)
        [traced] = await trace_page.trace(connection, str(id))
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
async def raw(here: PageDep, who: Administrator, id: Id) -> Response:
    """The whole mail. That it was looked into is written down."""
    async with here.system.database.transaction() as connection:
        story = await _story(connection, id)
        await audit.record_mails(connection, who.name, "looked into a mail", [id], story.summary.author)
    return StreamingResponse(blobs.stream(here.system.database, story.blob_id), media_type="message/rfc822")


@router.post("/mails/{id}/give", response_model=Changed, tags=["mail"])
async def give(here: PageDep, who: Administrator, id: Id, given: Given) -> Any:
    """Put a mail that was delivered into a person's mailbox, as new mail; and take it from another one."""
    async with here.system.database.transaction() as connection:
        await operations.give_copy(connection, id, given.to, given.away_from)
        await audit.record_mails(connection, who.name, "gave a mail", [id], f"to {given.to}")
    return {"changed": [f"mail {id}: {given.to} has it"]}


@router.post("/submissions/resend", response_model=DoneShown, tags=["mail"])
async def resend(here: PageDep, who: Administrator, chosen: Chosen) -> Any:
    """Send submissions again to those outside who did not get them."""
    return await _act(here, who, "sent again", operations.resend, chosen)


@router.get("/queue", response_model=list[WaitingShown], tags=["mail"])
async def queue(here: PageDep, who: Reader) -> Any:
    """What waits to be sent, the oldest first."""
    async with here.system.database.transaction() as connection:
        return await operations.list_queue(connection)


@router.post("/queue/retry", response_model=DoneShown, tags=["mail"])
async def retry(here: PageDep, who: Administrator, chosen: Chosen) -> Any:
    """Try these now."""
    return await _act(here, who, "tried now", operations.retry, chosen)


@router.post("/queue/cancel", response_model=DoneShown, tags=["mail"])
async def cancel(here: PageDep, who: Administrator, chosen: Chosen) -> Any:
    """End these without a further try; their authors are told."""
    async with here.system.database.transaction() as connection:
        done = await operations.cancel(connection, chosen.ids, chosen.reason or operations.CANCELLED)
        await audit.record_mails(connection, who.name, "cancelled", done.done, chosen.reason)
    return done


@router.get("/held", response_model=list[Held], tags=["mail"])
async def held(here: PageDep, who: Reader) -> Any:
    """What nobody is there to get."""
    async with here.system.database.transaction() as connection:
        return await operations.list_held(connection)


@router.get("/parked", response_model=list[Parked], tags=["mail"])
async def parked(here: PageDep, who: Reader) -> Any:
    """What is set apart until somebody decides."""
    async with here.system.database.transaction() as connection:
        return await operations.list_parked(connection)


@router.post("/parked/requeue", response_model=DoneShown, tags=["mail"])
async def requeue(here: PageDep, who: Administrator, chosen: Chosen) -> Any:
    """Give these another five tries."""
    return await _act(here, who, "given five more tries", operations.requeue, chosen)


@router.post("/parked/discard", response_model=DoneShown, tags=["mail"])
async def discard(here: PageDep, who: Administrator, chosen: Chosen) -> Any:
    """End parked or held mails undelivered, for a reason."""
    if not chosen.reason.strip():
        raise Permanent("reason: is needed to discard a mail")
    async with here.system.database.transaction() as connection:
        done = await operations.discard(connection, chosen.ids, chosen.reason)
        await audit.record_mails(connection, who.name, "discarded", done.done, chosen.reason)
    return done


async def _story(connection: Connection, id_: int) -> history.MailHistory:
    """:raises NotFound: there is none."""
    story = await history.load_mail_history(connection, id_)
    if story is None:
        raise NotFound(f"{id_}: there is no such mail")
    return story


async def _act(
    here: PageContext,
    who: CurrentUser,
    did: str,
    act: Callable[[Connection, list[int]], Awaitable[operations.OperationResult]],
    chosen: Chosen,
) -> Any:
    """For what takes nothing but the mails."""
    async with here.system.database.transaction() as connection:
        done = await act(connection, chosen.ids)
        await audit.record_mails(connection, who.name, did, done.done)
    return done
