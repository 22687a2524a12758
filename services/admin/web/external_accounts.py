"""The pages of external accounts: the manual's dialog (4.1) with its Test button, and the sharers (its ">>")."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import FormData

from services.admin.access import audit
from services.admin.access.users import CurrentUser
from services.admin.accounts import apply, connection_check, edit, export, oauth_flow, provider_presets
from services.admin.accounts import start as account_start
from services.admin.accounts.connection_check import CheckStep
from services.admin.accounts.errors import AccountProblem, AccountsError
from services.admin.accounts.field_problems import EMPTY
from services.admin.accounts.labels import EXTERNAL
from services.admin.formatting import counted
from services.admin.mail import operations
from services.admin.monitoring.status import find_account_problem
from services.admin.web.confirmation import Question, ask, is_confirmed
from services.admin.web.forms import FieldErrors, Form, explain, shown, tell_changes
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
from shared.model import External, Local
from shared.store import accounts, inbound_admin, polls, relay_status

router = APIRouter(include_in_schema=False, prefix="/external")

DESCRIBE_SECONDS = 8.0
"""Limit for the description of the maildrop after an account is saved: seconds; longer would look like a hung page."""
SKIPPED = 200
"""Limit of the list of skipped mails: mails."""
_TOKENS = ("google", "microsoft", "other")
"""Login methods with access tokens: the issuers that we know by name, and all others."""
_ENDPOINTS = tuple(name for name in EXTERNAL if name.startswith("oauth.issuer."))
_NEW: dict[str, Any] = {
    "address": "",
    "enabled": True,
    "login": "",
    "method": "password",
    "oauth.client_id": "",
    **dict.fromkeys(_ENDPOINTS, ""),
    "oauth.kept": "",
    "pop3.host": "",
    "pop3.port": "995",
    "pop3.tls": "implicit",
    "pop3.tls_fingerprint": "",
    "smtp.host": "",
    "smtp.port": "465",
    "smtp.tls": "implicit",
    "smtp.tls_fingerprint": "",
    "smtp.auth": True,
    "smtp.connections": "2",
    "poll_seconds": "60",
    "history": "",
    "delete_after_days": "",
    "delete_history": False,
    "reply_to_author": True,
    "answer_notes": False,
    "aliases": "",
    "kept": "",
    "found": "",  # mails that the latest test counted at the provider
    "version": "",
}


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
        states = await relay_status.load_status(connection, ids)
        sharers = await accounts.count_sharers(connection, ids)
    rows = [
        (
            e,
            polled.get(e.id),
            find_account_problem(polled.get(e.id)),
            find_account_problem(states.get(e.id)),
            sharers.get(e.id, 0),
        )
        for e in page
    ]
    more = page[-1].address if len(matches) > len(page) else None
    return await context.render_page(request, user, "externals.html", rows=rows, more=more, after=after, q=q)


@router.get("/new")
async def new(request: Request, context: PageDep, user: Administrator) -> Response:
    """Show the empty dialog."""
    return await _dialog(request, context, user, None, dict(_NEW))


@router.post("/new")
async def add(request: Request, context: PageDep, user: Administrator) -> Response:
    """Test the account, fill in the servers of a known provider, or add the account."""
    return await _submit(request, context, user, None)


@router.get("/{address}")
async def show(request: Request, context: PageDep, user: Reader, address: PathAddress) -> Response:
    """Show the dialog of one account."""
    external = await load_external(context, address)
    return await _dialog(request, context, user, external, _values(external))


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
        return await _dialog(request, context, user, external, _values(external), problems=[str(error)])
    return await context.redirect(user, "/", *(lines or [f"{external.address} is started already."]))


def _start_question(context: PageContext, external: External, people: Sequence[Local], held: int) -> Question:
    title = f"Start {external.address} for {counted(len(people), 'person')}?"
    effects = [
        "The page showed another number of people when you pressed the button.",
        f"{counted(held)} on hold and all mail that comes later will go to them. This cannot be undone.",
    ]
    back = context.path_to("/external", external.address)
    return Question(title, effects, "Everybody is here, start", back, [each.address for each in people])


@router.post("/{address}/remove")
async def remove(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Ask whether to remove the account, and remove it, unless a local account shares it."""
    external = await load_external(context, address)
    form = Form(await request.form())
    async with context.system.database.transaction() as connection:
        sharers = [person.address for person in await accounts.page_of_locals(connection, external_id=external.id)]
    if sharers:
        problem = f"{external.address} is shared by {', '.join(sharers)}; remove or move them first."
        return await _dialog(request, context, user, external, _values(external), problems=[problem])
    if not is_confirmed(form):
        effects = [
            "No more mail of this mailbox is fetched, and nothing is sent from this address. Mail that is here stays.",
            "The login at the provider is forgotten after a while. The account has to be added again to come back.",
        ]
        back = context.path_to("/external", external.address)
        question = Question(f"Remove {external.address}?", effects, "Remove 1 external account", back)
        return await ask(request, context, user, form, question)
    try:
        async with context.system.database.transaction() as connection:
            lines = await edit.remove(connection, "external", external.address)
            await audit.record_change(connection, user.name, "removed external account", external.address)
    except Permanent as error:
        return await _dialog(request, context, user, external, _values(external), problems=[str(error)])
    return await context.redirect(user, "/external", *lines)


@router.post("/{address}/skipped")
async def act_on_skipped(request: Request, context: PageDep, user: Administrator, address: PathAddress) -> Response:
    """Retry the skipped mails, or acknowledge them."""
    external = await load_external(context, address)
    form = Form(await request.form())
    ids, retries = form.ids(), form.text("do") == "retry"
    async with context.system.database.transaction() as connection:
        done = await (operations.fetch_again if retries else operations.acknowledge)(connection, external, ids)
        await operations.record_skipped(connection, user.name, external, retries, done)
    outcome = f"{counted(len(done.done), verbs=('is', 'are'))} {'tried again' if retries else 'acknowledged'}."
    return await context.redirect(user, context.path_to("/external", external.address), outcome)


async def load_external(context: PageContext, address: str) -> External:
    """Return an external account by its address. :raises NotFound: it does not exist."""
    async with context.system.database.transaction() as connection:
        external = await accounts.external_by_address(connection, context.storable(address))
    if external is None:
        raise NotFound(f"There is no external account {address}.")
    return external


def _values(external: External) -> dict[str, Any]:
    """Return the values of the dialog for an account."""
    values = _NEW | _flat(export.external_fields(external)) | {"version": export.version_of(external)}
    if external.oauth is not None:
        values["method"] = external.oauth.name or "other"
    return values


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields of the accounts file to the dotted names of the form. Pure."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: shown(value)}
    return values


def _fields(form: Form, secret: str | None, old: External | None) -> dict[str, Any]:
    """Return the typed values as an entry of the accounts file. secret: the password, or the OAuth client's secret."""
    entry: dict[str, Any] = {
        "address": form.text("address") if old is None else old.address,
        "enabled": form.flag("enabled"),
        "poll_seconds": form.number("poll_seconds"),
        "delete_after_days": form.number("delete_after_days"),
        "delete_history": form.flag("delete_history"),
        "reply_to_author": form.flag("reply_to_author"),
        "answer_notes": form.flag("answer_notes"),
        "aliases": form.lines("aliases"),
    }
    if history := form.text("history"):
        entry["history"] = history
    if login := form.text("login"):
        entry["login"] = login
    for name in ("pop3", "smtp"):
        entry[name] = {"host": form.text(f"{name}.host"), "tls": form.text(f"{name}.tls")}
        if (port := form.number(f"{name}.port")) is not None:
            entry[name]["port"] = port
        if fingerprint := form.text(f"{name}.tls_fingerprint"):
            entry[name]["tls_fingerprint"] = fingerprint
    entry["smtp"] |= {"auth": form.flag("smtp.auth"), "connections": form.number("smtp.connections")}
    if (method := form.text("method")) in _TOKENS:
        endpoints = {name.rpartition(".")[2]: form.text(name) for name in _ENDPOINTS if form.text(name)}
        issuer = endpoints if method == "other" else method
        entry["oauth"] = {"issuer": issuer, "client_id": form.text("oauth.client_id")}
        if secret:
            entry["oauth"]["client_secret"] = secret
    elif secret:
        entry["password"] = secret
    return entry


async def _submit(request: Request, context: PageContext, user: CurrentUser, old: External | None) -> Response:
    form = Form(_trusting(await request.form()))
    values = form.typed(_NEW)
    if old is not None:
        values["address"] = old.address
    field, kept = ("oauth.client_secret", "oauth.kept") if values["method"] in _TOKENS else ("password", "kept")
    secret = form.secret(field) or context.kept_secrets.load(user.session_id, values[kept])
    if form.text("do") == "fill":
        return await _dialog(request, context, user, old, _filled(values, form.text("provider")))
    unanswered = _find_unanswered(form, secret, old)
    try:
        entry = _fields(form, secret, old)
        if form.text("do") == "test":
            requested = edit.check_entry("external", entry if old is not None else {"hold": True} | entry)
            external = apply.external_of(
                requested.external_accounts[0], old, context.system.vault, old.id if old else 0
            )
            undecided = old is None and "history" not in entry
            steps = await connection_check.check_connection(context.system, external, undecided)
            values[kept] = context.kept_secrets.store(user.session_id, secret)
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
        values[kept] = context.kept_secrets.store(user.session_id, secret)
        values["version"] = error.version
        assert old is not None
        lines, invalid = tell_changes(error, EXTERNAL, values, _values(await load_external(context, old.address)))
        return await _dialog(request, context, user, old, values, status=409, problems=lines, invalid=invalid)
    except AccountsError as error:
        problems, invalid = explain(error.problems, EXTERNAL, values["address"], unanswered)
        values[kept] = context.kept_secrets.store(user.session_id, secret)
        return await _dialog(request, context, user, old, values, problems=problems, invalid=invalid)
    address = requested.external_accounts[0].address
    lines = outcome.lines_on_page or ["Nothing was changed."]
    return await context.redirect(
        user, context.path_to("/external", address), *lines, *await _described(context, outcome.contacts)
    )


def _trusting(sent: FormData) -> FormData | dict[str, Any]:
    """Return the form with the certificate that is to be trusted, to test the account again; else as it was sent."""
    server, _, fingerprint = str(sent.get("trust", "")).partition(" ")
    if server not in ("pop3", "smtp"):
        return sent
    return {**sent, f"{server}.tls_fingerprint": fingerprint, "do": "test"}


def _find_unanswered(form: Form, secret: str | None, old: External | None) -> dict[str, str]:
    """Return the errors of the fields that a new account needs and that have no answer yet."""
    if old is not None:
        return {}
    found = {}
    if not secret and form.text("method") not in _TOKENS:
        found["password"] = EMPTY
    if not form.text("history") and form.text("do") != "test":
        found["history"] = "choose whether it is delivered, or stays at the provider"
    return found


async def _described(context: PageContext, externals: list[External]) -> list[str]:
    """Describe the maildrop at the provider, if it answers in time."""
    try:
        async with asyncio.timeout(DESCRIBE_SECONDS):
            return await connection_check.describe_maildrop(context.system, externals)
    except TimeoutError:
        return ["The provider has not answered yet; use Test for details."]


def _filled(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the typed values with the servers of the chosen provider, or of the provider of the address. Pure."""
    provider = provider_presets.preset_for_key(key) or provider_presets.preset_for_address(values["address"])
    domain = values["address"].rpartition("@")[2]
    if provider is None:
        guess = {"pop3.host": f"pop3.{domain}", "smtp.host": f"smtp.{domain}"} if domain else {}
        return values | {name: host for name, host in guess.items() if not values[name]}
    filled = dict(values)
    for name, server in (("pop3", provider.pop3), ("smtp", provider.smtp)):
        filled[f"{name}.host"] = server.host if server else ""
        if server:
            filled |= {f"{name}.port": str(server.port), f"{name}.tls": server.tls}
    if provider.oauth == "microsoft":
        filled["method"] = provider.oauth
    return filled


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
        "people": [],
        "poll": None,
        "relay": None,
        "account_problems": [],
        "held": 0,
    }
    if external is not None:
        async with context.system.database.transaction() as connection:
            facts = await _load_state(connection, external)
    note = provider_presets.advice(values["pop3.host"], values["smtp.host"])
    by_address = provider_presets.preset_for_address(values["address"])
    if note is None and by_address is not None:
        note = by_address.note
    return await context.render_page(
        request,
        user,
        "external.html",
        status=422 if problems and status == 200 else status,
        external=external,
        values=values,
        steps=steps,
        note=note,
        problems=problems or [],
        invalid=FieldErrors() if invalid is None else invalid,
        providers=provider_presets.PROVIDERS,
        authorized=external is not None and oauth_flow.is_authorized(context.system, external),
        **facts,
    )


async def _load_state(connection: Connection, external: External) -> dict[str, Any]:
    poll = (await polls.load_poll_states(connection, [external.id])).get(external.id)
    relay = (await relay_status.load_status(connection, [external.id])).get(external.id)
    return {
        "people": await account_start.people_of(connection, external) if external.hold else [],
        "sharers": (await accounts.page_of_locals(connection, external_id=external.id, limit=200)),
        "skipped": (await operations.list_skipped(connection, external))[:SKIPPED],
        "held": await inbound_admin.count_held(connection, external.id),
        "poll": poll,
        "relay": relay,
        "account_problems": [line for line in (find_account_problem(poll), find_account_problem(relay)) if line],
    }
