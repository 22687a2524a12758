"""The mail, from the command line: ``status``, ``trace``, ``route``, ``queue``, ``parked``, ``held``, ``undelete``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from services.admin import status as status_page
from services.admin import trace as trace_page
from services.admin.options import Data, Json, group
from services.admin.printing import MISUSE, ago, console, fail, moment, print_json, print_table, run, waiting
from services.admin.system import reach
from shared import accounts, authors, inbound, maildrops, maillog, messages, relays, routing, submissions
from shared.failures import Permanent

queue = group("Submissions that wait to be relayed.")
parked = group("Mails that failed five times in us.")
held = group("Mails that nobody enabled is there to get.")
Id = typer.Argument(help="Id as listed.", metavar="ID", min=1, max=2**63 - 1)
Ids = Annotated[list[int], typer.Argument(help="Ids as listed.", metavar="ID...", min=1, max=2**63 - 1)]


def status(data: Data = None, json: Json = False) -> None:
    """Whether everything runs and mail flows; exit status 1 if anything is wrong.

    Where the services run on other hosts, MAILGROUP_SERVICE_HOST names them, with {name} for the service's name.

    Example: mailgroup status
    """

    async def work() -> None:
        async with reach(data, needed=False) as system:
            with waiting("Asking every part"):
                found = await status_page.gather(system)
        if json:
            print_json(found)
        else:
            _print_status(found)
        if not found["ok"]:
            raise typer.Exit(1)

    run(work)


def _print_status(found: dict[str, Any]) -> None:
    print_table("Services", ("Name", "Ready"), ((s["name"], "yes" if s["ready"] else "NO") for s in found["services"]))
    print_table(
        "Queues",
        ("Name", "Ready", "In hand", "Consumers"),
        ((q["name"], q["ready"], q["unacked"], q["consumers"]) for q in found["queues"]),
    )
    print_table(
        "External accounts",
        ("Address", "Enabled", "Last good poll (UTC)", "Backlog", "Error"),
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
        ("External account", "Fetched", "Delivered", "Held", "Parked", "Own copies", "In flight"),
        ((address, *book.values()) for address, book in found["books"].items()),
    )
    for problem in found["problems"]:
        console.print("[red]problem[/red] ", end="")
        console.print(problem, markup=False)
    if found["ok"]:
        console.print("[green]all is well[/green]")


def trace(
    what: Annotated[str, typer.Argument(help="A Message-ID, an address, or an id.", metavar="WHAT")],
    data: Data = None,
    json: Json = False,
) -> None:
    """The history of a mail: fetched, by which rule to whom, relayed, with the provider's replies.

    Example: mailgroup trace '<20141105.4711@customer.example>'
    """

    async def work() -> None:
        async with reach(data) as system, system.database.transaction() as connection:
            mails = await trace_page.trace(connection, what)
        if json:
            print_json(mails)
        elif not mails:
            raise Permanent(f"{what}: no mail has this id, Message-ID or address")
        else:
            for mail in mails:
                _print_history(mail)
            if len(mails) >= trace_page.MOST:
                console.print(f"These are the latest ones; older mail of {what} is found by its id.", markup=False)

    run(work)


def _print_history(mail: dict[str, Any]) -> None:
    console.print(f"Mail {mail['id']}  <{mail['message_id'] or 'no Message-ID'}>", style="bold", markup=False)
    for event in mail["events"]:
        facts = [event["who"], f"rule {event['rule']}" if event["rule"] else None, event["reply"]]
        words = ": ".join(fact for fact in facts if fact)
        console.print(f"  {moment(event['at'])}  {event['event']:<9}  {words}".rstrip(), markup=False)


def route(
    file: Annotated[Path, typer.Argument(help="A mail as a file; its line ends may be LF.", metavar="FILE")],
    external: Annotated[str, typer.Option(help="The external account that would fetch it.", metavar="ADDRESS")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Dry run: who would get this mail, and by which rule.

    Example: mailgroup route mail.eml --external support@company.com
    """

    async def work() -> None:
        try:
            with file.open("rb") as stream:
                head = stream.read(messages.HEAD_OCTETS)
        except OSError as error:
            fail(f"{file}: {error.strerror}", MISUSE)
        if b"\r\n" not in head:
            head = head.replace(b"\n", b"\r\n")
        facts = routing.read(head)
        async with reach(data) as system, system.database.transaction() as connection:
            account = next(
                (e for e in await accounts.externals(connection) if e.address.casefold() == external.casefold()), None
            )
            if account is None:
                raise Permanent(f"--external {external}: there is no such external account")
            sharers = (await accounts.sharers(connection, [account.id]))[account.id]
            known = await authors.of(connection, routing.ids_asked(facts))
        decision = routing.decide(facts, account, sharers, known, "fetched", None)
        addresses = {person.id: person.address for person in sharers}
        if json:
            print_json(
                {
                    "recipients": [addresses[r.local_id] for r in decision.recipients],
                    "rule": decision.rule,
                    "reason": decision.reason,
                }
            )
            return
        console.print(decision.reason, markup=False)
        print_table(
            "Recipients",
            ("Address", "Rule", "Reason"),
            ((addresses[r.local_id], r.rule, r.reason) for r in decision.recipients),
            empty="nobody: the mail would be held",
        )

    run(work)


# ---------------------------------------------------------------------------------------------- queue


@queue.command("list")
def queue_list(data: Data = None, json: Json = False) -> None:
    """What waits to be relayed, the oldest first.

    Example: mailgroup queue list
    """

    async def work() -> None:
        async with reach(data) as system, system.database.transaction() as connection:
            found = await submissions.listing(connection, ["submitted", "queued", "claimed", "sent_unanswered"])
            addresses = {e.id: e.address for e in await accounts.externals(connection)}
            troubles = {
                addresses.get(id_): status_page.trouble(relay)
                for id_, relay in (await relays.states(connection)).items()
            }
        rows = [
            {
                "id": s.id,
                "message_id": s.header_id,
                "author": s.author,
                "external": s.external,
                "state": s.state,
                "tries": s.tries,
                "uncertain": s.uncertain,
                "age_seconds": round(s.age),
                "next_try_at": status_page.iso(s.next_try_at),
                "why": troubles.get(s.external) or next((r.reply for r in s.recipients if r.reply), None),
                "recipients": [{"address": r.address, "state": r.state, "reply": r.reply} for r in s.recipients],
            }
            for s in found
        ]
        if json:
            print_json(rows)
        else:
            now = datetime.datetime.now(datetime.UTC)
            print_table(
                "Queue",
                ("Id", "From", "To", "Age", "Tries", "Next try"),
                (
                    (
                        s.id,
                        s.author,
                        ", ".join(r.address for r in s.recipients if r.state == "waiting"),
                        ago(s.age),
                        s.tries,
                        _next_try(s, now),
                    )
                    for s in found
                ),
            )
            for why in dict.fromkeys(row["why"] for row in rows if row["why"]):
                ids = ", ".join(str(row["id"]) for row in rows if row["why"] == why)
                console.print(f"{ids}: {why}", markup=False)

    run(work)


def _next_try(waiting: submissions.Listed, now: datetime.datetime) -> str:
    if waiting.next_try_at is None:
        return {"submitted": "at once"}.get(waiting.state, "under way")
    seconds = (waiting.next_try_at - now).total_seconds()
    return f"in {ago(seconds)}" if seconds > 0 else "now"


@queue.command("retry")
def queue_retry(
    ids: Annotated[
        list[int] | None,
        typer.Argument(help="Ids as listed; all if none are given.", metavar="[ID...]", min=1, max=2**63 - 1),
    ] = None,
    data: Data = None,
) -> None:
    """Try waiting submissions now.

    Example: mailgroup queue retry
    """

    async def work() -> None:
        async with reach(data) as system, system.database.transaction() as connection:
            tried = await submissions.retry(connection, ids)
        _done("tried now", ids, tried)

    run(work)


@queue.command("cancel")
def queue_cancel(ids: Ids, data: Data = None) -> None:
    """End waiting submissions without a further try; their authors get no notice.

    Example: mailgroup queue cancel 42
    """

    async def work() -> None:
        async with reach(data) as system, system.database.transaction() as connection:
            cancelled = await submissions.cancel(connection, ids)
            await maillog.record(
                connection,
                [
                    maillog.Event("cancelled", submission_id=id_, who=address, reply="cancelled by the operator")
                    for id_, addresses in cancelled.items()
                    for address in addresses
                ],
            )
        _done("cancelled", ids, list(cancelled))

    run(work)


def _done(word: str, asked: list[int] | None, done: list[int]) -> None:
    console.print(f"{word}: {', '.join(map(str, done)) or 'nothing'}", markup=False)
    missing = sorted(set(asked or []) - set(done))
    if missing:
        raise Permanent(f"not {word}: {', '.join(map(str, missing))}: no such mail in a state that allows it")


# ---------------------------------------------------------------------------------------------- parked, held, deleted


async def _parked(data: Path | None, ids: list[int] | None = None) -> list[dict[str, Any]]:
    async with reach(data) as system, system.database.transaction() as connection:
        mails = await inbound.listing(connection, "parked", ids)
        sent = await submissions.listing(connection, ["parked"], ids)
    return [
        {
            "id": m.id,
            "kind": "inbound",
            "message_id": m.header_id,
            "external": m.external,
            "origin": m.origin,
            "since": status_page.iso(m.state_at),
            "error": m.error,
        }
        for m in mails
    ] + [
        {
            "id": s.id,
            "kind": "submission",
            "message_id": s.header_id,
            "external": s.external,
            "origin": s.origin,
            "since": None,
            "error": s.error,
        }
        for s in sent
    ]


@parked.command("list")
def parked_list(data: Data = None, json: Json = False) -> None:
    """Mails that failed five times, with where they failed.

    Example: mailgroup parked list
    """

    async def work() -> None:
        rows = await _parked(data)
        if json:
            print_json(rows)
        else:
            print_table(
                "Parked",
                ("Id", "Kind", "Message-ID", "Failed in", "Error"),
                (
                    (r["id"], r["kind"], r["message_id"], r["origin"], (r["error"] or "").strip().rpartition("\n")[2])
                    for r in rows
                ),
            )

    run(work)


@parked.command("show")
def parked_show(id_: Annotated[int, Id], data: Data = None, json: Json = False) -> None:
    """A parked mail with the traceback of its last failure.

    Example: mailgroup parked show 42
    """

    async def work() -> None:
        rows = await _parked(data, [id_])
        if not rows:
            raise Permanent(f"{id_}: no parked mail has this id")
        if json:
            print_json(rows[0])
        else:
            for name, value in rows[0].items():
                console.print(f"{name}: {value}", markup=False)

    run(work)


@parked.command("requeue")
def parked_requeue(ids: Ids, data: Data = None) -> None:
    """Give parked mails another five tries.

    Example: mailgroup parked requeue 42
    """

    async def work() -> None:
        async with reach(data) as system, system.database.transaction() as connection:
            arrived = await inbound.requeue(connection, ids)
            sent = await submissions.requeue(connection, ids)
            await maillog.record(
                connection,
                [maillog.Event("requeued", inbound_id=id_) for id_ in arrived]
                + [maillog.Event("requeued", submission_id=id_) for id_ in sent],
            )
        _done("requeued", ids, sorted([*arrived, *sent]))

    run(work)


@parked.command("discard")
def parked_discard(
    ids: Ids,
    reason: Annotated[str, typer.Option(help="Why; it stays in the trace.", metavar="TEXT")],
    data: Data = None,
) -> None:
    """End parked or held mails undelivered. The trace keeps who they were for and why they ended.

    Example: mailgroup parked discard 42 --reason 'spam that broke the parser'
    """

    async def work() -> None:
        async with reach(data) as system, system.database.transaction() as connection:
            arrived = await inbound.discard(connection, ids, reason)
            sent = await submissions.cancel(connection, ids)
            events = [maillog.Event("cancelled", inbound_id=id_, reply=reason) for id_ in arrived]
            events += [
                maillog.Event("cancelled", submission_id=id_, who=", ".join(addresses), reply=reason)
                for id_, addresses in sent.items()
            ]
            await maillog.record(connection, events)
        _done("discarded", ids, sorted([*arrived, *sent]))

    run(work)


@held.command("list")
def held_list(data: Data = None, json: Json = False) -> None:
    """Mails that nobody enabled is there to get. They are delivered as soon as somebody shares their account.

    Example: mailgroup held list
    """

    async def work() -> None:
        async with reach(data) as system, system.database.transaction() as connection:
            mails = await inbound.listing(connection, "held")
        if json:
            print_json(
                [
                    {
                        "id": m.id,
                        "message_id": m.header_id,
                        "external": m.external,
                        "reason": m.reason,
                        "since": status_page.iso(m.state_at),
                    }
                    for m in mails
                ]
            )
        else:
            print_table(
                "Held",
                ("Id", "Message-ID", "Since (UTC)", "Reason"),
                (
                    (m.id, m.header_id, moment(status_page.iso(m.state_at)), (m.reason or "").removeprefix("held: "))
                    for m in mails
                ),
            )

    run(work)


def undelete(
    address: Annotated[str, typer.Argument(help="Address of the local account.", metavar="ADDRESS")],
    ids: Annotated[
        list[int] | None,
        typer.Argument(help="Ids of mails as listed without any.", metavar="[ID...]", min=1, max=2**63 - 1),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List the deleted mails of a person that are still kept, or bring some back.

    Example: mailgroup undelete alex@local.com 42
    """

    async def work() -> None:
        async with reach(data) as system, system.database.transaction() as connection:
            person = await accounts.local_by_login(connection, address)
            if person is None:
                raise Permanent(f"{address}: there is no such local account")
            deleted = [e for e in await maildrops.listing(connection, person.id, deleted=True) if e.deleted_at]
            if ids:
                wanted = [entry.id for entry in deleted if entry.inbound_id in ids]
                back = await maildrops.undelete(connection, person.id, wanted)
                await maillog.record(
                    connection, [maillog.Event("undeleted", inbound_id=id_, who=person.address) for id_ in back]
                )
        if ids:
            _done("brought back", ids, back)
        elif json:
            print_json(
                [{"id": e.inbound_id, "octets": e.octets, "deleted_at": status_page.iso(e.deleted_at)} for e in deleted]
            )
        else:
            print_table(
                f"Deleted mails of {person.address}",
                ("Id", "Octets", "Deleted at (UTC)"),
                ((e.inbound_id, e.octets, moment(status_page.iso(e.deleted_at))) for e in deleted),
            )

    run(work)
