"""The commands on an external account's provider: ``external test``, ``check``, ``authorize``,
``probe-tag``, ``skipped``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Address, Data, Json
from services.admin.cli.output import MISUSE, console, fail, print_json, print_lines, print_table, run, show_waiting
from services.admin.cli.transactions import run_change
from services.admin.formatting import counted

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.accounts import check_now as start_check
    from services.admin.accounts import connection_check, export, tag_probe
    from services.admin.cli import authorize as authorization
    from services.admin.mail import operations
    from shared.db import database
    from shared.store import reply_tags


def check(address: Address, data: Data = None, json: Json = False) -> None:
    """Check an external account step by step, POP3 or IMAP, and SMTP; no mail is fetched or sent.

    Example: mailgroup external test support@company.com
    """

    async def work() -> None:
        async with context.open_context(data) as system:
            async with system.database.transaction() as connection:
                account = await export.find_external(connection, address)
            with show_waiting(f"Checking {address}"):
                steps = await connection_check.check_connection(system, account)
        if json:
            print_json([step.fields() for step in steps])
        else:
            for step in steps:
                console.print("ok  " if step.ok else "bad ", style="green" if step.ok else "red", end="")
                console.print(f"{step.name}: {step.text} ({step.seconds * 1000:.0f} ms)")
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


def authorize(address: Address, data: Data = None) -> None:
    """Authorize mailgroup at the provider's page to read and send the account's mail (oauth).

    Example: mailgroup external authorize support@company.com
    """

    async def work() -> None:
        async with context.open_context(data) as system:
            async with system.database.transaction() as connection:
                account = await export.find_external(connection, address)
            await authorization.authorize(system, account, audit.operator(), lambda line: print(line, flush=True))
        console.print(f"external account {address}: authorized")

    run(work)


def check_now(address: Address, data: Data = None, json: Json = False) -> None:
    """Check an account for new mail at once, before its interval has passed, also after failures.

    Example: mailgroup external check support@company.com
    """

    async def change(system: context.AdminContext, connection: database.Connection) -> list[str]:
        return [await start_check.request_check(connection, address, audit.operator())]

    run_change(data, json, change)


def probe_tag(
    address: Address,
    wait: Annotated[
        int, typer.Option("--wait", help="Wait so long for the mail to come back.", metavar="SECONDS", min=0, max=3600)
    ] = 120,
    data: Data = None,
    json: Json = False,
) -> None:
    """Send a probe mail to find out whether the account's provider delivers mail to its address with a reply tag.

    The mail reaches nobody's mailbox. When it has come back, 'external set ADDRESS reply_tag=true' is possible.

    Example: mailgroup external probe-tag support@company.com
    """

    async def work() -> None:
        async with context.open_context(data) as system:
            async with system.database.transaction() as connection:
                account = await export.find_external(connection, address)
            with show_waiting(f"Sending a probe mail to {address}"):
                probe: reply_tags.TagProbe | None = await tag_probe.send_probe(system, account, audit.operator())
                probe = await tag_probe.wait_for_result(system, account.id, wait)
        if json:
            print_json(tag_probe.probe_fields(probe))
        else:
            console.print(f"{address}: {tag_probe.describe_probe(probe)}")
        if probe is None or probe.result != "arrived":
            raise typer.Exit(1)

    run(work)


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
        async with context.open_context(data) as system, system.database.transaction() as connection:
            account = await export.find_external(connection, address)
            if acknowledge or retry:
                done = await (operations.fetch_again if retry else operations.acknowledge)(connection, account, ids)
                did = await operations.record_skipped(connection, audit.operator(), account, retry, done)
            else:
                rows = await operations.list_skipped(connection, account)
        if acknowledge or retry:
            if json:
                print_json({"done": done.done, "left": done.left})
            else:
                console.print(f"{address}: {did} {counted(len(done.done))}")
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
