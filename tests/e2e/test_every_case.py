"""Every example of tests/cases through the whole system: mailboxes read by POP3, and ``route``, say what is expected.

Each case has an external account and people of its own, so all of them are under way together.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import check
from services.admin.accounts.plan import find_conflicts
from shared.model import Local
from tests.company import local
from tests.system import System, until

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "cases" / "to_headers.jsonl").read_text(encoding="utf-8").splitlines()
]


@dataclass(frozen=True)
class Case:
    """A case moved to a domain of its own. people: local address by user name. allowed: the sets that are right."""

    number: int
    external: str
    people: dict[str, str]
    mail: bytes
    allowed: list[set[str]]


def moved(case: dict[str, Any]) -> Case:
    """The case with company.com replaced, in the case of letters that it has."""
    domain = f"c{case['id']}.example"

    def move(text: str) -> str:
        return re.sub(r"company\.com", lambda m: domain.upper() if m[0].isupper() else domain, text, flags=re.I)

    people = {name: f"p{position}@case{case['id']}.local" for position, name in enumerate(case["users"])}
    lines = [f"{field}: {move(value)}\r\n" for field in ("to", "cc") for value in case[field]]
    mail = (
        f"From: anna@customer.example\r\n{''.join(lines)}Subject: case\r\n"
        f"Message-ID: <case{case['id']}@customer.example>\r\n\r\nHello\r\n"
    ).encode()
    allowed = [case["expect"], *case.get("accept_also", [])]
    return Case(
        case["id"], move(case["external"]), people, mail, [{people[name] for name in names} for names in allowed]
    )


def may_be_saved(case: Case) -> bool:
    """Whether the accounts file accepts these names."""
    try:
        check({"local_accounts": accounts_of(case)}, "case")
    except AccountsError:
        return False
    locals_ = [
        Local(id_, address, True, "", name, (), (), 1, None) for id_, (name, address) in enumerate(case.people.items())
    ]
    return not any("user_name" in problem for problem in find_conflicts([], locals_))


def accounts_of(case: Case) -> list[dict[str, Any]]:
    return [local(name, case.external, address=address) for name, address in case.people.items()]


def test_every_case_is_delivered_and_predicted_as_expected(system: System) -> None:
    cases = [case for case in map(moved, CASES) if may_be_saved(case)]
    assert len(CASES) - len(cases) == 1  # two names that differ in the case of letters only
    system.apply(
        {
            "external_accounts": [system.external(case.external) for case in cases],
            "local_accounts": [account for case in cases for account in accounts_of(case)],
        }
    )
    for case in cases:
        system.provider.put(case.external, case.mail)
    until(lambda: all(book["delivered"] == 1 for book in system.json("status")["books"].values()), 120)
    wrong = []
    for case in cases:
        got = set(system.who_has(f"<case{case.number}@", list(case.people.values())))
        if got not in case.allowed:
            wrong.append(f"case {case.number}: delivered to {got}, not {case.allowed}")
    for case in cases:
        file = system.folder / "case.eml"
        file.write_bytes(case.mail)
        said = set(system.json("route", str(file), "--external", case.external)["recipients"])
        if said not in case.allowed:
            wrong.append(f"case {case.number}: route says {said}, not {case.allowed}")
    assert not wrong
