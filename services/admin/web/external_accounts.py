"""The pages of external accounts: the manual's dialog (4.1) with its Test button, and the sharers (its ">>")."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from services.admin.access import audit
from services.admin.access.users import CurrentUser
from services.admin.accounts import apply, connection_check, edit, oauth_flow, provider_presets, tag_probe
from services.admin.accounts import start as account_start
from services.admin.accounts.check_now import load_due_time, request_check, wait_for_check
from services.admin.accounts.connection_check import CheckStep
from services.admin.accounts.errors import AccountProblem, AccountsError
from services.admin.accounts.labels import RELAY_TITLES
from services.admin.formatting import counted
from services.admin.mail import operations
from services.admin.monitoring.found_authors import DAYS, describe_found, load_found_authors
from services.admin.monitoring.status import find_account_problem, find_relaying_problem
from services.admin.web.confirmation import Question, ask, is_confirmed
from services.admin.web.external_form import (
    FORM_PORTS,
    LABELS,
    MAIN_FIELDS,
    NEW,
    account_fields,
    account_values,
    at_fields,
    fill_in_provider,
    find_unanswered,
    labels,
    shown_labels,
    with_trusted_certificate,
    with_usual_ports,
)
from services.admin.web.forms import FieldErrors, Form, explain, tell_changes
from services.admin.web.local_accounts import SHOWN_SHARERS
from services.admin.web.login_methods import CHOICES, RELAY_SECRETS, RELAYS, SECRETS, secret_fields
from services.admin.web.page_context import (
    Administrator,
    NotFound,
    PageContext,
    PageDep,
    PathAddress,
    QueryText,
    Reader,
)
from shared.db.database import Connection
from shared.errors import Permanent
from shared.languages import stored_texts
from shared.languages.translation import gettext, lookup, marked, ngettext
from shared.model import External, Local
from shared.store import accounts, inbound_admin, polls, relays, reply_tags

router = APIRouter(include_in_schema=False, prefix="/external")

DESCRIBE_SECONDS = 8.0
"""Limit for the description of the maildrop after an account is saved: seconds; longer would look like a hung page."""
SKIPPED = 200
"""Limit of the list of skipped mails: mails."""


@router.get("")
async def show_list(
    request: Request, context: PageDep, user: Reader, after: QueryText = "", q: QueryText = ""
) -> Response:
    """List the accounts, a page at a time."""
    async with context.system.database.transaction() as connection:
        matches = await accounts.page_of_externals(
            connection, context.storable(after), context.storable(q), accounts.PAGE + 1
        )
        page = matches[: accounts.PAGE]
        ids = [external.id for external in page]
        polled = await polls.load_poll_states(connection, ids)
        states = await relays.load_status(connection, ids)
        sharers = await accounts.count_sharers(connection, ids)
    rows = [
        (
            e,
            polled.get(e.id),
            find_account_problem(polled.get(e.id)),
            find_relaying_problem(states.get(e.id, [])),
            sharers.get(e.id, 0),
        )
        for e in page
    ]
    more = page[-1].address if len(matches) > len(page) else None
    return await context.render_page(request, user, "externals.html", rows=rows, more=more, after=after, q=q)


@router.get("/new")
async def new(request: Request, context: PageDep, user: Administrator) -> Response:
    """Show the empty dialog."""
    return await _dialog(request, context, user, None, dict(NEW))


@router.post("/new")
async def add(request: Request, context: PageDep, user: Administrator) -> Response:
    """Test the account, fill in the servers of a known provider, or add the account."""
    return await _submit(request, context, user, None)


@router.get("/{address}")
async def show(request: Request, context: PageDep, user: Reader, address: PathAddress) -> Response:
    """Show the dialog of one account."""
    external = await load_external(context, address)
    return await _dialog(request, context, user, external, account_values(external))


@router.post("/{address}")
async def change(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Test the account, or save the changes."""
    return await _submit(request, context, user, await load_external(context, address))


@router.post("/{address}/start")
async def start(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Start the account: everybody who shares it is there, and its mail on hold is released."""
    external = await load_external(context, address)
    form = Form(await request.form())
    try:
        async with context.system.database.transaction() as connection:
            people = await account_start.people_of(connection, external)
            seen = form.text("people") == str(len(people)) or is_confirmed(form)
            if external.hold and people and not seen:
                held = await inbound_admin.count_held(connection, external.id)
                return await ask(request, context, user, form, _start_question(context, external, people, held))
            lines = await account_start.start(connection, external.address, user.name)
    except Permanent as error:
        return await _dialog(
            request, context, user, external, account_values(external), problems=[stored_texts.shown(str(error))]
        )
    said = [stored_texts.shown(line) for line in lines]
    return await context.redirect(
        user, "/", *(said or [gettext("%(address)s is started already.", address=external.address)])
    )


def _start_question(context: PageContext, external: External, people: Sequence[Local], held: int) -> Question:
    title = ngettext(
        "Start %(address)s for %(num)s person?",
        "Start %(address)s for %(num)s people?",
        len(people),
        address=external.address,
    )
    effects = [
        gettext("The page showed another number of people when you pressed the button."),
        gettext(
            "%(mails)s on hold and all mail that comes later will go to them. This cannot be undone.",
            mails=counted(held),
        ),
    ]
    back = context.path_to("/external", external.address)
    return Question(title, effects, gettext("Everybody is here, start"), back, [each.address for each in people])


@router.post("/{address}/check")
async def check_now(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Check the account for new mail at once, and say how it went if that is known soon."""
    external = await load_external(context, address)
    try:
        async with context.system.database.transaction() as connection:
            await request_check(connection, external.address, user.name)
            due = await load_due_time(connection, external.id)
    except Permanent as error:
        return await _dialog(
            request, context, user, external, account_values(external), problems=[stored_texts.shown(str(error))]
        )
    state = await wait_for_check(context.system.database, external.id, due)
    if state is None:
        said = gettext(
            "%(address)s is being checked for new mail. Load this page again to see when it was done.",
            address=external.address,
        )
    elif state.last_error:
        said = gettext("%(address)s was checked for new mail, without success.", address=external.address)
    else:
        said = gettext("%(address)s was checked for new mail, successfully.", address=external.address)
    return await context.redirect(user, context.path_to("/external", external.address), said)


@router.post("/{address}/remove")
async def remove(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Ask whether to remove the account, and remove it, unless a local account shares it."""
    external = await load_external(context, address)
    form = Form(await request.form())
    async with context.system.database.transaction() as connection:
        sharers = [person.address for person in await accounts.page_of_locals(connection, external_id=external.id)]
        users = await accounts.list_token_users(connection, external.address)
    if sharers or users:
        problem = gettext(
            "%(address)s is shared by %(people)s; remove or move them first.",
            address=external.address,
            people=", ".join(sharers),
        )
        if not sharers:
            problem = gettext(
                "%(accounts)s use the access tokens of %(address)s; change or remove them first.",
                accounts=", ".join(users),
                address=external.address,
            )
        return await _dialog(request, context, user, external, account_values(external), problems=[problem])
    if not is_confirmed(form):
        effects = [
            gettext(
                "No more mail of this mailbox is fetched, and nothing is sent from this address. "
                "Mail that is here stays."
            ),
            gettext(
                "The login at the provider is forgotten after a while. The account has to be added again to come back."
            ),
        ]
        back = context.path_to("/external", external.address)
        title = gettext("Remove %(name)s?", name=external.address)
        question = Question(title, effects, gettext("Remove 1 external account"), back)
        return await ask(request, context, user, form, question)
    try:
        async with context.system.database.transaction() as connection:
            lines = await edit.remove(connection, "external", external.address)
            await audit.record_change(connection, user.name, marked("removed external account"), external.address)
    except Permanent as error:
        return await _dialog(
            request, context, user, external, account_values(external), problems=[stored_texts.shown(str(error))]
        )
    return await context.redirect(user, "/external", *lines)


@router.post("/{address}/probe-tag")
async def probe_reply_tag(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Send a probe mail to the account's address with a reply tag."""
    external = await load_external(context, address)
    try:
        probe = await tag_probe.send_probe(context.system, external, user.name)
    except Permanent as error:
        return await _dialog(
            request, context, user, external, account_values(external), problems=[stored_texts.shown(str(error))]
        )
    line = f"{tag_probe.describe_probe(probe)}."
    return await context.redirect(user, f"{context.path_to('/external', external.address)}#reply-tag", line)


@router.post("/{address}/skipped")
async def act_on_skipped(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Retry the skipped mails, or acknowledge them."""
    external = await load_external(context, address)
    form = Form(await request.form())
    ids, retries = form.ids(), form.text("do") == "retry"
    async with context.system.database.transaction() as connection:
        done = await (operations.fetch_again if retries else operations.acknowledge)(connection, external, ids)
        await operations.record_skipped(connection, user.name, external, retries, done)
    count = len(done.done)
    outcome = ngettext("%(num)s mail is acknowledged.", "%(num)s mails are acknowledged.", count)
    if retries:
        outcome = ngettext("%(num)s mail is tried again.", "%(num)s mails are tried again.", count)
    return await context.redirect(user, context.path_to("/external", external.address), outcome)


async def load_external(context: PageContext, address: str) -> External:
    """Return an external account by its address. :raises NotFound: it does not exist."""
    async with context.system.database.transaction() as connection:
        external = await accounts.external_by_address(connection, context.storable(address))
    if external is None:
        raise NotFound(gettext("There is no external account %(address)s.", address=address))
    return external


async def _submit(request: Request, context: PageContext, user: CurrentUser, old: External | None) -> Response:
    form = Form(with_usual_ports(with_trusted_certificate(await request.form())))
    values = form.typed(NEW)
    if old is not None:
        values["address"] = values["address"] or old.address
    secrets = _secrets_of(context, user, form, values)

    def keep() -> None:
        for field, kept in SECRETS.items():
            values[kept] = context.kept_secrets.store(user.session_id, secrets.get(field))

    if form.text("do") == "fill":
        return await _dialog(request, context, user, old, fill_in_provider(values, form.text("provider")))
    unanswered = find_unanswered(form, secrets, old)
    try:
        entry = account_fields(form, secrets, old)
        if form.text("do") == "test":
            requested = edit.check_entry("external", entry if old is not None else {"hold": True} | entry)
            external = apply.external_of(
                requested.external_accounts[0], old, context.system.vault, old.id if old else 0
            )
            undecided = old is None and "history" not in entry
            steps = await connection_check.check_connection(context.system, external, undecided)
            keep()
            values["found"] = next((str(step.mails) for step in steps if step.mails is not None), "")
            return await _dialog(request, context, user, old, values, steps=steps)
        requested = edit.check_entry(
            "external", {"hold": True} | entry if old is None else {"history": old.history} | entry
        )
        if "history" in unanswered:
            raise AccountsError([])  # ``unanswered`` says it
        async with context.system.database.transaction() as connection:
            if old is None and await accounts.external_by_address(connection, values["address"]):
                raise AccountsError(
                    [AccountProblem("is there already", "external", field=("address",), value=values["address"])]
                )
            if old is not None and values["version"]:
                await edit.require_version(connection, "external", old.address, values["version"])
            outcome = await context.apply(connection, requested, user)
    except edit.ChangedMeanwhile as error:
        keep()
        values["version"] = error.version
        assert old is not None
        stored = account_values(await load_external(context, old.address))
        lines, invalid = tell_changes(error, shown_labels(values["protocol"], values, stored), values, stored)
        return await _dialog(request, context, user, old, values, status=409, problems=lines, invalid=invalid)
    except AccountsError as error:
        problems, invalid = explain(at_fields(error.problems, form), labels(), values["address"], unanswered)
        keep()
        return await _dialog(request, context, user, old, values, problems=problems, invalid=invalid)
    address = requested.external_accounts[0].address
    lines = outcome.lines_on_page or [gettext("Nothing was changed.")]
    return await context.redirect(
        user, context.path_to("/external", address), *lines, *await _described(context, outcome.contacts)
    )


def _secrets_of(context: PageContext, user: CurrentUser, form: Form, values: dict[str, Any]) -> dict[str, str]:
    """Return the secrets of the chosen login method and of the SMTP servers, by field: as typed now, or before a test
    or an error."""

    def kept(field: str) -> str | None:
        return context.kept_secrets.load(user.session_id, values[SECRETS[field]])

    fields = secret_fields(values["method"])
    found = {field: form.secret(field) for field in fields}
    if not any(found.values()):
        found = {field: kept(field) or "" for field in fields}
    # A relay without a login of its own has no password.
    relays_typed = [field for field in RELAY_SECRETS if form.text(field.replace("password", "login"))]
    found |= {field: form.secret(field) or kept(field) or "" for field in relays_typed}
    return {field: secret for field, secret in found.items() if secret}


async def _described(context: PageContext, externals: list[External]) -> list[str]:
    """Describe the maildrop at the provider, if it answers in time."""
    try:
        async with asyncio.timeout(DESCRIBE_SECONDS):
            return await connection_check.describe_maildrops(context.system, externals)
    except TimeoutError:
        return [gettext("The provider has not answered yet; use Test for details.")]


async def _dialog(
    request: Request,
    context: PageContext,
    user: CurrentUser,
    external: External | None,
    values: dict[str, Any],
    *,
    status: int = 200,
    steps: list[CheckStep] | None = None,
    problems: list[str] | None = None,
    invalid: FieldErrors | None = None,
) -> Response:
    facts: dict[str, Any] = {
        "skipped": [],
        "sharers": [],
        "sharer_count": 0,
        "people": [],
        "poll": None,
        "relays": [],
        "account_problems": [],
        "held": 0,
        "tag_probe": "",
        "found": [],
    }
    if external is not None:
        async with context.system.database.transaction() as connection:
            facts = await _load_state(connection, external)
    incoming = "imap.host" if values["protocol"] == "imap" else "pop3.host"
    provider = provider_presets.preset_for_hosts(values[incoming], values["smtp.host"])
    provider = provider or provider_presets.preset_for_address(values["address"])
    return await context.render_page(
        request,
        user,
        "external.html",
        status=422 if problems and status == 200 else status,
        external=external,
        values=values,
        steps=steps,
        note=lookup(provider.note or "") if provider else "",
        ports=FORM_PORTS,
        problems=problems or [],
        invalid=FieldErrors() if invalid is None else invalid,
        providers=provider_presets.PROVIDERS,
        methods=[(key, lookup(words)) for key, words in CHOICES],
        days=DAYS,
        shown_sharers=SHOWN_SHARERS,
        labels=labels(),
        relay_names=[name for name in LABELS if name.startswith("smtp") and name not in MAIN_FIELDS],
        further_relays=list(zip(RELAYS[1:], RELAY_TITLES[1:], strict=True)),
        own_logins=_own_logins(external),
        authorized=external is not None and oauth_flow.is_authorized(context.system, external),
        **facts,
    )


def _own_logins(external: External | None) -> list[bool]:
    """Return for each SMTP server of the form whether a password of its own is stored."""
    stored = [relay.password is not None for relay in external.relays] if external is not None else []
    return stored + [False] * (len(RELAYS) - len(stored))


async def _load_state(connection: Connection, external: External) -> dict[str, Any]:
    poll = (await polls.load_poll_states(connection, [external.id])).get(external.id)
    states = (await relays.load_status(connection, [external.id])).get(external.id, [])
    return {
        "people": await account_start.people_of(connection, external) if external.hold else [],
        "sharer_count": (await accounts.count_sharers(connection, [external.id])).get(external.id, 0),
        "sharers": (await accounts.page_of_locals(connection, external_id=external.id, limit=SHOWN_SHARERS + 1)),
        "skipped": (await operations.list_skipped(connection, external))[:SKIPPED],
        "held": await inbound_admin.count_held(connection, external.id),
        "poll": poll,
        "relays": states,
        "found": describe_found(await load_found_authors(connection, external.id)),
        "tag_probe": tag_probe.describe_probe(await reply_tags.load_probe(connection, external.id)),
        "account_problems": [line for line in (find_account_problem(poll), find_relaying_problem(states)) if line],
    }
