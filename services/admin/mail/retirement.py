"""The retirement of a person: mailbox and future mail go to colleagues, then the account is disabled or removed.

Command, console and REST API share ``retire``. All of it is one transaction: no mail arrives between the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.admin.access import audit
from services.admin.accounts import apply, edit, export
from services.admin.accounts.change_lines import ChangeLine
from services.admin.accounts.errors import AccountProblem, AccountsError
from services.admin.accounts.file_format import AccountsFile
from services.admin.formatting import counted, counted_for_record, thousands
from services.admin.mail import operations
from shared.auth.passwords import HashingPool
from shared.db.database import Connection
from shared.errors import Permanent
from shared.languages.translation import gettext
from shared.mime.display_names import normalise
from shared.model import Local
from shared.provider.vault import Vault
from shared.store import account_changes, accounts, folder_admin

RETIRE_SECONDS = 600.0
"""Limit of the transaction that copies a mailbox: seconds; a mailbox of many years takes minutes."""


@dataclass(frozen=True, slots=True)
class Retirement:
    """What becomes of a person's mail and account. Addresses of colleagues; None: nobody."""

    address: str  # of the person
    mailbox_to: str | None = None  # gets a copy of every mail in the mailbox, as new mail
    delegate: str | None = None  # gets future mail with the person's names; None: everyone who shares the account
    then: Literal["disable", "remove", "keep"] = "disable"


@dataclass(frozen=True, slots=True)
class RetirementPlan:
    """The people of a retirement, and what will happen, a sentence each."""

    person: Local
    mailbox_to: Local | None
    delegate: Local | None
    mails: int  # in the mailbox
    effects: Sequence[str]


async def prepare(connection: Connection, wanted: Retirement, retention_days: int) -> RetirementPlan:
    """Check a retirement, and say what it will do.

    :raises Permanent: there is no such person. :raises AccountsError: a colleague cannot take the mail.
    """
    people = await accounts.locals_by_login(
        connection, [a for a in (wanted.address, wanted.mailbox_to, wanted.delegate) if a]
    )
    person = people.get(wanted.address)
    if person is None:
        raise Permanent(f"{wanted.address}: there is no such local account")
    if person.address.casefold() != wanted.address.casefold():  # perhaps of a person who is retired already
        raise Permanent(f"{wanted.address}: is a further address of {person.address}; name the main address")
    problems = [*_find_problems(person, wanted, people)]
    if problems:
        raise AccountsError(problems)
    mailbox_to, delegate = people.get(wanted.mailbox_to or ""), people.get(wanted.delegate or "")
    mails = (await folder_admin.load_summary(connection, person.id)).mails
    counts = (0, 0)
    if mailbox_to is not None:
        counts = await folder_admin.count_handed_over(connection, person.id, mailbox_to.id)
    effects = _describe(person, mailbox_to, delegate, wanted.then, counts, retention_days)
    return RetirementPlan(person, mailbox_to, delegate, mails, effects)


def _find_problems(person: Local, wanted: Retirement, people: dict[str, Local]) -> list[AccountProblem]:
    found: list[tuple[str, str, str]] = []  # name of the field, value, words
    for name, address in (("mailbox_to", wanted.mailbox_to), ("delegate", wanted.delegate)):
        colleague = people.get(address or "")
        words = ""
        if address and colleague is None:
            words = "there is no such local account"
        elif colleague is not None and colleague.id == person.id:
            words = "has to be a colleague"
        elif colleague is not None and not colleague.enabled:
            words = "is disabled and gets no mail; enable it first, or name another colleague"
        elif colleague is not None and name == "delegate" and colleague.external_id != person.external_id:
            words = "has to be another local account that shares the same external account"
        if words:
            found.append((name, repr(address), words))
    if wanted.then == "keep" and wanted.delegate:
        found.append(("delegate", repr(wanted.delegate), "gets mail only after the account is disabled or removed"))
    if wanted.then == "keep" and not wanted.mailbox_to:
        found.append(("then", "", "nothing would be done"))
    return [
        AccountProblem(words, "local", address=person.address, field=(name,), value=value)
        for name, value, words in found
    ]


def _describe(
    person: Local, mailbox_to: Local | None, delegate: Local | None, then: str, counts: tuple[int, int], days: int
) -> list[str]:
    """Return what will happen, a sentence each, in the language that applies. Pure.

    :param counts: mails to hand over; new copies of these.
    """
    effects = []
    if mailbox_to is not None:
        mails, copies = counts
        said = gettext(
            "Copies of %(mails)s are put into the mailbox of %(address)s, as new mail. This cannot be undone.",
            mails=counted(copies),
            address=mailbox_to.address,
        )
        if mails > copies:
            said += " " + gettext("%(count)s more reached that mailbox earlier.", count=thousands(mails - copies))
        effects.append(said)
    if then != "keep":
        names = ", ".join(person.names)
        if delegate:
            said = gettext(
                "Mail to %(names)s that comes from now on goes to %(address)s.", names=names, address=delegate.address
            )
        else:
            said = gettext(
                "Mail to %(names)s that comes from now on goes to everyone who shares the account.", names=names
            )
        effects.append(said)
    if then == "disable":
        said = gettext(
            "%(address)s is disabled: nobody can log in with it. Enable it again at any time.", address=person.address
        )
        effects.append(said)
    elif then == "remove":
        if delegate:
            said = gettext(
                "%(address)s is removed. It can be brought back with its mail for %(days)s days, after its names and "
                "addresses are removed from %(delegate)s.",
                address=person.address,
                days=days,
                delegate=delegate.address,
            )
        else:
            said = gettext(
                "%(address)s is removed. It can be brought back with its mail for %(days)s days.",
                address=person.address,
                days=days,
            )
        effects.append(said)
    return effects


async def retire(
    connection: Connection, wanted: Retirement, vault: Vault, passwords: HashingPool, who: str, retention_days: int
) -> list[ChangeLine]:
    """Retire a person in the caller's transaction, and record it in the audit log.

    :param who: for the audit log. :return: what was done. Errors as ``prepare``.
    """
    await account_changes.lock_for_change(connection)
    plan = await prepare(connection, wanted, retention_days)
    person, lines = plan.person, list[ChangeLine]()
    involved = [each.id for each in (person, plan.mailbox_to, plan.delegate) if each is not None]
    await account_changes.lock_folders(connection, involved)
    if plan.mailbox_to is not None:
        count = await operations.copy_mailbox_to(connection, person.address, plan.mailbox_to.address)
        mails = counted_for_record(count)
        await audit.record_change(
            connection, who, "handed mail over", person.address, f"{mails} to {plan.mailbox_to.address}"
        )
        copied = f"local account {person.address}: {mails} copied to {plan.mailbox_to.address}"
        lines.append(ChangeLine(copied))
    if wanted.then == "keep":
        return lines
    if wanted.then == "remove":
        lines += map(ChangeLine, await edit.remove(connection, "local", person.address))
        await audit.record_change(connection, who, "removed local account", person.address)
        if plan.delegate is None:
            return lines
        requested = await _with_names_of(connection, plan.delegate, person)
    else:
        fields = {"enabled": False, "delegate": plan.delegate.address if plan.delegate else None}
        requested = await edit.prepare(connection, "local", person.address, fields, new=False)
    outcome = await apply.apply(connection, requested, vault, passwords)
    await audit.record_lines(connection, who, outcome.lines)
    return lines + outcome.changes


async def _with_names_of(connection: Connection, colleague: Local, person: Local) -> AccountsFile:
    """Return the colleague with the names and addresses of a removed person as further ones."""
    entry: dict[str, Any] = await export.find_entry(connection, "local", colleague.address)
    known = {normalise(name) for name in colleague.names}
    fields = {
        "aliases": [*entry["aliases"], *(name for name in person.names if normalise(name) not in known)],
        "addresses": [*entry["addresses"], person.address, *person.addresses],
    }
    return await edit.prepare(connection, "local", colleague.address, fields, new=False)
