"""services/admin/accounts/renaming.py: accounts that change their addresses, without a database."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.admin.accounts.apply import is_other_maildrop
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import check
from services.admin.accounts.plan import AccountsPlan, expected_accounts, plan_changes
from shared.model import External, Local, OAuth, Relay, Server
from tests.company import HASH, SALES, SUPPORT, external, local

SERVER = Server("127.0.0.1", 1, "none")
HELP = "help@company.com"


def account(address: str, id_: int = 1) -> External:
    return External(id_, address, True, address, b"", SERVER, (Relay(SERVER),), 60, "all", None, False, True, ())


ALEX = Local(7, "alex@local.com", True, HASH, "Alex", (), (), 1, None)


def planned(
    document: dict[str, Any], *externals: External, people: tuple[Local, ...] = (), prune: bool = False
) -> AccountsPlan:
    return plan_changes(check(document), list(externals), list(people), prune)


@pytest.mark.parametrize("prune", [True, False])
def test_an_entry_with_its_former_address_is_that_account(prune: bool) -> None:
    support = account(SUPPORT)
    document = {"external_accounts": [external(HELP, renamed_from=SUPPORT)], "local_accounts": [local("Alex", HELP)]}
    plan = planned(document, support, people=(ALEX,), prune=prune)
    assert [(entry.address, old) for entry, old in plan.save_externals] == [(HELP, support)]
    assert (plan.remove_externals, plan.remove_locals) == ([], [])
    externals, people = expected_accounts(plan, [support], [ALEX])
    assert [(e.id, e.address) for e in externals] == [(1, HELP)] and [p.external_id for p in people] == [1]


def test_the_same_file_is_applied_again_after_the_change() -> None:
    renamed = account(HELP)
    plan = planned({"external_accounts": [external(HELP, renamed_from=SUPPORT)]}, renamed)
    assert [old for _, old in plan.save_externals] == [renamed]


def test_the_former_address_may_belong_to_a_new_account_afterwards() -> None:
    renamed, other = account(HELP), account(SUPPORT, 2)
    document = {"external_accounts": [external(HELP, renamed_from=SUPPORT), external(SUPPORT)]}
    assert [old for _, old in planned(document, renamed, other).save_externals] == [renamed, other]


def test_a_person_is_renamed_too_and_stays_a_delegate() -> None:
    jim = Local(8, "jim@local.com", True, HASH, "Jim", (), (), 1, 7)
    plan = planned(
        {"local_accounts": [local("Alex", address="al@local.com", renamed_from="alex@local.com")]},
        account(SUPPORT),
        people=(ALEX, jim),
    )
    assert [old for _, old in plan.save_locals] == [ALEX]
    _, people = expected_accounts(plan, [account(SUPPORT)], [ALEX, jim])
    assert {p.address: p.delegate_id for p in people} == {"al@local.com": None, "jim@local.com": 7}


@pytest.mark.parametrize(
    ("entries", "stored", "problem"),
    [
        (
            [external(HELP, renamed_from="suport@company.com")],
            [SUPPORT],
            f"external account {HELP}: renamed_from: 'suport@company.com' is the address of no account",
        ),
        (
            [external(HELP, renamed_from=SUPPORT), external(SUPPORT)],
            [SUPPORT],
            f"external account {HELP}: renamed_from: '{SUPPORT}' is the address of another entry, too",
        ),
        (
            [external(HELP, renamed_from=SUPPORT)],
            [SUPPORT, HELP],
            f"external account {HELP}: address: '{HELP}' is the address of another account already",
        ),
        (
            [external(SALES, renamed_from=SUPPORT), external(HELP, renamed_from=SALES)],
            [SUPPORT, SALES],
            f"external account {SALES}: renamed_from: '{SUPPORT}' is the address of an account that is changed, too",
        ),
        (
            [external(HELP, renamed_from=SUPPORT), external("desk@company.com", renamed_from=SUPPORT)],
            [SUPPORT],
            f"external account desk@company.com: renamed_from: '{SUPPORT}' is named by two entries",
        ),
        (
            [external(SALES, renamed_from=SUPPORT), external(SUPPORT, renamed_from=SALES)],
            [SUPPORT],
            f"external account {SALES}: renamed_from: '{SUPPORT}' is the address of another entry, too",
        ),
        (
            [external(SALES, renamed_from=SUPPORT), external(SUPPORT, renamed_from=SALES)],
            [SUPPORT, SALES],
            f"external account {SALES}: renamed_from: '{SUPPORT}': has this address as its former one, too",
        ),
    ],
)
def test_an_impossible_change_of_an_address_is_named(
    entries: list[dict[str, Any]], stored: list[str], problem: str
) -> None:
    with pytest.raises(AccountsError) as caught:
        planned({"external_accounts": entries}, *(account(address, at) for at, address in enumerate(stored, 1)))
    assert problem in str(caught.value)


def test_accounts_with_tokens_of_a_renamed_one_follow_it() -> None:
    support = account(SUPPORT)
    user = replace(account(SALES, 2), oauth=OAuth.of_account(SUPPORT.upper()))
    by_relay = replace(account("news@company.com", 3), relays=(replace(Relay(SERVER), login="x", tokens_of=SUPPORT),))
    plan = planned({"external_accounts": [external(HELP, renamed_from=SUPPORT)]}, support)
    after, _ = expected_accounts(plan, [support, user, by_relay], [])
    assert [e.oauth and e.oauth.same_as for e in after] == [None, HELP, None]
    assert after[2].relay.tokens_of == HELP


def test_a_login_that_follows_its_address_is_the_same_maildrop() -> None:
    old = account(SUPPORT)
    assert not is_other_maildrop(old, replace(old, address=HELP, login=HELP))
    assert not is_other_maildrop(old, replace(old, address=HELP))
    assert not is_other_maildrop(old, replace(old, login=HELP, aliases=(HELP,)))
    assert not is_other_maildrop(old, replace(old, login=SUPPORT.upper()))
    assert is_other_maildrop(old, replace(old, login=HELP))
    assert is_other_maildrop(old, replace(old, address=HELP, login="other"))
