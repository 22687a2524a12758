"""Every form of every page: it does one thing, and what cannot be undone is asked first."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from fastapi.routing import APIRoute

from services.admin.web import client_autoconfig
from services.admin.web.app import ROUTERS
from services.admin.web.queues import ACTIONS
from shared.errors import Temporary
from tests import console, servers
from tests.company import SUPPORT, external
from tests.console import Browser, HtmlForm, forms, stored, text
from tests.integration.console.test_mail_pages import fill

SEEDS = f"""
insert into uidl_ledger (external_id, uidl, state, octets, reason, tries)
    select id, 'u-1', 'skipped', 60000000, 'larger than 50 MB', 3 from external_accounts where address = '{SUPPORT}';
update inbound set state = 'parked', error = 'it broke', origin = 'router' where message_id = 's@customer.example';
update inbound set state = 'held', reason = 'held: nobody' where message_id = 'q@customer.example';
insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version, expunged_at, expunged_as)
    select f.id, 1000, i.blob_id, i.id, 1, 1, now(), 'deleted'
    from local_accounts l join folders f on f.local_id = l.id and f.special_use = 'inbox', inbound i
    where l.address = 'tom@local.com' and i.message_id = 'q@customer.example';
update external_accounts set oauth = '{{"name": "google", "client_id": "x", "issuer": {{"token_url": "https://x.example",
    "scope": "x", "device_url": null, "authorize_url": null}}}}' where address = 'sales@company.com';
"""
"""Something on every page: skipped, parked, held and deleted mail, an account with access tokens."""
USERS = """
delete from api_tokens; delete from console_users where name = 'second';
insert into api_tokens (name, role, token_sha256, made_by) values ('script', 'observer', 'x', 'admin');
insert into console_users (name, role, password_hash) values ('second', 'observer', 'x');
"""
"""A token and a user, which tests remove."""


def seeded(databases: servers.Databases) -> Iterator[str]:
    """A database with something on every page."""
    with databases.fresh() as url:
        asyncio.run(fill(url))
        with psycopg.connect(url) as connection:
            connection.execute(SEEDS.encode())
        yield url


@pytest.fixture(scope="module")
def store(databases: servers.Databases) -> Iterator[str]:
    yield from seeded(databases)


def one(store: str, query: str) -> str:
    [(value,)] = stored(store, query)
    return str(value)


@pytest.fixture
def ids(store: str) -> dict[str, str]:
    return ids_of(store)


def ids_of(store: str) -> dict[str, str]:
    """Ids of rows, and the parts of paths."""
    with psycopg.connect(store) as connection:
        connection.execute(USERS.encode())
    return {
        "fetched": one(store, "select id from inbound where message_id = 'n@customer.example'"),
        "held": one(store, "select id from inbound where message_id = 'q@customer.example'"),
        "parked": one(store, "select id from inbound where message_id = 's@customer.example'"),
        "sent": one(store, "select id from submissions"),
        "user": one(store, "select id from console_users where name = 'second'"),
        "token": one(store, "select id from api_tokens"),
    }


def routes(method: str) -> set[str]:
    """The paths of the pages, without those of the API and of mail clients."""
    return {
        route.path
        for router in ROUTERS
        if router is not client_autoconfig.router
        for route in router.routes
        if isinstance(route, APIRoute) and method in (route.methods or ()) and not route.include_in_schema
    }


SAMPLES = {
    "/external/{address}": [SUPPORT, "sales@company.com"],
    "/external/{address}/authorize": ["sales@company.com"],
    "/local/{address}": ["alex@local.com", "tom@local.com"],
    "/local/{address}/deleted": ["tom@local.com"],
    "/local/{address}/retire": ["alex@local.com"],
    "/mail/{id}": ["fetched", "sent"],
}
"""What stands for the parameter in the path of a page."""
NO_PAGES = {
    "/accounts-file/accounts.yaml",
    "/authorized",
    "/external/{address}/authorize/live",
    "/live",
}
"""Paths that return something else than a page, or need a provider's redirect."""


def pages(ids: dict[str, str]) -> dict[str, str]:
    """A page for each path of the console and each sample, by its path with the parameter."""
    found = {}
    for path in routes("GET") - NO_PAGES:
        for sample in SAMPLES.get(path, [""]):
            found[re.sub(r"\{\w+\}", ids.get(sample, sample), path)] = path
    return found


def every_form(url: str, ids: dict[str, str]) -> list[tuple[str, HtmlForm]]:
    """Each form of each page, of an administrator and of a person, with the path of its page."""
    administrator, person, nobody = console.signed_in(url), Browser(url), Browser(url)
    person.sign_in("tom@local.com", "secret")
    found = []
    for path in pages(ids):
        browser = person if path.startswith("/mine") else nobody if path == "/sign-in" else administrator
        page = browser.get(path)
        assert page.ok and page.url.endswith(path), f"{path}: {page.status_code} {page.url}"
        found += [(path, form) for form in forms(page)]
    return found


def test_every_form_has_one_button_or_enter_presses_the_main_one(url: str, ids: dict[str, str]) -> None:
    found = every_form(url, ids)
    assert len({form.action for _, form in found}) > 20
    for path, form in found:
        assert form.buttons, f"{path}: {form.action}: without JavaScript nothing sends it"
        if len(form.buttons) == 1:
            continue
        # then Enter, which presses the first button, saves, as the visible main button does
        first, *others = form.buttons
        [main] = [button for button in others if "main" in button.get("class", "")]
        assert {"name": first["name"], "value": first["value"]} == {"name": main["name"], "value": main["value"]}
        assert first["aria-hidden"] == "true" and first["tabindex"] == "-1"
        # and no button of it does what cannot be undone
        assert not any(path_of(form, ids) in UNDONE for _ in form.buttons), f"{path}: {form.action}"
        assert {button["value"] for button in form.buttons if button["name"] == "do"} <= {"save", "test", "fill"}, (
            f"{path}: {form.action}"
        )


def test_every_field_of_a_form_has_a_label_and_no_page_has_a_secret(url: str, ids: dict[str, str]) -> None:
    for path, form in every_form(url, ids):
        for name, value, attributes in form.fields:
            if attributes.get("type") == "password":
                assert not value, f"{path}: {name}"


def typed_values(form: HtmlForm) -> dict[str, list[str]]:
    """What a user types: another text into each field, every box ticked, and the last entry of each list."""
    values = form.pairs
    for name, value in form.boxes:
        values.setdefault(name, []).append(value)
    for name, value, attributes in form.fields:
        kind = attributes.get("type", "text")
        if name and kind not in ("hidden", "checkbox") and "readonly" not in attributes:
            last = attributes.get("options", "").rpartition(" ")[2]
            values[name] = [last if kind == "select" else value or f"typed & <{name}>"]
        if kind == "password" or name == "oauth.client_key":  # a text area: a key has many lines
            values[name] = ["typed-secret"]
    return values


def test_an_expired_session_loses_nothing_that_was_typed_and_saves_nothing(
    url: str, store: str, ids: dict[str, str]
) -> None:
    tried = 0
    for path, form in every_form(url, ids):
        visible = [name for name, _, attributes in form.fields if attributes.get("type") != "hidden"]
        if (
            form.method != "post"
            or not visible
            or form.action == "/language"
            or path == "/sign-in"
            or path.startswith("/accounts-file")
        ):
            continue
        # given a form that is filled in, and a session that has ended
        name, password = ("tom@local.com", "secret") if path.startswith("/mine") else ("admin", console.PASSWORD)
        browser, values, before = Browser(url), typed_values(form), contents(store)
        button = {b["name"]: [b["value"]] for b in form.buttons[:1] if "name" in b}
        ended = browser.post(form.action or path, values | button, headers={"Referer": f"{url}{path}"})
        # then the user signs in where the form was sent to, and no password is in the page
        assert ended.status_code == 401 and "Your session has ended" in text(ended), path
        assert "typed-secret" not in ended.text
        sign_in, _ = forms(ended)  # and the choice of the language
        wrong = browser.post("/sign-in", sign_in.values | {"name": name, "password": "wrong"})
        sign_in, _ = forms(wrong)
        page = browser.post("/sign-in", sign_in.values | {"name": name, "password": password})
        # and sees the same form with all that was typed, and what has to be typed again
        assert page.ok and page.url.startswith(f"{url}{path}?typed="), page.url
        assert "Nothing is saved yet" in text(page) and "typed-secret" not in page.text
        assert ("Passwords are not kept" in text(page)) == any("typed-secret" in value for value in values.values())
        again = [each for each in forms(page) if each.action == form.action and same_row(each, form)]
        kept = {field: value for field, value in values.items() if "typed-secret" not in value}
        assert {field: again[0].pairs.get(field) for field in kept} == kept, path
        assert contents(store) == before
        tried += 1
    assert tried >= 12


def same_row(one: HtmlForm, other: HtmlForm) -> bool:
    """Whether two forms with one action are the same form: their hidden fields say so."""
    hidden = [
        {(name, value) for name, value, attributes in form.fields if attributes.get("type") == "hidden"}
        for form in (one, other)
    ]
    return hidden[0] == hidden[1]


def test_what_was_typed_is_for_the_session_that_signed_in_and_no_other(url: str) -> None:
    first, other = Browser(url), console.signed_in(url)
    ended = first.post("/local/new", {"user_name": "Typed Name", "address": "x@local.com"})
    page = first.post("/sign-in", forms(ended)[0].values | {"name": "admin", "password": console.PASSWORD})
    assert "Typed Name" in page.text
    assert "Typed Name" not in other.get(page.url).text
    for wrong in ("[1]", "{}", "[[[", '["/local/new", 5, true]', "x" * 100):
        fields = {"name": "admin", "password": console.PASSWORD, "next": "/local/new", "typed": wrong}
        assert Browser(url).post("/sign-in", fields).ok


def test_a_session_that_ends_during_a_question_asks_again(url: str, store: str, ids: dict[str, str]) -> None:
    # given a question that is answered after the session has ended
    browser, before = console.signed_in(url), contents(store)
    asked = browser.post("/external/sales@company.com/remove")
    browser.session.cookies.clear()
    asked = browser.post("/queue", {"do": "discard", "id": ids["held"], "reason": "spam", "confirmed": "on"})
    # then nothing is done, and the page is the one with the list
    assert asked.status_code == 401
    page = browser.post("/sign-in", forms(asked)[0].values | {"name": "admin", "password": console.PASSWORD})
    assert "/queue?typed=" in page.url and contents(store) == before
    # and a form whose path is no page leads to the page that it is on
    ended = Browser(url).post("/local/jim@local.com/remove", {"confirmed": "on", "x": "y"})
    assert forms(ended)[0].values["next"] == "/local/jim@local.com"


@pytest.mark.parametrize("path", ["/external", "/external/x@y", "/local/new", "/users"])
def test_a_form_of_unusual_size_is_answered_without_a_session(url: str, path: str) -> None:
    ended = Browser(url).post(path, {"user_name": "ä" * 40_000})
    assert ended.status_code in (401, 405)
    if ended.status_code == 401:
        assert "too long to be kept" in text(ended)


async def test_two_tabs_with_one_user_of_the_console(browser: Browser, ids: dict[str, str]) -> None:
    # given two tabs with the page of users
    def fields(**more: str) -> dict[str, Any]:
        found = [form for form in forms(browser.get("/users")) if form.values.get("id") == ids["user"]]
        return {"id": ids["user"], "version": found[0].values["version"]} | more

    first, second = fields(do="role", role="administrator"), fields(do="password", password="typed-in-tab-two")
    # when the first one saves, the second one is refused and shown the change
    assert browser.post("/users", first).ok
    page = browser.post("/users", second)
    assert page.status_code == 409 and "second was changed meanwhile, is administrator now" in text(page)
    # and after that it is saved
    saved = browser.post("/users", fields(do="password", password="typed-in-tab-two"))
    assert "User second: changed password." in text(saved)
    assert "User second: observer." in text(browser.post("/users", fields(do="role", role="observer")))


def test_a_form_that_meets_an_unavailable_database_can_be_sent_again(
    browser: Browser, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that goes away when a form is saved
    async def fail(*_: Any) -> None:
        raise Temporary("the database is unavailable")

    fields = {"address": "typed@local.com", "user_name": "Typed", "external": SUPPORT, "password": "typed-secret"}
    with monkeypatch.context() as patch:
        patch.setattr("services.admin.web.page_context.apply.apply", fail)
        page = browser.post("/local/new", fields)
    # then the page has all that was typed but the password
    assert page.status_code == 503 and "typed-secret" not in page.text
    [again] = forms(page)
    assert again.action == "/local/new" and again.values == {n: v for n, v in fields.items() if n != "password"}
    # and its button sends it again, where the password is asked for
    page = browser.post(again.action, again.pairs)
    assert "Login password: is missing" in text(page) and 'value="Typed"' in page.text
    assert stored(store, "select * from local_accounts where user_name = 'Typed'") == []


def test_two_tabs_with_one_unknown_name(browser: Browser) -> None:
    name = {"name": "Alexander", "external": SUPPORT}
    assert "goes to Alex from now on" in text(browser.post("/names", name | {"to": "alex@local.com"}))
    page = browser.post("/names", name | {"to": "jim@local.com"})
    assert "'Alexander': alex@local.com has this name in the same share" in text(page)
    assert "aliases" not in text(page)


def test_a_refused_user_keeps_the_input_and_marks_the_field(browser: Browser) -> None:
    page = browser.post("/users", {"do": "add", "name": "somebody", "role": "administrator", "password": "short"})
    assert page.status_code == 422
    [form] = [form for form in forms(page) if "password" in form.values and "name" in form.values]
    assert (form.values["name"], form.values["role"]) == ("somebody", "administrator")
    assert re.findall(r'id="([\w-]+)"[^>]*aria-invalid="true" autofocus', page.text) == ["password"]
    page = browser.post("/users", {"do": "token", "name": "a@b", "role": "observer"})
    assert re.findall(r'id="([\w-]+)-error"', page.text) == ["token-name"]


def path_of(form: HtmlForm, ids: dict[str, str]) -> str:
    """The route of a form's action."""
    for path in routes("POST"):
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)), form.action):
            return path
    raise AssertionError(f"{form.action}: no route")


@dataclass(frozen=True)
class Undone:
    """An action that cannot be undone, as a form sends it. The words in braces are replaced by ids."""

    path: str
    fields: dict[str, str]
    says: str  # on the page that asks
    before: str = ""  # SQL
    typed: dict[str, str] = field(default_factory=dict)  # into the page that asks


QUEUED = "update submissions set state = 'queued'; update submission_recipients set state = 'waiting'"
PARKED = "update inbound set state = 'parked' where message_id = 's@customer.example'"
HELD = "update inbound set state = 'held' where message_id = 'q@customer.example'"
FAILED = "update submissions set state = 'done'; update submission_recipients set state = 'failed'"
UNDONE = {
    "/queue": [
        Undone("/queue", {"do": "cancel", "id": "{sent}"}, "Cancel 1 mail?", QUEUED, {"reason": "typed"}),
        Undone("/queue", {"do": "retry-all"}, "Try to send 1 mail now?", QUEUED),
        Undone("/queue", {"do": "requeue", "id": "{parked}"}, "Continue with 1 mail?", PARKED),
        Undone("/queue", {"do": "discard", "id": "{parked}"}, "Discard 1 mail?", PARKED, {"reason": "spam"}),
        Undone("/queue", {"do": "discard", "id": "{held}"}, "Discard 1 mail?", HELD, {"reason": "spam"}),
    ],
    "/mail/{id}": [
        Undone("/mail/{fetched}", {"do": "give", "to": "jim@local.com"}, "Copy 1 mail to jim@local.com?"),
        Undone(
            "/mail/{fetched}",
            {"do": "give", "to": "jim@local.com", "away": "alex@local.com"},
            "It is deleted from the mailbox of alex@local.com.",
        ),
        Undone("/mail/{sent}", {"do": "resend"}, "Send the mail again to 2 recipients?", FAILED),
    ],
    "/external/{address}/remove": [
        Undone("/external/spare@company.com/remove", {}, "Remove spare@company.com?"),
    ],
    "/local/{address}/remove": [Undone("/local/kim@local.com/remove", {}, "The mailbox has 0 mails.")],
    "/local/{address}/retire": [
        Undone(
            "/local/jim@local.com/retire",
            {"mailbox_to": "alex@local.com", "delegate": "alex@local.com", "then": "remove"},
            "are put into the mailbox of alex@local.com",
        ),
    ],
    "/users": [
        Undone("/users", {"do": "end-token", "id": "{token}"}, "Revoke token script?"),
        Undone("/users", {"do": "remove", "id": "{user}"}, "Remove user second?"),
    ],
    "/accounts-file": [Undone("/accounts-file", {}, "This file would change")],
}
"""The routes with actions that cannot be undone, and each of these actions."""
HARMLESS = {
    "/external/new",
    "/external/{address}",
    "/external/{address}/authorize",
    "/external/{address}/check",
    "/external/{address}/skipped",
    "/language",
    "/local/new",
    "/local/removed",
    "/local/{address}",
    "/local/{address}/deleted",
    "/local/{address}/sign-out",
    "/mail/{id}/raw",
    "/mine/deleted",
    "/mine/language",
    "/mine/password",
    "/mine/sessions",
    "/names",
    "/sign-in",
    "/sign-out",
}
"""The routes whose changes can be changed back on the same page."""
SAID_BESIDE = {"/external/{address}/start", "/external/{address}/probe-tag"}
"""The routes whose one button stands beside what it does, and to how many."""
TABLES = (
    "external_accounts",
    "local_accounts",
    "(select * from inbound where source <> 'notice')",  # the monitor sends alarms meanwhile
    "submissions",
    "submission_recipients",
    "(select d.* from deliveries d join inbound i on i.id = d.inbound_id where i.source <> 'notice')",
    "folder_mails",
    "api_tokens",
)


def contents(store: str) -> str:
    """A digest of all that a page could change."""
    parts = " || ".join(
        f"(select coalesce(md5(string_agg(t::text, ';' order by t::text)), '') from {t} t)" for t in TABLES
    )
    users = "(select string_agg(name || role, ';' order by name) from console_users)"
    return one(store, f"select {parts} || {users}")


def test_every_route_that_changes_something_is_known_as_harmless_or_not() -> None:
    # a new route has to be entered above: does it ask?
    assert routes("POST") == UNDONE.keys() | HARMLESS | SAID_BESIDE
    asked = {case.fields["do"] for case in UNDONE["/queue"]}
    assert asked == {name for name, action in ACTIONS.items() if action.ask} and "cancel" in asked


@pytest.mark.parametrize(
    "case", [case for cases in UNDONE.values() for case in cases], ids=lambda case: f"{case.path} {case.fields}"[:60]
)
async def test_what_cannot_be_undone_is_asked_once_and_done_after_that(
    browser: Browser, store: str, ids: dict[str, str], case: Undone
) -> None:
    # given
    await console.make(store, {"external_accounts": [external("spare@company.com")], "local_accounts": []})
    with psycopg.connect(store) as connection:
        for statement in filter(None, case.before.split(";")):
            connection.execute(statement.encode())
    before = contents(store)
    path = case.path.format(**ids)
    fields: dict[str, Any] = {name: value.format(**ids) for name, value in case.fields.items()}
    if path.endswith("/retire"):
        fields["version"] = forms(browser.get(path))[-1].values["version"]
    if fields.get("do") == "remove":
        found = [form for form in forms(browser.get("/users")) if form.values.get("id") == ids["user"]]
        fields["version"] = found[0].values["version"]
    file = {"file": ("a.yaml", f"external_accounts: [{{address: {SUPPORT}, poll_seconds: 7{SERVERS}}}]")}
    # when the form is sent
    asked = browser.post(path, fields, **({"files": file} if path == "/accounts-file" else {}))
    # then a page says what will happen to how many, with a way back, and nothing is done
    assert asked.ok and case.says in text(asked)
    assert contents(store) == before
    [question] = [form for form in forms(asked) if form.values.get("confirmed")]
    assert len(question.buttons) == 1 and re.search(r"\d|Retire|Revoke|again|the mail", asked.text)
    # and it is done after one more press
    done = browser.post(question.action, question.pairs | case.typed)
    assert done.ok and not [form for form in forms(done) if form.values.get("confirmed")]
    assert contents(store) != before


SERVERS = ", pop3: {host: 127.0.0.1, port: 1, tls: none}, smtp: {host: 127.0.0.1, port: 1, tls: none}"
