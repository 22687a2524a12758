"""services/admin/accounts/plan.py: the difference between stored accounts and a file, without a database."""

from __future__ import annotations

from typing import Any

import pytest

from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import check
from services.admin.accounts.plan import AccountsPlan, build_local, describe_change, plan_changes
from shared.model import External, Local, Server
from tests.company import COMPANY, HASH, SALES, SUPPORT, external, local

SERVER = Server("127.0.0.1", 1, "none")


def stored_external(address: str) -> External:
    return External(1, address, True, "x", b"", SERVER, SERVER, True, 2, 60, "all", None, False, True, ())


def stored_local(name: str, account_id: int = 1, delegate_id: int | None = None) -> Local:
    return Local(account_id, f"{name.lower()}@local.com", True, HASH, name, (), (), 1, delegate_id)


def planned(
    document: dict[str, Any], externals: list[External], people: list[Local], prune: bool = False
) -> AccountsPlan:
    return plan_changes(check(document, "test"), externals, people, prune)


def test_everything_in_a_file_is_saved_beside_what_is_stored() -> None:
    support, alex = stored_external("SUPPORT@company.com"), stored_local("Alex")
    plan = planned(COMPANY, [support], [alex])
    assert [(entry.address, old) for entry, old in plan.save_externals] == [(SUPPORT, support), (SALES, None)]
    assert [(entry.user_name, old) for entry, old in plan.save_locals] == [
        ("Alex", alex),
        ("Jim", None),
        ("Kim", None),
        ("Tom", None),
    ]
    assert (plan.remove_locals, plan.remove_externals) == ([], [])


@pytest.mark.parametrize("prune", [True, False])
def test_accounts_that_the_file_does_not_name_are_removed_only_to_prune(prune: bool) -> None:
    sales, tom = stored_external(SALES), stored_local("Tom")
    plan = planned({"external_accounts": [external()], "local_accounts": [local("Alex")]}, [sales], [tom], prune)
    assert (plan.remove_externals, plan.remove_locals) == (([sales], [tom]) if prune else ([], []))


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"external_accounts": [external(), external()]}, f"external_accounts: address '{SUPPORT}': is given twice"),
        (
            {"local_accounts": [local("Alex", SALES)]},
            f"local account alex@local.com: external: '{SALES}': there is no such external account; "
            f"there are {SUPPORT}",
        ),
        (
            {"local_accounts": [local("Alex", delegate="tom@local.com")]},
            "local account alex@local.com: delegate: 'tom@local.com': there is no such local account",
        ),
        (
            {"local_accounts": [{key: value for key, value in local("Alex").items() if key != "password_hash"}]},
            "local account alex@local.com: password: is missing, and none is stored",
        ),
    ],
)
def test_a_file_that_refers_to_nothing_or_lacks_something_has_no_plan(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(AccountsError) as caught:
        planned(document, [stored_external(SUPPORT)], [])
    assert caught.value.lines == [problem]


def test_a_person_who_is_to_share_an_account_that_is_pruned_has_no_plan() -> None:
    document = {"external_accounts": [external(SALES)], "local_accounts": [local("Alex")]}
    with pytest.raises(AccountsError, match="there is no such external account; there are sales"):
        planned(document, [stored_external(SUPPORT)], [], prune=True)
    assert planned(document, [stored_external(SUPPORT)], []).save_locals


def test_a_renamed_person_keeps_id_delegate_and_the_former_name() -> None:
    old = stored_local("Alex", 7, delegate_id=3)
    [entry] = check({"local_accounts": [local("Alex", user_name="Sascha", aliases=["Al", "alex"])]}, "t").local_accounts
    new = build_local(entry, old, 1, HASH)
    assert (new.id, new.delegate_id, new.user_name) == (7, 3, "Sascha")
    assert (new.aliases, new.former_names) == (("Al",), ("Alex",))
    assert (
        describe_change(old, new) == "changed user_name Alex -> Sascha, aliases none -> Al, former_names none -> Alex"
    )
