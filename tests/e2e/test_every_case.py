"""Every example of tests/cases in the whole system: the mailboxes, read by POP3, and ``route`` agree with it.

Each case has its own external account and people, so all cases run at the same time.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.admin.accounts.conflicts import find_conflicts
from services.admin.accounts.errors import AccountsError
from services.admin.accounts.file_format import check
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
    """A case that uses its own domain."""

    name: str
    external: str  # address of its external account
    people: dict[str, str]  # local address by user name
    mail: bytes
    token: str  # a text that only this case's mail contains
    allowed: list[set[str]]  # each a correct set of recipients


def moved(case: dict[str, Any]) -> Case:
    """Return a case with company.com replaced by its own domain, upper case where company.com is."""
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
    """Return whether the accounts file accepts the user names of a case."""
    try:
        check({"local_accounts": accounts_of(case)}, "case")
    except AccountsError:
        return False
    locals_ = [
        Local(id_, address, True, "", name, (), (), 1, None) for id_, (name, address) in enumerate(case.people.items())
    ]
    return not any(problem.field == ("user_name",) for problem in find_conflicts([], locals_))


def accounts_of(case: Case) -> list[dict[str, Any]]:
    return [local(name, case.external, address=address) for name, address in case.people.items()]


def test_every_case_is_delivered_and_predicted_as_expected(system: System) -> None:
    cases = [case for case in map(moved, CASES + REPORTS) if may_be_saved(case)]
    assert len(CASES) + len(REPORTS) - len(cases) == 1  # two user names that differ only in upper and lower case
    system.apply(
        {
            "external_accounts": [system.external(case.external) for case in cases],
            "local_accounts": [account for case in cases for account in accounts_of(case)],
        }
    )
    for case in cases:
        system.provider.put(case.external, case.mail)
    until(lambda: all(book["delivered"] == 1 for book in system.json("status")["books"].values()))
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
