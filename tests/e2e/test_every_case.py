"""Every example of tests/cases through the whole system: mailboxes read by POP3, and ``route``, say what is expected.

Each case has an external account and people of its own, so all of them are under way together.
"""

from __future__ import annotations

import base64
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


def read_cases(name: str) -> list[dict[str, Any]]:
    lines = (Path(__file__).parent.parent / "cases" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


CASES = read_cases("to_headers.jsonl")
REPORTS = [case for case in read_cases("public-reports.jsonl") if case["kind"] == "routing"]


@dataclass(frozen=True)
class Case:
    """A case moved to a domain of its own.

    people: local address by user name. token: text of its mail. allowed: the sets that are right.
    """

    name: str
    external: str
    people: dict[str, str]
    mail: bytes
    token: str
    allowed: list[set[str]]


def moved(case: dict[str, Any]) -> Case:
    """The case with company.com replaced, in the case of letters that it has."""
    name = str(case["id"]).lower()
    domain = f"c{name}.example"

    def move(text: bytes) -> bytes:
        written = domain.encode()
        return re.sub(rb"company\.com", lambda m: written.upper() if m[0].isupper() else written, text, flags=re.I)

    people = {user: f"p{position}@case{name}.local" for position, user in enumerate(case["users"])}
    if "mail_b64" in case:
        mail = move(base64.b64decode(case["mail_b64"]))
        allowed = case["expect"]
    else:
        lines = [f"{field}: {value}\r\n" for field in ("to", "cc") for value in case[field]]
        mail = b"From: anna@customer.example\r\n" + move("".join(lines).encode()) + b"Subject: case\r\n"
        mail += f"Message-ID: <case{name}@customer.example>\r\n\r\nHello\r\n".encode()
        allowed = [case["expect"], *case.get("accept_also", [])]
    token = re.findall(rb"Message-ID: (<[^<>@]+@)", mail)[0].decode()
    external = move(case["external"].encode()).decode()
    return Case(name, external, people, mail, token, [{people[user] for user in users} for users in allowed])


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
    cases = [case for case in map(moved, CASES + REPORTS) if may_be_saved(case)]
    assert len(CASES) + len(REPORTS) - len(cases) == 1  # two names that differ in the case of letters only
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
        got = set(system.who_has(case.token, list(case.people.values())))
        if got not in case.allowed:
            wrong.append(f"case {case.name}: delivered to {got}, not {case.allowed}")
    for case in cases:
        file = system.folder / "case.eml"
        file.write_bytes(case.mail)
        said = set(system.json("route", str(file), "--external", case.external)["recipients"])
        if said not in case.allowed:
            wrong.append(f"case {case.name}: route says {said}, not {case.allowed}")
    assert not wrong
