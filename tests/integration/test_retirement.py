"""services/admin/mail/retirement.py: a person's mailbox and future mail go to colleagues in one transaction."""

from __future__ import annotations

from typing import Any

import pytest

from services.admin.access import audit
from services.admin.accounts.errors import AccountsError
from services.admin.mail import operations, retirement
from services.admin.mail.retirement import Retirement
from services.mailbox.worker import MailboxWorker
from services.router.worker import RouterWorker
from shared.auth.passwords import HashingPool
from shared.db.database import Database
from shared.errors import Permanent
from shared.provider.vault import Vault
from shared.store import accounts
from tests.company import COMPANY, KEY, SUPPORT, apply, arrive, everyone, local, mailbox_of
from tests.integration.test_router_and_mailbox import ids

ALEX, JIM, KIM = "alex@local.com", "jim@local.com", "kim@local.com"
DAYS = 14


async def retire(database: Database, **fields: Any) -> list[str]:
    async with database.transaction() as connection:
        wanted = Retirement(**{"address": ALEX} | fields)
        return [
            str(line) for line in await retirement.retire(connection, wanted, Vault(KEY), HashingPool(), "admin", DAYS)
        ]


async def effects(database: Database, **fields: Any) -> str:
    async with database.transaction() as connection:
        plan = await retirement.prepare(connection, Retirement(**{"address": ALEX} | fields), DAYS)
    return " ".join(plan.effects)


async def deliver(database: Database, to: str, subject: str) -> None:
    externals, _ = await everyone(database)
    mail = f"To: {to}\r\nSubject: {subject}\r\n\r\nHi\r\n".encode()
    rows = await arrive(database, externals[SUPPORT].id, [mail])
    routed = await RouterWorker(database, 5).handle(rows)
    await MailboxWorker(database, 5).handle(ids(routed))


async def who_has(database: Database, subject: str) -> list[str]:
    mails = {address: await mailbox_of(database, address) for address in (ALEX, JIM, KIM)}
    return [address for address, found in mails.items() if any(subject.encode() in mail for mail in found)]


@pytest.mark.parametrize("then", ["disable", "remove"])
async def test_mailbox_and_future_mail_go_to_colleagues_in_one_step(database: Database, then: str) -> None:
    # given Alex, once Lex, with a mail of his own
    await apply(database, COMPANY)
    await apply(database, {"local_accounts": [local("Lex", address=ALEX, addresses=["a@local.com"])]})
    await apply(database, {"local_accounts": [local("Alex", aliases=["Al"], addresses=["a@local.com"])]})
    await deliver(database, f'"Alex" <{SUPPORT}>', "old-mail")
    assert await who_has(database, "old-mail") == [ALEX]
    # when he is retired: the mailbox to Kim, who shares another account, and future mail to Jim
    said = await effects(database, mailbox_to=KIM, delegate=JIM, then=then)
    assert "Copies of 1 mail are put into the mailbox of kim@local.com" in said
    assert "Mail to Alex, Al, Lex that comes from now on goes to jim@local.com." in said
    lines = await retire(database, mailbox_to=KIM, delegate=JIM, then=then)
    assert lines[0] == f"local account {ALEX}: 1 mail copied to {KIM}"
    # then it is so, for each of his names
    assert await who_has(database, "old-mail") == ([ALEX, KIM] if then == "disable" else [KIM])
    for number, name in enumerate(("Alex", "Al", "Lex")):
        await deliver(database, f'"{name}" <{SUPPORT}>', f"new-mail-{number}")
        assert await who_has(database, f"new-mail-{number}") == [JIM]
    _, people = await everyone(database)
    if then == "disable":
        assert not people["Alex"].enabled
    else:
        assert "Alex" not in people and people["Jim"].addresses == (ALEX, "a@local.com")
    # and the audit has every part
    async with database.transaction() as connection:
        did = [entry.did for entry in await audit.page(connection, search=ALEX)]
        assert await accounts.load_absent_delegates(connection) == []
    assert "handed mail over" in did
    assert did[0] == ("changed local account" if then == "disable" else "removed local account")


async def test_as_many_mails_are_copied_as_was_said_before(database: Database) -> None:
    # given a mail to everybody, which Jim has too, one that Jim has deleted, and one to Alex alone
    await apply(database, COMPANY)
    await deliver(database, SUPPORT, "to-everybody")
    await deliver(database, SUPPORT, "deleted-by-jim")
    await deliver(database, f'"Alex" <{SUPPORT}>', "to-alex")
    async with database.transaction() as connection:
        jim = await accounts.local_by_login(connection, JIM)
        assert jim is not None
        await connection.execute(
            """update folder_mails set expunged_at = now(), expunged_as = 'deleted'
               where folder_id = (select id from folders where local_id = %s and special_use = 'inbox') and uid = 2""",
            (jim.id,),
        )
    # then Jim gets a copy of the last one only, as is said before
    said = await effects(database, mailbox_to=JIM)
    assert "Copies of 1 mail are put into the mailbox of jim@local.com" in said
    assert "2 more reached that mailbox earlier." in said
    assert (await retire(database, mailbox_to=JIM))[0] == f"local account {ALEX}: 1 mail copied to {JIM}"


async def test_a_removed_person_without_a_delegate_comes_back_as_before(database: Database) -> None:
    await apply(database, COMPANY)
    await retire(database, then="remove")
    async with database.transaction() as connection:
        assert (await operations.restore_account(connection, ALEX)).enabled
    # and with a delegate only after the delegate has given back what was taken over
    await retire(database, delegate=JIM, then="remove")
    with pytest.raises(AccountsError, match="is an address of local account jim@local"):
        async with database.transaction() as connection:
            await operations.restore_account(connection, ALEX)
    await apply(database, {"local_accounts": [local("Jim")]})
    async with database.transaction() as connection:
        assert (await operations.restore_account(connection, ALEX)).user_name == "Alex"


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"mailbox_to": "nobody@local.com"}, "mailbox_to", "there is no such local account"),
        ({"mailbox_to": ALEX}, "mailbox_to", "has to be a colleague"),
        ({"mailbox_to": "tom@local.com"}, "mailbox_to", "is disabled and gets no mail"),
        ({"delegate": ALEX}, "delegate", "has to be a colleague"),
        ({"delegate": KIM, "mailbox_to": JIM}, "delegate", "shares the same external account"),
        ({"delegate": JIM, "then": "keep"}, "delegate", "only after the account is disabled or removed"),
        ({"then": "keep"}, "then", "nothing would be done"),
    ],
)
async def test_a_retirement_that_cannot_be_is_refused_as_a_whole(
    database: Database, fields: dict[str, Any], field: str, said: str
) -> None:
    await apply(database, COMPANY | {"local_accounts": [*COMPANY["local_accounts"][:3], local("Tom", enabled=False)]})
    await deliver(database, f'"Alex" <{SUPPORT}>', "old-mail")
    before = await everyone(database)
    with pytest.raises(AccountsError) as caught:
        await retire(database, **fields)
    found = {problem.field_name: problem.words for problem in caught.value.problems}
    assert said in found[field]
    assert await everyone(database) == before and await who_has(database, "old-mail") == [ALEX]


async def test_a_failure_at_the_last_step_undoes_all_earlier_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that refuses the last step
    await apply(database, COMPANY)
    await deliver(database, f'"Alex" <{SUPPORT}>', "old-mail")
    before = await everyone(database)

    async def refuse(*_: Any) -> None:
        raise Permanent("no more room")

    monkeypatch.setattr("services.admin.mail.retirement.apply.apply", refuse)
    # then the copies of the first step are gone, too
    with pytest.raises(Permanent, match="no more room"):
        await retire(database, mailbox_to=JIM, delegate=JIM)
    assert await everyone(database) == before and await who_has(database, "old-mail") == [ALEX]


async def test_a_person_who_does_not_exist_is_not_retired(database: Database) -> None:
    await apply(database, COMPANY)
    with pytest.raises(Permanent, match="there is no such local account"):
        await retire(database, address="nobody@local.com")


async def test_retiring_twice_does_not_retire_the_colleague(database: Database) -> None:
    # given Jim, who has the address of Alex since Alex is removed
    await apply(database, COMPANY)
    await retire(database, delegate=JIM, then="remove")
    # when Alex is retired once more
    with pytest.raises(Permanent, match="is a further address of jim@local"):
        await retire(database, then="remove")
    # then Jim stays
    _, people = await everyone(database)
    assert people["Jim"].enabled
