"""The page that hands a person's mail over and retires the account: what to do on one page, then a question."""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access.users import CurrentUser
from services.admin.accounts import edit, export
from services.admin.accounts.errors import AccountProblem, AccountsError
from services.admin.accounts.field_problems import CHOOSE
from services.admin.mail import retirement
from services.admin.mail.retirement import RETIRE_SECONDS, Retirement
from services.admin.web.confirmation import Question, ask, is_confirmed
from services.admin.web.forms import FieldErrors, Form, explain
from services.admin.web.local_accounts import CHOICES, load_local
from services.admin.web.page_context import Administrator, PageContext, PageDep, PathAddress
from shared.languages.translation import gettext, lookup, marked
from shared.model import Local
from shared.store import accounts

router = APIRouter(include_in_schema=False, prefix="/local")

LABELS = {
    "mailbox_to": marked("Hand the mailbox over to"),
    "delegate": marked("Future mail goes to"),
    "then": marked("The account"),
}
THEN = {
    "disable": marked("is disabled"),
    "remove": marked("is removed"),
    "keep": marked("stays as it is"),
}
_NEW = {"mailbox_to": "", "delegate": "", "then": "disable", "version": ""}


@router.get("/{address}/retire")
async def show(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Show the page."""
    person = await load_local(context, address)
    async with context.system.database.transaction() as connection:
        delegates = await accounts.load_locals(connection, [person.delegate_id] if person.delegate_id else [])
    delegate = next((each.address for each in delegates), "")
    values = _NEW | {"delegate": delegate, "version": export.version_of(person)}
    return await _page(request, context, user, person, values)


@router.post("/{address}/retire")
async def retire(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Ask, saying what will happen to how many mails; then hand over, and disable or remove the account."""
    person = await load_local(context, address)
    form = Form(await request.form())
    values = form.typed(_NEW)
    system = context.system
    days = system.settings.retention_days
    try:
        wanted = _read(person, values)
        async with system.database.transaction(RETIRE_SECONDS) as connection:
            await edit.require_version(connection, "local", person.address, values["version"])
            plan = await retirement.prepare(connection, wanted, days)
            if is_confirmed(form):
                lines = await retirement.retire(connection, wanted, system.vault, system.passwords, user.name, days)
    except edit.ChangedMeanwhile as error:
        values["version"] = error.version
        return await _page(request, context, user, person, values, status=409, problems=list(map(lookup, error.lines)))
    except AccountsError as error:
        problems, invalid = explain(error.problems, _labels(), person.address)
        return await _page(request, context, user, person, values, status=422, problems=problems, invalid=invalid)
    if not is_confirmed(form):
        title, button = marked("Retire %(person)s?"), marked("Retire %(person)s")
        if wanted.then == "keep":
            title, button = (
                marked("Hand over the mailbox of %(person)s?"),
                marked("Hand over the mailbox of %(person)s"),
            )
        name, back = person.user_name, context.path_to("/local", person.address)
        question = Question(gettext(title, person=name), plan.effects, gettext(button, person=name), back)
        return await ask(request, context, user, form, question)
    await system.announce_changes([wanted.mailbox_to] if wanted.mailbox_to else [])
    to = "/local" if wanted.then == "remove" else context.path_to("/local", person.address)
    return await context.redirect(user, to, *(line.on_page for line in lines))


def _labels() -> dict[str, str]:
    return {name: lookup(label) for name, label in LABELS.items()}


def _read(person: Local, values: dict[str, Any]) -> Retirement:
    """:raises AccountsError: nothing was chosen."""
    if values["then"] not in THEN:
        raise AccountsError([AccountProblem(CHOOSE, "local", field=("then",))])
    then = cast(Any, values["then"])
    return Retirement(person.address, values["mailbox_to"] or None, values["delegate"] or None, then)


async def _page(
    request: Request,
    context: PageContext,
    user: CurrentUser,
    person: Local,
    values: dict[str, Any],
    *,
    status: int = 200,
    problems: list[str] | None = None,
    invalid: FieldErrors | None = None,
) -> Response:
    async with context.system.database.transaction() as connection:
        everyone = await accounts.page_of_locals(connection, limit=CHOICES)
        sharers = await accounts.page_of_locals(connection, external_id=person.external_id, limit=CHOICES)
    return await context.render_page(
        request,
        user,
        "retire.html",
        status=status,
        person=person,
        values=values,
        colleagues=[each for each in everyone if each.id != person.id and each.enabled],
        sharers=[each for each in sharers if each.id != person.id and each.enabled],
        labels=_labels(),
        then=[(key, lookup(words)) for key, words in THEN.items()],
        problems=problems or [],
        invalid=FieldErrors() if invalid is None else invalid,
    )
