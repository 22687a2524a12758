"""The commands on accounts: ``apply``, ``export``, ``external …``, ``local …``."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from services.admin.accounts.errors import AccountsError, Kind
from services.admin.accounts.passwords import MIN_CHARACTERS, describe_weak, generate_password, require_strong
from services.admin.cli.existing_mail import ask_history, start
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Address, Data, Json, group
from services.admin.cli.output import MISUSE, console, fail, print_json, print_lines, print_table, run, show_waiting
from services.admin.cli.progress import show_progress
from services.admin.cli.retirement import retire
from shared.errors import Permanent

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.accounts import apply as accounts_apply
    from services.admin.accounts import connection_check, edit, file_format, yaml_text
    from services.admin.accounts import export as accounts_export
    from services.admin.cli import authorize as authorization
    from services.admin.mail import operations
    from shared import model, settings
    from shared.db import database
    from shared.store import accounts

CHANGE_SECONDS = 3600.0
"""Time limit of a change: seconds; ten thousand passwords take minutes to hash."""

external = group("External accounts: the shared mailboxes at providers (manual 4.1).")
local = group("Local accounts: the people who share an external account (manual 4.2).")
Fields = Annotated[
    list[str] | None,
    typer.Argument(
        help="Fields as in the accounts file, for example pop3.host=pop.company.com aliases=[help@company.com]; "
        "password=- reads it from standard input.",
        metavar="FIELD=VALUE...",
    ),
]


Weak = Annotated[bool, typer.Option("--weak", help=f"Accept a password of fewer than {MIN_CHARACTERS} characters.")]
Generate = Annotated[bool, typer.Option("--generate", help="Set a random password, and print it.")]


def apply(
    file: Annotated[Path, typer.Argument(help="Accounts file (YAML or JSON).", metavar="FILE")],
    prune: Annotated[bool, typer.Option("--prune", help="Remove accounts that the file does not name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the changes without making them.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Create and change the accounts as FILE says, and print the changes; they are in force when the command returns.

    Example: mailgroup apply accounts.yaml
    """

    async def work() -> None:
        wanted = file_format.read_file(file)
        if wanted.problems and settings.load(data=data).database_url is None:
            wanted.require_valid()  # with a database, these are reported together with those that need it

        async def read(_: database.Connection) -> file_format.AccountsFile:
            return wanted

        async with context.open_context(data) as system:
            await change_accounts(system, read, json, prune=prune, shown=not json, kept=not dry_run)

    run(work)


def export(data: Data = None, json: Json = False) -> None:
    """Print the accounts file of all accounts, without passwords.

    Example: mailgroup export > accounts.yaml
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            document = await accounts_export.build_document(connection)
        if json:
            print_json(document)
        else:
            print(accounts_export.as_yaml(document), end="")

    run(work)


def is_asked() -> bool:
    """Whether somebody at a terminal can answer a question."""
    return sys.stdin.isatty()


async def change_accounts(
    system: context.AdminContext,
    prepare: Callable[[database.Connection], Awaitable[file_format.AccountsFile]],
    json: bool,
    *,
    prune: bool = False,
    shown: bool = False,
    kept: bool = True,
    generated: str | None = None,
) -> None:
    """Change accounts, and print the changes and what happens to the mail at the providers.

    :param prepare: returns the accounts; it runs in the transaction of the change. :param shown: show the progress.
    :param generated: the new password, to be printed, too. :param kept: False rolls the changes back.
    """
    with show_progress("Passwords", shown=shown) as progress:
        async with system.database.transaction(CHANGE_SECONDS, kept=kept) as connection:
            wanted = await prepare(connection)
            outcome = await accounts_apply.apply(connection, wanted, system.vault, system.passwords, prune, progress)
            await audit.record_lines(connection, audit.operator(), outcome.lines)
    if outcome.weak:
        print(f"mailgroup: warning: {describe_weak(outcome.weak)}", file=sys.stderr)
    if not json:
        print_lines(outcome.lines or ["nothing to change"])
        print_lines([f"password: {generated}"] if generated else [])
    if not kept:
        outcome.contacts.clear()  # the provider is asked about accounts that exist
    with show_waiting("Asking the provider for the mail there"):
        found = await connection_check.describe_maildrop(system, outcome.contacts)
    if json:
        print_json({"changed": outcome.lines, "providers": found} | ({"password": generated} if generated else {}))
    else:
        print_lines(found)


# ---------------------------------------------------------------------------------------------- one account at a time


_TEXTS = (
    *("password", "password_file", "password_hash", "login", "host", "tls", "tls_fingerprint", "user_name", "external"),
    *("client_id", "client_secret", "token_url", "scope", "device_url", "authorize_url"),
)
"""Fields whose value is always text, even if YAML would read a number or a list."""


def _parse(fields: list[str] | None) -> dict[str, Any]:
    """Parse FIELD=VALUE words into a mapping; pop3.host=x means {"pop3": {"host": "x"}}.

    :raises AccountsError: a word has another form.
    """
    values: dict[str, Any] = {}
    for word in fields or []:
        name, sign, text = word.partition("=")
        if not sign or not name:
            raise AccountsError([f"{word!r}: fields are given as FIELD=VALUE"])
        if name == "password" and text == "-":
            value: Any = sys.stdin.readline().rstrip("\r\n")
        elif text and name.rpartition(".")[2] in _TEXTS:
            value = text
        else:
            value = yaml_text.load_yaml(text, name) if text else None
        place = values
        *outer, last = name.split(".")
        for step in outer:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise AccountsError([f"{word!r}: {step} is given twice"])
        place[last] = value
    return values


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
    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            lines = await edit.remove(connection, kind, address)
            await audit.record_change(connection, audit.operator(), f"removed {kind} account", address)
        if json:
            print_json({"changed": lines})
        else:
            print_lines(lines)

    run(work)


def _list(kind: Kind, data: Path | None, json: bool) -> None:
    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            entries = (await accounts_export.build_document(connection))[f"{kind}_accounts"]
        if json:
            print_json(entries)
        elif kind == "external":
            print_table(
                "External accounts",
                ("Address", "Enabled", "POP3", "SMTP", "Every"),
                (
                    (
                        e["address"],
                        ("on hold" if e["hold"] else "yes") if e["enabled"] else "no",
                        "{host}:{port} {tls}".format(**e["pop3"]),
                        "{host}:{port} {tls}".format(**e["smtp"]),
                        f"{e['poll_seconds']} s",
                    )
                    for e in entries
                ),
            )
        else:
            print_table(
                "Local accounts",
                ("Address", "Enabled", "User name", "Shares", "Further names"),
                (
                    (
                        e["address"],
                        "yes" if e["enabled"] else "no",
                        e["user_name"],
                        e["external"],
                        ", ".join(e["aliases"]),
                    )
                    for e in entries
                ),
            )

    run(work)


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
        _list(kind, data, json)

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
        values = _parse(fields)
    except AccountsError as error:
        fail(str(error), MISUSE)
    if generate and any(name.startswith("password") for name in values):
        fail("--generate: a password is given, too", MISUSE)
    _save(kind, address, values, data, json, new, weak, generate)


@external.command("add")
def add_external(address: Address, fields: Fields = None, data: Data = None, json: Json = False) -> None:
    """Add an account. Its mail is on hold until 'external start'.

    Example: mailgroup external add support@company.com pop3.host=pop.company.com smtp.host=smtp.company.com history=all
    """
    _change_fields("external", address, fields, data, json, new=True)


@external.command("set")
def set_external(address: Address, fields: Fields = None, data: Data = None, json: Json = False) -> None:
    """Change fields of an account.

    Example: mailgroup external set support@company.com password=-
    """
    _change_fields("external", address, fields, data, json, new=False)


@local.command("add")
def add_local(
    address: Address,
    fields: Fields = None,
    weak: Weak = False,
    generate: Generate = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Add an account.

    Example: mailgroup local add alex@local.com user_name=Alex external=support@company.com --generate
    """
    _change_fields("local", address, fields, data, json, new=True, weak=weak, generate=generate)


@local.command("set")
def set_local(
    address: Address,
    fields: Fields = None,
    weak: Weak = False,
    generate: Generate = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Change fields of an account.

    Example: mailgroup local set alex@local.com password=-
    """
    _change_fields("local", address, fields, data, json, new=False, weak=weak, generate=generate)


_define(external, "external", "support@company.com")
_define(local, "local", "alex@local.com")


@local.command()
def restore(address: Address, data: Data = None, json: Json = False) -> None:
    """Restore a removed local account with its mail, within the retention time.

    Example: mailgroup local restore alex@local.com
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            person = await operations.restore_account(connection, address)
            await audit.record_change(connection, audit.operator(), "restored local account", address)
        lines = [f"local account {address}: restored{'' if person.enabled else '; it is disabled, as it was before'}"]
        if json:
            print_json({"changed": lines})
        else:
            print_lines(lines)

    run(work)


local.command("retire")(retire)
external.command("start")(start)


@external.command("test")
def test(address: Address, data: Data = None, json: Json = False) -> None:
    """Check an external account step by step, POP3 and SMTP; no mail is fetched or sent.

    Example: mailgroup external test support@company.com
    """

    async def work() -> None:
        async with context.open_context(data) as system:
            account = await find_external(system, address)
            with show_waiting(f"Checking {address}"):
                steps = await connection_check.check_connection(system, account)
        if json:
            print_json([step.fields() for step in steps])
        else:
            for step in steps:
                console.print("[green]ok[/green]  " if step.ok else "[red]bad[/red] ", end="")
                console.print(f"{step.name}: {step.text} ({step.seconds * 1000:.0f} ms)", markup=False)
                if step.certificate is not None:
                    field = f"{step.server}.tls_fingerprint={step.certificate.fingerprint}"
                    print_lines(
                        [
                            f"     certificate: {step.certificate.describe()}",
                            f"     to trust this one: mailgroup external set {address} {field}",
                        ]
                    )
        if not all(step.ok for step in steps):
            raise typer.Exit(1)

    run(work)


@external.command("authorize")
def authorize(address: Address, data: Data = None) -> None:
    """Authorize mailgroup at the provider's page to read and send the account's mail (oauth).

    Example: mailgroup external authorize support@company.com
    """

    async def work() -> None:
        async with context.open_context(data) as system:
            account = await find_external(system, address)
            await authorization.authorize(system, account, audit.operator(), lambda line: print(line, flush=True))
        console.print(f"external account {address}: authorized", markup=False)

    run(work)


@external.command("skipped")
def skipped(
    address: Address,
    acknowledge: Annotated[
        bool, typer.Option("--acknowledge", help="Stop reporting these skipped messages as a problem.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Fetch them again now.")] = False,
    ids: Annotated[
        list[int] | None, typer.Option("--id", help="This mail only; may be given more than once.", metavar="ID")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List the mails that could not be fetched and stay at the provider; acknowledge them, or fetch them again.

    'status' does not report an acknowledged mail as a problem.

    Example: mailgroup external skipped support@company.com --acknowledge --id 17
    """
    if acknowledge and retry:
        fail("--acknowledge, --retry: give one of them", MISUSE)
    if ids and not (acknowledge or retry):
        fail("--id: is given with --acknowledge or --retry", MISUSE)

    async def work() -> None:
        async with context.open_context(data) as system:
            account = await find_external(system, address)
            async with system.database.transaction() as connection:
                if acknowledge or retry:
                    done = await (operations.fetch_again if retry else operations.acknowledge)(connection, account, ids)
                    did = await operations.record_skipped(connection, audit.operator(), account, retry, done)
                else:
                    rows = await operations.list_skipped(connection, account)
        if acknowledge or retry:
            if json:
                print_json({"done": done.done, "left": done.left})
            else:
                console.print(f"{address}: {did} {len(done.done)} mails", markup=False)
            if done.left:
                fail(f"not changed: {', '.join(map(str, done.left))}: not a skipped mail, or changed before")
        elif json:
            print_json(rows)
        else:
            _print_skipped(rows)

    run(work)


def _print_skipped(rows: list[dict[str, Any]]) -> None:
    print_table(
        "Not fetched",
        ("Id", "UIDL", "Octets", "Since", "Tries", "Acknowledged", "Reason"),
        (
            (
                row["id"],
                row["uidl"],
                row["octets"] if row["octets"] is not None else "?",
                row["since"],
                row["tries"],
                "yes" if row["acknowledged_at"] else "no",
                row["reason"],
            )
            for row in rows
        ),
        empty="every mail was fetched",
    )


async def find_external(system: context.AdminContext, address: str) -> model.External:
    """Load an external account. :raises Permanent: there is no such account."""
    async with system.database.transaction() as connection:
        externals = {e.address.casefold(): e for e in await accounts.load_externals(connection)}
    if address.casefold() not in externals:
        raise Permanent(accounts_export.say_no_account("external", address, [e.address for e in externals.values()]))
    return externals[address.casefold()]
