"""The commands on mail: ``status``, ``trace``, ``route``, ``queue``, ``parked``, ``held``, ``undelete``."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from services.admin.accounts.passwords import describe_weak
from services.admin.cli.lazy import lazy_imports
from services.admin.cli.options import Data, Json, group
from services.admin.cli.output import MISUSE, console, fail, print_json, print_table, run, show_waiting
from services.admin.cli.transactions import run_list
from services.admin.formatting import ago, mail_status, moment
from shared.errors import Permanent

with lazy_imports():
    from services.admin import context
    from services.admin.access import audit
    from services.admin.accounts import export
    from services.admin.mail import operations
    from services.admin.mail import trace as mail_trace
    from services.admin.monitoring import status as monitoring_status
    from shared import routing
    from shared.db import database
    from shared.store import accounts, blobs, reply_tags, sent_mail

queue = group("Submissions that wait to be relayed to the provider.")
parked = group(
    "Mails that need attention (parked): processing failed five times, they are in a mail loop, or a restore from a "
    "backup parked them."
)
held = group("Mails on hold (held): no enabled user shares the external account, or it is not started.")
Id = typer.Argument(help="Id as listed.", metavar="ID", min=1, max=2**63 - 1)
Search = Annotated[
    str, typer.Option("--search", help="Only mails with these words in subject, names and addresses.", metavar="WORDS")
]
Ids = Annotated[list[int], typer.Argument(help="Ids as listed.", metavar="ID...", min=1, max=2**63 - 1)]


def status(data: Data = None, json: Json = False) -> None:
    """Show services, queues, accounts and problems; the exit status is 1 if there is a problem.

    If the services run on other hosts, MAILGROUP_SERVICE_HOST names them, with {name} for the service's name.

    Example: mailgroup status
    """

    async def work() -> None:
        async with context.open_context(data, require_database=False, say=None) as system:
            with show_waiting("Asking all services"):
                found = await monitoring_status.gather(system, thoroughly=True)
        if json:
            print_json(found)
        else:
            _print_status(found)
        if not found["ok"]:
            raise typer.Exit(1)

    run(work)


def _print_status(found: dict[str, Any]) -> None:
    if found["ok"]:
        console.print("all is well", style="green")
    for problem in found["problems"]:
        console.print("problem", style="red", end=" ")
        console.print(problem)
    print_table("Services", ("Name", "Ready"), ((s["name"], "yes" if s["ready"] else "NO") for s in found["services"]))
    if database := found["database"]:
        print_table("Database", ("Connections", "Limit"), [tuple(database.values())])
    print_table(
        "Queues",
        ("Name", "Ready", "Unacked", "Consumers"),
        ((q["name"], q["ready"], q["unacked"], q["consumers"]) for q in found["queues"]),
    )
    print_table(
        "External accounts",
        ("Address", "Enabled", "Last successful check (UTC)", "Backlog", "Error"),
        (
            (
                e["address"],
                "yes" if e["enabled"] else "no",
                moment(e["last_success"]) or "never",
                e["backlog"],
                e["last_error"],
            )
            for e in found["externals"]
        ),
    )
    print_table(
        "Books (mails)",
        ("External account", "Fetched", "Delivered", "On hold", "Needs attention", "Own copies", "In flight"),
        ((address, *book.values()) for address, book in found["books"].items()),
    )
    if found["weak_passwords"]:
        console.print(f"Passwords: {describe_weak(found['weak_passwords'])}")


def trace(
    what: Annotated[
        str, typer.Argument(help="An id, a Message-ID, an address, or words of subject and names.", metavar="WHAT")
    ],
    data: Data = None,
    json: Json = False,
) -> None:
    """Show the history of a mail: fetched, routed by which rule to whom, relayed, with the provider's replies.

    Example: mailgroup trace '<20141105.4711@customer.example>'
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            mails = await mail_trace.trace(connection, what)
        if json:
            print_json(mails)
        elif not mails:
            raise Permanent(f"{what}: no mail has this id, Message-ID, address, or these words")
        else:
            for mail in mails:
                _print_history(mail)
            if len(mails) >= mail_trace.MAX_MAILS:
                console.print(f"Only the latest mails are shown; trace an older mail of {what} by its id.")

    run(work)


def _print_history(mail: dict[str, Any]) -> None:
    title = f"Mail {mail['id']}  <{mail['message_id'] or 'no Message-ID'}>  {mail['status']}"
    console.print(title, style="bold")
    if mail["sender"] or mail["subject"]:
        console.print(f"  {moment(mail['at'])}  {mail['sender']}: {mail['subject']}")
    for event in mail["events"]:
        facts = [event["who"], f"rule {event['rule']}" if event["rule"] else None, event["reply"]]
        words = ": ".join(fact for fact in facts if fact)
        console.print(f"  {moment(event['at'])}  {event['event']:<9}  {words}".rstrip())
    if why := mail.get("why"):
        console.print(f"  waits: {why}")


def route(
    file: Annotated[Path, typer.Argument(help="File of a mail; line ends may be LF.", metavar="FILE")],
    external: Annotated[str, typer.Option(help="External account that would fetch the mail.", metavar="ADDRESS")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Show who would get this mail, by which rule, without delivering it (dry run).

    Example: mailgroup route mail.eml --external support@company.com
    """

    async def work() -> None:
        try:
            with file.open("rb") as stream:
                head = stream.read(blobs.HEAD_OCTETS)
        except OSError as error:
            fail(f"{file}: {error.strerror}", MISUSE)
        if b"\r\n" not in head:
            head = head.replace(b"\n", b"\r\n")
        async with context.open_context(data) as system, system.database.transaction() as connection:
            externals = {e.address.casefold(): e for e in await accounts.load_externals(connection)}
            account = externals.get(external.casefold())
            if account is None:
                addresses = [each.address for each in externals.values()]
                raise Permanent(f"--external {export.say_no_account('external', external, addresses)}")
            sharers = (await accounts.load_sharers(connection, [account.id]))[account.id]
            facts = routing.read_facts(head, account)
            known = await sent_mail.find_sent(connection, routing.referenced_ids(facts))
            tag_keys = await reply_tags.load_keys(connection)
            own_copy = routing.find_own_copy(facts, account, sharers, known)
            sent_heads = await blobs.heads(connection, [own_copy.blob_id] if own_copy else [])
        if own_copy and routing.has_same_body(head, sent_heads.get(own_copy.blob_id, b"")):
            decision = own_copy.decision
        else:
            decision = routing.decide(facts, account, sharers, known, tag_keys=tag_keys)
        people = {person.id: person.address for person in sharers}
        if json:
            print_json(
                {
                    "recipients": [people[r.local_id] for r in decision.recipients],
                    "rule": decision.rule,
                    "reason": decision.reason,
                }
            )
            return
        console.print(decision.reason)
        print_table(
            "Recipients",
            ("Address", "Rule", "Reason"),
            ((people[r.local_id], r.rule, r.reason) for r in decision.recipients),
            empty="none: the mail would be on hold (held)",
        )

    run(work)


# ---------------------------------------------------------------------------------------------- queue


@queue.command("list")
def queue_list(search: Search = "", data: Data = None, json: Json = False) -> None:
    """List the submissions that wait to be relayed, the oldest first.

    Example: mailgroup queue list
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            rows = await operations.list_queue(connection, search)
        if json:
            print_json(rows)
            return
        now = datetime.datetime.now(datetime.UTC)
        print_table(
            "Queue",
            ("Id", "Time (UTC)", "From", "To", "Subject", "Status", "Tries", "Next try"),
            (
                (
                    row["id"],
                    moment(row["at"]),
                    row["author"],
                    ", ".join(r["address"] for r in row["recipients"] if r["state"] == "waiting"),
                    row["subject"],
                    row["status"],
                    row["tries"],
                    _next_try(row, now),
                )
                for row in rows
            ),
        )
        for why in dict.fromkeys(row["why"] for row in rows if row["why"]):
            ids = ", ".join(str(row["id"]) for row in rows if row["why"] == why)
            console.print(f"{ids}: {why}")

    run(work)


def _next_try(row: dict[str, Any], now: datetime.datetime) -> str:
    if row["next_try_at"] is None:
        return {"submitted": "at once"}.get(row["state"], "under way")
    seconds = (datetime.datetime.fromisoformat(row["next_try_at"]) - now).total_seconds()
    return f"in {ago(seconds)}" if seconds > 0 else "now"


@queue.command("retry")
def queue_retry(
    ids: Annotated[
        list[int] | None,
        typer.Argument(help="Ids as listed; all if none are given.", metavar="[ID...]", min=1, max=2**63 - 1),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Retry waiting submissions now.

    Example: mailgroup queue retry
    """
    act_on_mails("tried now", data, json, lambda connection: operations.retry(connection, ids))


@queue.command("cancel")
def queue_cancel(
    ids: Ids,
    reason: Annotated[str | None, typer.Option(help="Reason, for the author and the trace.", metavar="TEXT")] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Cancel waiting submissions; their authors are notified.

    Example: mailgroup queue cancel 42
    """

    def act(connection: database.Connection) -> Awaitable[operations.OperationResult]:
        return operations.cancel(connection, ids, reason or operations.CANCELLED)

    act_on_mails("cancelled", data, json, act)


def act_on_mails(
    word: str,
    data: Path | None,
    json: bool,
    act: Callable[[database.Connection], Awaitable[operations.OperationResult]],
    mailbox: str | None = None,
) -> None:
    """Run an operation in one transaction and print its result; exit status 1 if it left any of the named mails.

    :param mailbox: address of the person whose mailbox it changes.
    """

    async def work() -> None:
        async with context.open_context(data) as system:
            async with system.database.transaction() as connection:
                found = await act(connection)
                await audit.record_mails(connection, audit.operator(), word, found.done)
            await system.announce_changes([mailbox] if mailbox and found.done else [])
        if json:
            print_json({word.replace(" ", "_"): found.done, "left": found.left})
        else:
            console.print(f"{word}: {', '.join(map(str, found.done)) or 'nothing'}")
        if found.left:
            ids = ", ".join(map(str, found.left))
            raise Permanent(f"not {word}: {ids}: no such mail in a state that allows it")

    run(work)


# ---------------------------------------------------------------------------------------------- parked, held, deleted


@parked.command("list")
def parked_list(search: Search = "", data: Data = None, json: Json = False) -> None:
    """List the mails that need attention (parked), with the service and the error that parked them.

    Example: mailgroup parked list
    """

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        last_line = (row["error"] or "").strip().rpartition("\n")[2]
        return row["id"], row["kind"], moment(row["since"]), row["sender"], row["subject"], row["origin"], last_line

    columns = ("Id", "Kind", "Since (UTC)", "From", "Subject", "Parked by", "Error")
    run_list(_title("parked"), columns, cells, data, json, lambda each: operations.list_parked(each, text=search))


@parked.command("show")
def parked_show(id_: Annotated[int, Id], data: Data = None, json: Json = False) -> None:
    """Show a mail that needs attention (parked), with the traceback of its last failure or the reason.

    Example: mailgroup parked show 42
    """

    async def work() -> None:
        async with context.open_context(data) as system, system.database.transaction() as connection:
            rows = await operations.list_parked(connection, [id_])
        if not rows:
            raise Permanent(f"{id_}: no parked mail has this id")
        if json:
            print_json(rows[0])
        else:
            for name, value in rows[0].items():
                console.print(f"{name}: {value}")

    run(work)


@parked.command("requeue")
def parked_requeue(ids: Ids, data: Data = None, json: Json = False) -> None:
    """Process mails that need attention (parked) again, with another five tries.

    Example: mailgroup parked requeue 42
    """
    act_on_mails("requeued", data, json, lambda connection: operations.requeue(connection, ids))


@parked.command("discard")
def parked_discard(
    ids: Ids,
    reason: Annotated[str, typer.Option(help="Reason, for the trace and the author.", metavar="TEXT")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Cancel mails that need attention (parked) or are on hold (held): they are not delivered.

    The trace keeps their recipients and the reason.

    Example: mailgroup parked discard 42 --reason 'spam that broke the parser'
    """
    act_on_mails("discarded", data, json, lambda connection: operations.discard(connection, ids, reason))


@held.command("list")
def held_list(search: Search = "", data: Data = None, json: Json = False) -> None:
    """List the mails on hold (held). They are delivered as soon as an enabled user shares their external account, and
    the account is started ('external start').

    Example: mailgroup held list
    """

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        reason = (row["reason"] or "").removeprefix("held: ")
        return row["id"], moment(row["since"]), row["sender"], row["subject"], reason

    columns = ("Id", "Since (UTC)", "From", "Subject", "Reason")
    run_list(_title("held"), columns, cells, data, json, lambda each: operations.list_held(each, search))


def undelete(
    address: Annotated[str, typer.Argument(help="Address of the local account.", metavar="ADDRESS")],
    ids: Annotated[
        list[int] | None,
        typer.Argument(
            help="Ids of mails to restore; without ids the mails are listed.", metavar="[ID...]", min=1, max=2**63 - 1
        ),
    ] = None,
    search: Search = "",
    data: Data = None,
    json: Json = False,
) -> None:
    """List the deleted mails of a person that are still kept, or restore some of them as new mail.

    Example: mailgroup undelete alex@local.com 42
    """
    if ids:
        wanted = ids
        act_on_mails(
            "brought back", data, json, lambda connection: operations.undelete(connection, address, wanted), address
        )
        return

    def cells(row: dict[str, Any]) -> tuple[object, ...]:
        return row["id"], moment(row["deleted_at"]), row["sender"], row["subject"], row["octets"]

    columns = ("Id", "Deleted at (UTC)", "From", "Subject", "Octets")
    title = f"Deleted mails of {address}"
    run_list(title, columns, cells, data, json, lambda each: operations.list_deleted(each, address, search))


def _title(state: str) -> str:
    """The title of a list: the word for people, then the one of the command."""
    return f"{mail_status(state).capitalize()} ({state})"
