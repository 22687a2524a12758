"""The commands on single accounts: ``external …``, ``local …``."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from services.admin.accounts.errors import AccountsError, Kind
from services.admin.accounts.passwords import MIN_CHARACTERS, generate_password, require_strong
from services.admin.cli.account_change import change_accounts
from services.admin.cli.account_fields import EXTERNAL_FIELDS, LOCAL_FIELDS, Fields, parse_fields
from services.admin.cli.existing_mail import ask_history
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Address, Data, Json, group
from services.admin.cli.output import MISUSE, fail, print_json, run
from services.admin.cli.transactions import run_change, run_list

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.accounts import edit, file_format
    from services.admin.accounts import export as accounts_export
    from services.admin.mail import operations
    from shared.db import database

external = group("External accounts: the shared mailboxes at providers (manual 4.1).")
local = group("Local accounts: the people who share an external account (manual 4.2).")
Weak = Annotated[bool, typer.Option("--weak", help=f"Accept a password of fewer than {MIN_CHARACTERS} characters.")]
Generate = Annotated[bool, typer.Option("--generate", help="Set a random password, and print it.")]


def is_asked() -> bool:
    """Whether somebody at a terminal can answer a question."""
    return sys.stdin.isatty()


def _save(
    kind: Kind,
    address: str,
    fields: dict[str, Any],
    data: Path | None,
    json: bool,
    new: bool,
    weak: bool = False,
    generate: bool = False,
) -> None:
    async def work() -> None:
        if generate:
            fields["password"] = generate_password()
        async with context.open_context(data) as system:
            given = any(name.startswith("password") or name == "oauth" for name in fields)
            if new and not given and is_asked():
                fields["password"] = typer.prompt(f"Password of {address}", hide_input=True)
            if new and kind == "external" and "history" not in fields and is_asked():
                fields["history"] = await ask_history(system, address, fields)

            async def prepare(connection: database.Connection) -> file_format.AccountsFile:
                requested = await edit.prepare(connection, kind, address, fields, new, Path.cwd())
                if not weak:
                    require_strong(requested)
                return requested

            await change_accounts(system, prepare, json, generated=fields["password"] if generate else None)

    run(work)


def _remove(kind: Kind, address: str, data: Path | None, json: bool) -> None:
    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        lines = await edit.remove(connection, kind, address)
        await audit.record_change(connection, audit.operator(), f"removed {kind} account", address)
        return lines

    run_change(data, json, change)


def _list_externals(data: Path | None, json: bool) -> None:
    def cells(entry: dict[str, Any]) -> tuple[object, ...]:
        enabled = ("on hold" if entry["hold"] else "yes") if entry["enabled"] else "no"
        protocol = "imap" if "imap" in entry else "pop3"
        incoming, smtp = ("{host}:{port} {tls}".format(**entry[name]) for name in (protocol, "smtp"))
        return entry["address"], enabled, protocol.upper(), incoming, smtp, f"{entry['poll_seconds']} s"

    columns = ("Address", "Enabled", "Fetch by", "Incoming", "SMTP", "Every")
    run_list("External accounts", columns, cells, data, json, _read("external"))


def _list_locals(data: Path | None, json: bool) -> None:
    def cells(entry: dict[str, Any]) -> tuple[object, ...]:
        enabled = "yes" if entry["enabled"] else "no"
        return entry["address"], enabled, entry["user_name"], entry["external"], ", ".join(entry["aliases"])

    columns = ("Address", "Enabled", "User name", "Shares", "Further names")
    run_list("Local accounts", columns, cells, data, json, _read("local"))


def _read(kind: Kind) -> Callable[[database.Connection], Awaitable[list[dict[str, Any]]]]:
    async def read(connection: database.Connection) -> list[dict[str, Any]]:
        document = await accounts_export.build_document(connection)
        return list(document[f"{kind}_accounts"])

    return read


def _show(kind: Kind, address: str, data: Path | None, json: bool) -> None:
    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            entry = await accounts_export.find_entry(connection, kind, address)
        if json:
            print_json(entry)
        else:
            print(accounts_export.as_yaml(entry), end="")

    run(work)


def _define(parent: typer.Typer, kind: Kind, example: str) -> None:
    """Define the commands that both kinds of account share."""

    @parent.command("list", help=f"List the accounts.\n\nExample: mailgroup {kind} list")
    def list_(data: Data = None, json: Json = False) -> None:
        (_list_externals if kind == "external" else _list_locals)(data, json)

    @parent.command(help=f"Show an account, without its password.\n\nExample: mailgroup {kind} show {example}")
    def show(address: Address, data: Data = None, json: Json = False) -> None:
        _show(kind, address, data, json)

    @parent.command(help=f"Enable an account.\n\nExample: mailgroup {kind} enable {example}")
    def enable(address: Address, data: Data = None, json: Json = False) -> None:
        _save(kind, address, {"enabled": True}, data, json, new=False)

    @parent.command(help=f"Disable an account.\n\nExample: mailgroup {kind} disable {example}")
    def disable(address: Address, data: Data = None, json: Json = False) -> None:
        _save(kind, address, {"enabled": False}, data, json, new=False)

    @parent.command(help=f"Remove an account.\n\nExample: mailgroup {kind} remove {example}")
    def remove(address: Address, data: Data = None, json: Json = False) -> None:
        _remove(kind, address, data, json)


def _change_fields(
    kind: Kind,
    address: str,
    fields: list[str] | None,
    data: Path | None,
    json: bool,
    new: bool,
    weak: bool = False,
    generate: bool = False,
) -> None:
    try:
        values = parse_fields(fields)
    except AccountsError as error:
        fail(str(error), MISUSE)
    if generate and any(name.startswith("password") for name in values):
        fail("--generate: a password is given, too", MISUSE)
    _save(kind, address, values, data, json, new, weak, generate)


def _help(summary: str, fields: Sequence[str], example: str) -> str:
    return f"{summary}\n\nFields: {', '.join(fields)}.\n\nExample: mailgroup {example}"


def _define_external(name: str, summary: str, example: str, new: bool) -> None:
    @external.command(name, help=_help(summary, EXTERNAL_FIELDS, f"external {name} {example}"))
    def save(address: Address, fields: Fields = None, data: Data = None, json: Json = False) -> None:
        _change_fields("external", address, fields, data, json, new)


def _define_local(name: str, summary: str, example: str, new: bool) -> None:
    @local.command(name, help=_help(summary, LOCAL_FIELDS, f"local {name} {example}"))
    def save(
        address: Address,
        fields: Fields = None,
        weak: Weak = False,
        generate: Generate = False,
        data: Data = None,
        json: Json = False,
    ) -> None:
        _change_fields("local", address, fields, data, json, new, weak, generate)


_define_external(
    "add",
    "Add an account. Its mail is on hold until 'external start'. It is fetched by POP3, or by IMAP with imap.host=... "
    "instead of pop3.host=...; smtp[1].host=... adds a second SMTP server.",
    "support@company.com pop3.host=pop.company.com smtp.host=smtp.company.com history=all",
    new=True,
)
_define_external(
    "set",
    "Change fields of an account. imap.host=... instead of pop3.host=... changes the protocol, and the other way "
    "round. smtp[1].host=... adds a second SMTP server, smtp[1]= removes it.",
    "support@company.com password=-",
    new=False,
)
_define_local(
    "add",
    "Add an account.",
    "alex@local.com user_name=Alex external=support@company.com --generate",
    new=True,
)
_define_local(
    "set",
    "Change fields of an account.",
    "alex@local.com password=-",
    new=False,
)
_define(external, "external", "support@company.com")
_define(local, "local", "alex@local.com")


@local.command()
def restore(address: Address, data: Data = None, json: Json = False) -> None:
    """Restore a removed local account with its mail, within the retention time.

    Example: mailgroup local restore alex@local.com
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        person = await operations.restore_account(connection, address)
        await audit.record_change(connection, audit.operator(), "restored local account", address)
        return [f"local account {address}: restored{'' if person.enabled else '; it is disabled, as it was before'}"]

    run_change(data, json, change)
