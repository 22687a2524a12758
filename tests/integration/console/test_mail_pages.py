"""The console's pages of mail: search, explanation, handing on, answers, and unknown names."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from services.admin.accounts import file_format, yaml_text
from services.admin.mail import indexing, mail_search
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.db.database import Database
from shared.model import Content, EnvelopeRecipient
from shared.store import accounts, blobs, inbound, submissions
from shared.store.inbound import Arrival
from shared.store.maillog import MailEvent
from shared.store.submissions import Submission
from tests import console, servers
from tests.company import SUPPORT, everyone, mailbox_of
from tests.console import Browser, text
from tests.integration.test_router_and_mailbox import ids

QUESTION = b"From: Anna <anna@customer.example>\r\nTo: support@company.com\r\nSubject: Printer smokes\r\n"
BY_NAME = (
    b'From: Anna <anna@customer.example>\r\nTo: "Alex" <support@company.com>\r\nSubject: =?utf-8?q?F=C3=BCr?= Alex\r\n'
)
UNKNOWN_NAME = b'From: Bob <bob@customer.example>\r\nTo: "Alexander" <support@company.com>\r\nSubject: Hello there\r\n'
ANSWER = b"From: alex@local.com\r\nSubject: Re: Printer smokes\r\nIn-Reply-To: <q@customer.example>\r\n\r\nHi\r\n"
BODY = b"Message-ID: <%s@customer.example>\r\n\r\nthe-body-of-%s\r\n"


async def fill(url: str) -> None:
    """Three mails that were delivered, and an answer of Alex that one recipient did not get."""
    await console.make(url)
    async with servers.opened(url) as database:
        externals, people = await everyone(database)
        async with database.transaction() as connection:
            mails = [
                head + BODY % (name, name) for head, name in ((QUESTION, b"q"), (BY_NAME, b"n"), (UNKNOWN_NAME, b"s"))
            ]
            stored = await blobs.store_blobs(connection, [Content.from_bytes(mail) for mail in mails])
            rows = await inbound.add_inbound(
                connection,
                [
                    Arrival("fetched", id_, externals[SUPPORT].id, f"{name}@customer.example")
                    for id_, name in zip(stored, "qns", strict=True)
                ],
            )
        routed = await RouterWorker(database, 5).handle(rows)
        await MailboxWorker(database, 5).handle(ids(routed))
        async with database.transaction() as connection:
            [sent] = await submissions.record_submissions(
                connection,
                [
                    Submission(
                        people["Alex"].id,
                        externals[SUPPORT].id,
                        Content.from_bytes(ANSWER),
                        "alex@local.com",
                        "answer@local.com",
                        False,
                        False,
                        (
                            EnvelopeRecipient("anna@customer.example", "relay"),
                            EnvelopeRecipient("gone@customer.example", "relay"),
                        ),
                        event=MailEvent("submitted", who="alex@local.com"),
                    )
                ],
            )
            await connection.execute("update inbound set created_at = now() - interval '1 minute'")
            await connection.execute(
                "update submissions set state = 'done', created_at = now() - interval '50 seconds' where id = %s",
                (sent,),
            )
            await connection.execute(
                """update submission_recipients set state = case position when 0 then 'relayed' else 'failed' end,
                   reply = '550 5.1.1 no such user'"""
            )
        async with database.transaction() as connection:
            assert (await indexing.index_next(connection)).mails == 4
        async with database.transaction() as connection:
            assert (await indexing.index_next(connection)).mails == 0


@pytest.fixture(scope="module")
def store(databases: servers.Databases) -> Iterator[str]:
    with databases.fresh() as url:
        asyncio.run(fill(url))
        yield url


def id_of(store: str, message_id: str) -> int:
    with psycopg.connect(store) as connection:
        row = connection.execute(
            """select id from inbound where message_id = %(id)s
               union select id from submissions where message_id = %(id)s""",
            {"id": message_id},
        ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    ("asked", "subjects"),
    [
        ("", {"Printer smokes", "Für Alex", "Hello there", "Re: Printer smokes"}),
        ("printer", {"Printer smokes", "Re: Printer smokes"}),
        ("SMOKES anna", {"Printer smokes", "Re: Printer smokes"}),
        ("für", {"Für Alex"}),
        ("anna@customer.example", {"Printer smokes", "Für Alex", "Re: Printer smokes"}),
        ("<s@customer.example>", {"Hello there"}),
        ("jim@local.com", {"Printer smokes", "Hello there"}),
        ("support@company.com", {"Printer smokes", "Für Alex", "Hello there", "Re: Printer smokes"}),
        ("prin", {"Printer smokes", "Re: Printer smokes"}),
        ("anna@cust prin", {"Printer smokes", "Re: Printer smokes"}),
        ("rinter", set()),
        ("pr", set()),
        ("gone@customer", {"Re: Printer smokes"}),
        ("' or \x00 %", set()),
    ],
)
@pytest.mark.parametrize("rare", [mail_search.RARE, 0])
def test_mail_is_found_by_words_addresses_and_ids_rare_or_not(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, asked: str, subjects: set[str], rare: int
) -> None:
    monkeypatch.setattr(mail_search, "RARE", rare)
    page = browser.get("/mail", params={"q": asked})
    every = {"Printer smokes", "Für Alex", "Hello there", "Re: Printer smokes"}
    assert {s for s in every if f">{s}</a>" in page.text} == subjects


@pytest.mark.parametrize(
    ("asked", "subjects"),
    [
        ({"to": "alex@local.com"}, {"Printer smokes", "Für Alex", "Hello there"}),
        ({"to": "Jim"}, {"Printer smokes", "Hello there"}),
        ({"to": "gone@"}, {"Re: Printer smokes"}),
        ({"to": "anna@"}, {"Re: Printer smokes"}),
        ({"to": "nobody"}, set()),
        ({"result": "delivered"}, {"Printer smokes", "Für Alex", "Hello there"}),
        ({"result": "failed"}, {"Re: Printer smokes"}),
        ({"result": "sent"}, set()),
        ({"result": "on hold"}, set()),
        ({"result": "lost"}, set()),
        ({"account": "support@company.com"}, {"Printer smokes", "Für Alex", "Hello there", "Re: Printer smokes"}),
        ({"account": "sales@company.com"}, set()),
        ({"account": "support@company.com", "to": "jim", "result": "delivered", "q": "hell"}, {"Hello there"}),
    ],
)
def test_mail_is_filtered_by_recipient_result_and_account(
    browser: Browser, asked: dict[str, str], subjects: set[str]
) -> None:
    page = browser.get("/mail", params=asked)
    every = {"Printer smokes", "Für Alex", "Hello there", "Re: Printer smokes"}
    assert {s for s in every if f">{s}</a>" in page.text} == subjects
    assert ("No mail was found" in page.text) == (not subjects)
    assert f"{len(subjects)} found." in page.text


def test_a_list_of_mail_shows_who_gets_it(browser: Browser) -> None:
    told = text(browser.get("/mail", params={"q": "re printer"}))
    assert "anna@customer.example and 1 more" in told and "1 found." in told


def test_mail_is_found_by_its_day(browser: Browser) -> None:
    assert "Printer smokes" not in browser.get("/mail?day=2020-01-01").text
    assert "a day has the form" in text(browser.get("/mail?day=yesterday"))


def test_the_page_of_a_mail_says_in_sentences_who_got_it_and_why(browser: Browser, store: str) -> None:
    question, named = id_of(store, "q@customer.example"), id_of(store, "n@customer.example")
    told = text(browser.get(f"/mail?q={question}"))
    assert "Jim got this because To names nobody, so everyone who shares it gets it (rule 5)." in told
    assert "Alex got this because To names nobody, so everyone who shares it gets it (rule 5)." in told
    assert "Put into the mailbox of jim@local.com" in told
    assert "Alex got this because To names Alex (rule 1)." in text(browser.get(f"/mail/{named}"))
    assert "the-body-of" not in told


def test_a_mail_that_does_not_exist_is_not_found(browser: Browser) -> None:
    assert browser.get("/mail/999999").status_code == 404
    assert browser.get("/mail/0").status_code == 422


def test_only_administrators_read_a_body_and_the_audit_records_it(
    browser: Browser, observer: Browser, store: str
) -> None:
    id_ = id_of(store, "n@customer.example")
    assert observer.get(f"/mail/{id_}").ok
    assert observer.post(f"/mail/{id_}/raw").status_code == 403
    raw = browser.post(f"/mail/{id_}/raw")
    assert raw.content == BY_NAME + BODY % (b"n", b"n")
    assert f"looked into a mail {id_} Anna" in text(browser.get("/audit"))


async def test_a_mail_is_moved_to_another_person_as_new_mail(browser: Browser, store: str, database: Database) -> None:
    id_ = id_of(store, "n@customer.example")
    page = browser.agree(f"/mail/{id_}", {"do": "give", "to": "jim@local.com", "away": "alex@local.com"})
    assert "jim@local.com has it now" in text(page)
    assert any(b"the-body-of-n" in mail for mail in await mailbox_of(database, "jim@local.com"))
    assert not any(b"the-body-of-n" in mail for mail in await mailbox_of(database, "alex@local.com"))
    assert "Jim got this because given by the operator." in text(page)
    # and once more: it is new mail again, and there once
    browser.agree(f"/mail/{id_}", {"do": "give", "to": "jim@local.com"})
    found = await mailbox_of(database, "jim@local.com")
    assert sum(b"the-body-of-n" in mail for mail in found) == 1
    assert b"the-body-of-n" in found[-1]
    # but not given to a person and removed again
    page = browser.agree(f"/mail/{id_}", {"do": "give", "to": "jim@local.com", "away": "jim@local.com"})
    assert "is to have it, so it is not taken from there" in text(page)
    assert any(b"the-body-of-n" in mail for mail in await mailbox_of(database, "jim@local.com"))


def test_a_mail_is_sent_again_to_recipients_that_did_not_get_it(browser: Browser, store: str) -> None:
    id_ = id_of(store, "answer@local.com")
    assert "550 5.1.1 no such user" in text(browser.get(f"/mail/{id_}"))
    assert "sent again" in text(browser.agree(f"/mail/{id_}", {"do": "resend"}))
    with psycopg.connect(store) as connection:
        assert connection.execute("select state from submissions").fetchall() == [("queued",)]
        states = connection.execute("select state from submission_recipients order by position").fetchall()
    assert states == [("relayed",), ("waiting",)]
    assert "nobody to send it to" in text(browser.post(f"/mail/{id_}", {"do": "resend"}))
    assert "alex@local.com" in text(browser.get("/queue"))


def test_the_queue_shows_what_is_not_filed_at_the_provider(browser: Browser, store: str) -> None:
    assert "not filed" not in text(browser.get("/queue"))
    with psycopg.connect(store) as connection:
        connection.execute(
            """insert into provider_filings (submission_id, kind, external_id, tries, error)
               select s.id, 'sent', s.external_id, 3, 'there is no folder ''Sent''' from submissions s"""
        )
    page = " ".join(text(browser.get("/queue")).split())
    assert "Sent, but not filed at the provider: 1" in page
    assert "support@company.com 1 there is no folder 'Sent'" in page


def test_a_long_queue_is_counted_and_its_question_names_the_oldest(browser: Browser, store: str) -> None:
    with psycopg.connect(store) as connection:
        connection.execute(
            """insert into submissions (author_id, external_id, blob_id, envelope_from, message_id, body_8bit, smtputf8,
                                        state)
               select l.id, l.external_id, b.id, l.address, n || '@long.queue', false, false, 'queued'
               from (select * from local_accounts order by id limit 1) l, (select id from blobs limit 1) b,
                    generate_series(1, 250) n"""
        )
        [(waiting,)] = connection.execute("select count(*) from submissions where state = 'queued'").fetchall()
    page = browser.get("/queue")
    assert f"Waiting to be sent: {waiting}" in text(page) and "Of each, the oldest 200 are shown" in text(page)
    assert page.text.partition("</section>")[0].count('name="id"') == 200
    question = text(browser.post("/queue", {"do": "retry-all"}))
    assert f"Try to send {waiting} mails now?" in question and f"and {waiting - 20} more" in question
    # later tests find their mails on the first page, also after these would have been indexed
    with psycopg.connect(store) as connection:
        connection.execute(
            """with gone as (delete from submissions where message_id like '%@long.queue' returning id)
               delete from search_index where mail_id in (select id from gone)"""
        )


def test_pages_show_who_answered_a_mail_and_mails_without_an_answer(browser: Browser) -> None:
    done = text(browser.get("/answers?done=true"))
    assert "Printer smokes Anna support@company.com" in done
    assert "Alex after 10 s" in done
    waits = text(browser.get("/answers"))
    assert "Hello there" in waits
    assert "Printer smokes" not in waits
    assert "The oldest has waited for" in waits


async def test_an_unknown_name_can_be_made_an_alias(browser: Browser, database: Database) -> None:
    assert "Alexander support@company.com 1" in text(browser.get("/names"))
    name = {"name": "Alexander", "external": SUPPORT}
    assert "Choose who is meant" in text(browser.post("/names", name))
    page = browser.post("/names", name | {"to": "alex@local.com"})
    assert "Mail to “Alexander” goes to Alex" in text(page)
    assert "There is none" in text(page)
    async with database.transaction() as connection:
        alex = await accounts.local_by_login(connection, "alex@local.com")
    assert alex is not None
    assert alex.aliases == ("Alexander",)


async def test_the_mail_of_a_person_who_leaves_is_copied_to_another(browser: Browser, database: Database) -> None:
    fields = console.forms(browser.get("/local/jim@local.com/retire"))[-1].pairs
    page = browser.agree("/local/jim@local.com/retire", fields | {"mailbox_to": "kim@local.com", "then": "keep"})
    assert re.search(r"local account jim@local.com: [1-9]\d* mails copied to kim@local.com", text(page))
    kim, jim = await mailbox_of(database, "kim@local.com"), await mailbox_of(database, "jim@local.com")
    assert sorted(kim) == sorted(jim) != []


def test_stuck_mail_is_listed_retried_and_cancelled_with_a_reason(browser: Browser, store: str) -> None:
    id_ = id_of(store, "s@customer.example")
    with psycopg.connect(store) as connection:
        connection.execute(
            """update inbound set state = 'parked', error = E'Trace\\nValueError: it broke', origin = 'router'
               where id = %s""",
            (id_,),
        )
    shown = text(browser.get("/queue"))
    assert "ValueError: it broke" in shown
    assert f"Hello there {id_}, from Bob" in shown
    for fields, said in (({"do": "discard"}, "Nothing was ticked."), ({"id": str(id_)}, "Choose what is to be done")):
        refused = browser.post("/queue", fields)
        assert refused.status_code == 422 and 'role="alert"' in refused.text and said in text(refused)
    refused = browser.agree("/queue", {"do": "discard", "id": str(id_)}, reason=" ")
    assert refused.status_code == 422 and "Reason, for the record: fill this in" in text(refused)
    assert "given five more tries" in text(browser.agree("/queue", {"do": "requeue", "id": str(id_)}))
    with psycopg.connect(store) as connection:
        connection.execute("update inbound set state = 'held', reason = 'held: nobody' where id = %s", (id_,))
    page = browser.agree("/queue", {"do": "discard", "id": str(id_)}, reason="spam")
    assert "1 mail: discarded" in text(page)
    assert f"discarded {id_} spam" in text(browser.get("/audit"))


def test_stuck_mail_is_retried_cancelled_and_discarded_on_its_own_page(
    browser: Browser, observer: Browser, store: str
) -> None:
    sent, came = id_of(store, "answer@local.com"), id_of(store, "s@customer.example")
    with psycopg.connect(store) as connection:
        connection.execute("update submissions set state = 'queued', error = '451 busy' where id = %s", (sent,))
        connection.execute("update submission_recipients set state = 'waiting' where submission_id = %s", (sent,))
        connection.execute("update inbound set state = 'held', reason = 'held: nobody' where id = %s", (came,))
    # given a mail that waits, the page of which has what can be done, but not for an observer
    assert _actions(observer, sent) == _actions(observer, came) == []
    assert _actions(browser, sent) == ["retry", "cancel"]
    # when it is tried now, then the list says so
    assert "1 mail: tried now" in text(browser.post("/queue", {"do": "retry", "id": str(sent)}))
    # when it is cancelled, then this is asked first, and a cancelled mail has no such buttons
    assert "1 mail: cancelled" in text(browser.agree("/queue", {"do": "cancel", "id": str(sent)}, reason="wrong"))
    with psycopg.connect(store) as connection:
        connection.execute("update submissions set state = 'done' where id = %s", (sent,))  # as the sender does
    assert _actions(browser, sent) == []
    # and one that is on hold, or that failed here, can be discarded, too
    assert _actions(browser, came) == ["discard"]
    with psycopg.connect(store) as connection:
        connection.execute("update inbound set state = 'parked' where id = %s", (came,))
    assert _actions(browser, came) == ["requeue", "discard"]
    assert "1 mail: discarded" in text(browser.agree("/queue", {"do": "discard", "id": str(came)}, reason="spam"))
    assert _actions(browser, came) == []


def _actions(browser: Browser, mail: int) -> list[str]:
    """What the page of a mail offers for mail that is stuck, about this mail alone."""
    offered = [form for form in console.forms(browser.get(f"/mail/{mail}")) if form.action == "/queue"]
    assert [form.values["id"] for form in offered] in ([], [str(mail)])
    return [button["value"] for form in offered for button in form.buttons]


@pytest.mark.parametrize(
    ("message_id", "state", "word"),
    [
        ("s@customer.example", "fetched", "waiting"),
        ("s@customer.example", "held", "on hold"),
        ("s@customer.example", "parked", "needs attention"),
        ("s@customer.example", "discarded", "cancelled"),
        ("s@customer.example", "delivered", "delivered"),
        ("answer@local.com", "queued", "waiting"),
        ("answer@local.com", "parked", "needs attention"),
        ("answer@local.com", "done", "failed"),  # one of its recipients did not get it
    ],
)
def test_list_page_and_api_show_the_status_of_a_mail_in_the_same_word(
    browser: Browser, store: str, message_id: str, state: str, word: str
) -> None:
    id_ = id_of(store, message_id)
    table = "submissions" if message_id.endswith("local.com") else "inbound"
    with psycopg.connect(store) as connection:
        connection.execute(f"update {table} set state = %s where id = %s".encode(), (state, id_))
        connection.execute(
            """update submission_recipients set state = case position when 0 then 'relayed' else 'failed' end
               where submission_id = %s""",
            (id_,),
        )
    [row] = [row for row in re.findall(r"<tr>.*?</tr>", browser.get("/mail").text, re.S) if f'/mail/{id_}"' in row]
    assert f">{word}</span>" in row
    assert f"Status {word} Account" in text(browser.get(f"/mail/{id_}"))
    [listed] = [mail for mail in browser.get("/api/v1/mails").json() if mail["id"] == id_]
    shown = browser.get(f"/api/v1/mails/{id_}").json()
    assert (listed["status"], shown["status"]) == (word, word)
    assert (listed["state"], shown["state"]) == (state, state)


def test_a_person_restores_deleted_mail_and_changes_the_password(browser: Browser, url: str, store: str) -> None:
    person = Browser(url)
    person.sign_in("tom@local.com", "secret")
    settings = text(person.get("/mine"))
    assert "Settings of the mail client" in settings
    assert "Login user name tom@local.com" in settings
    with psycopg.connect(store) as connection:
        connection.execute(
            """insert into folder_mails (folder_id, uid, blob_id, mail_id, octets, version, expunged_at, expunged_as)
               select f.id, 1000, i.blob_id, i.id, 1, 1, now(), 'deleted'
               from local_accounts l join folders f on f.local_id = l.id and f.special_use = 'inbox', inbound i
               where l.address = 'tom@local.com' and i.message_id = 'q@customer.example'"""
        )
    assert "Printer smokes" in text(person.get("/mine/deleted"))
    back = person.post("/mine/deleted", {"id": str(id_of(store, "q@customer.example"))})
    assert "1 mail is back" in text(back)
    other = Browser(url)
    other.sign_in("tom@local.com", "secret")
    wrong = person.post("/mine/password", {"old": "guess", "new": "another-one", "again": "another-one"})
    assert "Current password: it is wrong" in text(wrong)
    done = person.post("/mine/password", {"old": "secret", "new": "another-one", "again": "another-one"})
    assert "Your password is changed" in text(done)
    assert person.get("/mine").url.endswith("/mine")
    assert "sign-in" in other.get("/mine").url  # every earlier session has ended
    assert Browser(url).sign_in("tom@local.com", "another-one").ok


def test_an_administrator_sees_where_a_person_is_signed_in_and_ends_it(browser: Browser, url: str) -> None:
    person = Browser(url)
    person.sign_in("alex@local.com", "secret")
    shown = text(browser.get("/local/alex@local.com"))
    assert "127.0.0.1 another program, last seen" in shown
    assert "Login user name alex@local.com" in shown
    assert "Alex is signed out" in text(browser.post("/local/alex@local.com/sign-out"))
    assert "sign-in" in person.get("/mine").url


def test_a_person_s_page_and_the_api_show_the_last_logins(browser: Browser, url: str, store: str) -> None:
    assert "Last logins of mail clients none yet" in text(browser.get("/local/jim@local.com"))
    with psycopg.connect(store) as connection:
        connection.execute(
            """insert into last_logins (local_id, protocol, at, peer)
               select id, protocol, now() - interval '3 hours', '192.0.2.9'
               from local_accounts, unnest('{imap,pop3,smtp}'::text[]) protocol where address = 'jim@local.com'"""
        )
    Browser(url).sign_in("jim@local.com", "secret")
    shown = text(browser.get("/local/jim@local.com"))
    assert "IMAP 3 h ago" in shown and "POP3 3 h ago" in shown
    assert shown.count("from 192.0.2.9") == 3
    told = browser.get("/api/v1/local-accounts/jim@local.com/logins").json()
    assert [(login["protocol"], login["peer"]) for login in told["last"]] == [
        ("imap", "192.0.2.9"),
        ("pop3", "192.0.2.9"),
        ("smtp", "192.0.2.9"),
    ]
    assert [session["peer"] for session in told["sessions"]] == ["127.0.0.1"]
    assert browser.get("/api/v1/local-accounts/nobody@local.com/logins").status_code == 404


@pytest.mark.parametrize(
    "path", ["/", "/external", "/local", "/mail", "/queue", "/answers", "/names", "/audit", "/users", "/accounts-file"]
)
def test_a_person_sees_no_page_of_others(url: str, path: str) -> None:
    person = Browser(url)
    person.sign_in("kim@local.com", "secret")
    assert person.get(path).status_code == 403


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/queue", {"do": "retry-all"}),
        ("/names", {"name": "x", "external": SUPPORT}),
        ("/mail/1", {"do": "give", "to": "jim@local.com"}),
        ("/users", {"do": "add", "name": "x", "role": "administrator", "password": "long-enough-1"}),
        ("/local/jim@local.com/retire", {"mailbox_to": "kim@local.com", "confirmed": "on"}),
        ("/local/jim@local.com/deleted", {"id": "1"}),
        ("/accounts-file", {"do": "apply"}),
    ],
)
def test_an_observer_changes_nothing(observer: Browser, path: str, fields: dict[str, str]) -> None:
    assert observer.post(path, fields).status_code == 403


def version_of(browser: Browser, user: str) -> str:
    """The version of a user of the console, as the page has it."""
    rows = re.findall(r"<tr>.*?</tr>", browser.get("/users").text, re.S)
    row = next(row for row in rows if f'row">{user}<' in row and 'name="version"' in row)
    return str(re.findall(r'name="version" value="(\w+)"', row)[0])  # of the first of several forms


def test_users_are_added_and_the_last_administrator_stays(browser: Browser, observer: Browser, store: str) -> None:
    with psycopg.connect(store) as connection:
        rows: dict[str, int] = dict(connection.execute("select name, id from console_users").fetchall())
    refused = browser.agree("/users", {"do": "remove", "id": rows["admin"], "version": version_of(browser, "admin")})
    assert "Somebody has to stay administrator" in text(refused)
    refused = browser.post("/users", {"do": "add", "name": "a@b", "role": "observer", "password": "long-enough"})
    assert "no @" in text(refused)
    short = browser.post("/users", {"do": "add", "name": "x", "role": "observer", "password": "short"})
    assert "at least 10 characters" in text(short)
    # another password ends earlier sessions
    fields = {"do": "password", "id": rows["watcher"], "version": version_of(browser, "watcher")}
    browser.post("/users", fields | {"password": "another-password"})
    assert "sign-in" in observer.get("/").url


def test_the_accounts_file_is_exported_tried_and_applied(browser: Browser) -> None:
    exported = browser.get("/accounts-file/accounts.yaml").text
    assert "address: support@company.com" in exported
    assert "password" not in exported
    changed = exported.replace("poll_seconds: 60", "poll_seconds: 77")
    tried = browser.post("/accounts-file", files={"file": ("accounts.yaml", changed)})
    assert "Check for new mail every … seconds: 60 -> 77" in text(tried)
    assert "poll_seconds: 77" not in browser.get("/accounts-file/accounts.yaml").text
    [apply] = [form for form in console.forms(tried) if form.values.get("confirmed")]
    browser.post("/accounts-file", apply.pairs)
    assert "poll_seconds: 77" in browser.get("/accounts-file/accounts.yaml").text
    # and only the user who chose the file applies it, if it still changes what was shown
    tried = browser.post("/accounts-file", files={"file": ("accounts.yaml", exported)})
    [apply] = [form for form in console.forms(tried) if form.values.get("confirmed")]
    other = console.signed_in(browser.url).post("/accounts-file", apply.pairs)
    assert "choose the file once more" in text(other)
    between = browser.post("/accounts-file", files={"file": ("a.yaml", changed.replace("77", "78"))})
    [earlier] = [form for form in console.forms(between) if form.values.get("confirmed")]
    browser.post("/accounts-file", earlier.pairs)
    page = browser.post("/accounts-file", apply.pairs)
    assert page.status_code == 409 and "nothing is applied yet" in text(page)
    [apply] = [form for form in console.forms(page) if form.values.get("confirmed")]
    assert "Check for new mail every … seconds: 78 -> 60" in text(browser.post("/accounts-file", apply.pairs))
    spy = f"local_accounts: [{{address: a@local.com, user_name: A, external: {SUPPORT}, password_file: /etc/passwd}}]"
    refused = browser.post("/accounts-file", files={"file": ("accounts.yaml", spy)})
    assert "is for a file beside the accounts file" in text(refused)


def test_an_accounts_file_that_takes_long_to_read_delays_no_page(
    browser: Browser, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file whose reading takes as long as the test wants
    seen = threading.Event()
    load = yaml_text.load_yaml

    def load_slowly(content: str, where: str) -> object:
        assert seen.wait(20)
        return load(content, where)

    monkeypatch.setattr(file_format, "load_yaml", load_slowly)
    with ThreadPoolExecutor(1) as pool:
        tried = pool.submit(browser.post, "/accounts-file", None, files={"file": ("a.yaml", b"x: 1")})
        # then pages are shown meanwhile
        for _ in range(5):
            assert Browser(url).get("/sign-in").ok
        assert not tried.done()
        seen.set()
    assert tried.result().status_code == 422 and "x: there is no such field" in text(tried.result())


def test_aliases_in_an_accounts_file_are_refused_with_their_line(browser: Browser) -> None:
    for bomb in (b"local_accounts: &a\n- *a\n", b"external_accounts: []\nlocal_accounts: &b [x]\nx: [*b, *b]\n"):
        page = browser.post("/accounts-file", files={"file": ("accounts.yaml", bomb)})
        assert page.status_code == 422
        assert re.search(r"line \d, column 17: anchors and aliases are not allowed", text(page))


def test_a_request_of_the_api_that_is_nested_too_deep_is_malformed(browser: Browser) -> None:
    headers = {"Origin": browser.url, "Content-Type": "application/json"}
    deep = browser.session.put(f"{browser.url}/api/v1/local-accounts", data="[" * 100_000, headers=headers)
    assert deep.status_code in (400, 422)
    assert deep.json()["detail"]
