"""The operator's operations on mails that wait, need attention, are on hold or were deleted, and on sealed secrets.

The command line, the console and the REST API share these functions. Each works in the caller's transaction and returns
its result in the form of the JSON output.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.admin.access import audit
from services.admin.accounts import apply, export
from services.admin.formatting import mail_status
from services.admin.mail import search_index
from services.admin.monitoring.status import iso, load_why_waits
from services.admin.suggestions import say_unknown
from shared.db.database import Connection
from shared.errors import Permanent
from shared.languages.stored_texts import shown
from shared.model import External, Local
from shared.provider.vault import Vault
from shared.store import (
    account_changes,
    accounts,
    folder_admin,
    folders,
    inbound,
    inbound_admin,
    maillog,
    relays,
    reply_tags,
    submissions_admin,
    uidl_ledger,
)
from shared.store.maillog import MailEvent

WAITING = ("submitted", "queued", "claimed", "sent_unanswered")
"""States of submissions that wait to be relayed."""
GIVEN = "given by the operator"
TAKEN = "taken by the operator"
CANCELLED = "the delivery was cancelled by the operator"
"""Reasons that the trace and the notices to authors show."""

LISTED = 1000
"""Limit of each list of mail that waits, is on hold or needs attention: mails, the oldest."""
COUNTED = 100_000
"""Limit of the count of each of these lists: mails; it takes about 20 ms."""

HAND_OVER_SECONDS = 600.0
"""Limit of the transaction that copies a mailbox: seconds; a mailbox of many years takes minutes."""


@dataclass(frozen=True, slots=True)
class OperationResult:
    """The result of an operation, by mail id."""

    done: list[int]
    left: list[int]  # they do not exist, or their state does not allow the operation

    @classmethod
    def of(cls, done: Collection[int], requested: Collection[int] | None) -> OperationResult:
        """Return the result. :param requested: the ids that the operator named; None: all mails."""
        return cls(sorted(done), sorted(set(requested or ()) - set(done)))


async def _with_headlines(connection: Connection, rows: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the rows with sender and subject of their mails: '' until the mail is indexed, after some seconds.

    :param text: return only the rows of mails with all its terms, as ``search_index.search``; '': all rows.
    """
    ids = [row["id"] for row in rows]
    found = await search_index.matching(connection, ids, text) if text.strip() else set(ids)
    known = await search_index.subjects(connection, found)
    shown = [(row, *known.get(row["id"], ("", ""))) for row in rows if row["id"] in found]
    return [row | {"sender": sender, "subject": subject} for row, sender, subject in shown]


# ---------------------------------------------------------------------------------------------- the queue


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """The numbers of mails in the three lists; each count ends at one more than COUNTED."""

    waiting: int
    held: int
    parked: int


async def count_queue(connection: Connection) -> QueueCounts:
    """Count the mails that wait to be relayed, are on hold, or need attention."""
    most = COUNTED + 1
    parked = await inbound_admin.count_stuck(connection, "parked", most)
    return QueueCounts(
        await submissions_admin.count_open(connection, WAITING, most),
        await inbound_admin.count_stuck(connection, "held", most),
        min(most, parked + await submissions_admin.count_open(connection, ["parked"], most)),
    )


async def list_queue(connection: Connection, text: str = "", limit: int = LISTED) -> list[dict[str, Any]]:
    """List the submissions that wait to be relayed, the oldest first; ``why``: why no relay of the account takes
    mail now, or the provider's last reply. :param text: of a search."""
    submissions = await submissions_admin.list_submissions(connection, WAITING, limit=limit)
    problems = await load_why_waits(connection)
    now = datetime.datetime.now(datetime.UTC)
    rows: list[dict[str, Any]] = [
        {
            "id": s.id,
            "message_id": s.message_id,
            "author": s.author,
            "external": s.external,
            "state": s.state,
            "status": mail_status(s.state),
            "tries": s.tries,
            "uncertain": s.uncertain,
            "at": iso(now - datetime.timedelta(seconds=s.age)),
            "age_seconds": round(s.age),
            "next_try_at": iso(s.next_try_at),
            "why": _shown(problems.get(s.external) or next((r.reply for r in s.recipients if r.reply), None)),
            "recipients": [
                {"address": r.address, "state": r.state, "status": mail_status(r.state), "reply": r.reply}
                for r in s.recipients
            ],
        }
        for s in submissions
    ]
    return await _with_headlines(connection, rows, text)


def _shown(text: str | None) -> str | None:
    """Return a stored text in the language that applies: of a page, that of its reader; else English."""
    return None if text is None else shown(text)


async def retry(connection: Connection, ids: Collection[int] | None = None) -> OperationResult:
    """Retry queued submissions (these, or all) and their accounts now."""
    return OperationResult.of(await submissions_admin.retry_submissions(connection, ids), ids)


async def cancel(connection: Connection, ids: Collection[int], reason: str = CANCELLED) -> OperationResult:
    """Cancel queued or parked submissions; the sender notifies their authors of the recipients without the mail.

    A submission that is being sent at the moment is left.
    """
    cancelled = await submissions_admin.cancel_submissions(connection, ids, reason)
    await _record_cancelled(connection, cancelled, reason)
    return OperationResult.of(cancelled, ids)


async def _record_cancelled(connection: Connection, cancelled: dict[int, list[str]], reason: str) -> None:
    await maillog.record_events(
        connection,
        [
            MailEvent("cancelled", submission_id=id_, who=address, reply=reason)
            for id_, addresses in cancelled.items()
            for address in addresses
        ],
    )


# ---------------------------------------------------------------------------------------------- not fetched


async def list_skipped(connection: Connection, external: External) -> list[dict[str, Any]]:
    """List the mails of an account that could not be fetched and stay at the provider, the oldest first."""
    return [
        {
            "id": mail.id,
            "uidl": mail.uidl,
            "octets": mail.octets,
            "reason": shown(mail.reason),
            "tries": mail.tries,
            "since": iso(mail.since),
            "next_try_at": iso(mail.next_try_at),
            "acknowledged_at": iso(mail.acknowledged_at),
        }
        for mail in await uidl_ledger.list_skipped(connection, external.id)
    ]


async def acknowledge(
    connection: Connection, external: External, ids: Collection[int] | None = None
) -> OperationResult:
    """Stop reporting these skipped mails (or all) as a problem, unless for a new reason."""
    return OperationResult.of(await uidl_ledger.acknowledge_skipped(connection, external.id, ids), ids)


async def fetch_again(
    connection: Connection, external: External, ids: Collection[int] | None = None
) -> OperationResult:
    """Fetch these skipped mails (or all) again at once, no matter how often that failed."""
    return OperationResult.of(await uidl_ledger.retry_skipped(connection, external.id, ids), ids)


async def record_skipped(
    connection: Connection, who: str, external: External, retries: bool, done: OperationResult
) -> str:
    """Record the operation in the audit log. :return: a word for what was done."""
    did = "tries again" if retries else "acknowledged"
    await audit.record_mails(connection, who, f"{did} mails not fetched", done.done, external.address)
    return did


# ---------------------------------------------------------------------------------------------- parked and held


async def list_parked(
    connection: Connection, ids: Sequence[int] | None = None, text: str = "", limit: int = LISTED
) -> list[dict[str, Any]]:
    """List the parked mails and submissions (these, or all); ``error``: the last traceback, or the reason.

    :param text: of a search.
    """
    rows: list[dict[str, Any]] = [
        {
            "id": m.id,
            "kind": "inbound",
            "state": m.state,
            "status": mail_status(m.state),
            "message_id": m.message_id,
            "external": m.external,
            "origin": m.origin,
            "since": iso(m.state_at),
            "error": _shown(m.error),
        }
        for m in await inbound_admin.list_inbound(connection, "parked", ids, limit)
    ] + [
        {
            "id": s.id,
            "kind": "submission",
            "state": s.state,
            "status": mail_status(s.state),
            "message_id": s.message_id,
            "external": s.external,
            "origin": s.origin,
            "since": iso(s.state_at),
            "error": _shown(s.error),
        }
        for s in await submissions_admin.list_submissions(connection, ["parked"], ids, limit)
    ]
    return await _with_headlines(connection, rows, text)


async def requeue(connection: Connection, ids: Collection[int]) -> OperationResult:
    """Process parked mails again, with another five tries."""
    arrived = await inbound_admin.requeue_inbound(connection, list(ids))
    sent = await submissions_admin.requeue_submissions(connection, ids)
    events = [MailEvent("requeued", inbound_id=id_) for id_ in arrived]
    await maillog.record_events(connection, events + [MailEvent("requeued", submission_id=id_) for id_ in sent])
    return OperationResult.of([*arrived, *sent], ids)


async def discard(connection: Connection, ids: Collection[int], reason: str) -> OperationResult:
    """Cancel parked or held mails undelivered. The trace keeps their recipients and the reason; authors of parked
    submissions are notified."""
    arrived = await inbound_admin.discard_inbound(connection, list(ids), reason)
    stuck = [s.id for s in await submissions_admin.list_submissions(connection, ["parked"], ids)]
    sent = await submissions_admin.cancel_submissions(connection, stuck, reason)
    await maillog.record_events(connection, [MailEvent("cancelled", inbound_id=id_, reply=reason) for id_ in arrived])
    await _record_cancelled(connection, sent, reason)
    return OperationResult.of([*arrived, *sent], ids)


async def list_held(connection: Connection, text: str = "", limit: int = LISTED) -> list[dict[str, Any]]:
    """List the mails on hold, the oldest first: no enabled user shares their external account.

    :param text: of a search.
    """
    rows: list[dict[str, Any]] = [
        {
            "id": m.id,
            "state": m.state,
            "status": mail_status(m.state),
            "message_id": m.message_id,
            "external": m.external,
            "reason": _shown(m.reason),
            "since": iso(m.state_at),
        }
        for m in await inbound_admin.list_inbound(connection, "held", limit=limit)
    ]
    return await _with_headlines(connection, rows, text)


# ---------------------------------------------------------------------------------------------- what was deleted


async def list_deleted(connection: Connection, address: str, text: str = "") -> list[dict[str, Any]]:
    """List the deleted mails of a person that are still kept.

    :param text: of a search. :raises Permanent: there is no such local account.
    """
    person = await load_person(connection, address)
    rows: list[dict[str, Any]] = [
        {"id": entry.mail_id, "octets": entry.octets, "deleted_at": iso(entry.deleted_at)}
        for entry in await folder_admin.list_mails(connection, person.id, deleted=True)
        if entry.deleted_at is not None
    ]
    return await _with_headlines(connection, rows, text)


async def undelete(connection: Connection, address: str, ids: Collection[int]) -> OperationResult:
    """Undelete mails of a person; they get new UIDLs. :raises Permanent: there is no such local account."""
    person = await load_person(connection, address)
    entries = await folder_admin.list_mails(connection, person.id, deleted=True)
    wanted = {entry.mail_id: entry.key for entry in entries if entry.deleted_at is not None and entry.mail_id in ids}
    back = await folder_admin.undelete_mails(connection, person.id, wanted.values())
    arrived = await inbound.find_inbound(connection, back)  # not what a client stored, or sent
    await maillog.record_events(
        connection, [MailEvent("undeleted", inbound_id=id_, who=person.address) for id_ in arrived]
    )
    return OperationResult.of(back, ids)


async def load_person(connection: Connection, address: str) -> Local:
    """Load a local account. :raises Permanent: there is none with this address."""
    person = await accounts.local_by_login(connection, address)
    if person is None:
        known = [each.address for each in await accounts.load_locals(connection)]
        raise Permanent(export.say_no_account("local", address, known))
    return person


async def restore_account(connection: Connection, address: str) -> Local:
    """Restore a removed local account with its mail.

    :raises Permanent: the account is not removed, does not exist, or its mail is purged already.
    :raises AccountsError: another account uses its address or name now, or its external account is removed.
    """
    await account_changes.lock_for_change(connection)
    if any(person.address.casefold() == address.casefold() for person in await accounts.load_locals(connection)):
        raise Permanent(f"{address}: is there already, not removed")
    person = await account_changes.restore_local(connection, address)
    if person is None:
        removed = [each.address for each, _ in await accounts.removed_locals(connection)]
        raise Permanent(f"{address}: no removed local account has this address{say_unknown(address, removed)}")
    if not await folders.load_inbox_versions(connection, [person.id]):
        raise Permanent(f"{address}: was removed longer ago than mail is kept, its mail is purged; add it again")
    sharers = await accounts.load_sharers(connection, [person.external_id])
    if person.delegate_id not in {sharer.id for sharer in sharers[person.external_id]}:
        person = replace(person, delegate_id=None)  # the delegate shares another account now
        await account_changes.save_local(connection, person)
    await account_changes.forget_delegate(connection, person.id, person.external_id)  # of people who moved meanwhile
    await apply.transfer_former_names(connection)
    await apply.check_conflicts(connection, "local", address)
    await inbound.release_held(connection, [person.external_id])
    return person


# ---------------------------------------------------------------------------------------------- the key


async def rotate_key(connection: Connection, vault: Vault) -> tuple[int, list[str]]:
    """Seal the secrets of the external accounts under the first key.

    Reply tags get another key, too; the keys before verify the tags of mail that was sent.

    :return: their number, and the addresses of the accounts whose secret no key opens; these stay as they are.
    """
    await account_changes.lock_for_change(connection)
    lost = []
    everyone = await accounts.load_externals(connection)
    for external in everyone:
        try:
            await account_changes.save_password(connection, external.id, vault.rotate(external.password))
            for relay in external.relays:
                if relay.password is not None:
                    rotated = vault.rotate(relay.password)
                    await relays.save_password(connection, external.id, relay.position, rotated)
        except Permanent:
            lost.append(external.address)
    await reply_tags.rotate_key(connection)
    return len(everyone) - len(lost), lost


# ---------------------------------------------------------------------------------------------- a mail's copies


async def give_copy(connection: Connection, mail_id: int, address: str, away_from: str | None = None) -> None:
    """Deliver a mail into a person's mailbox as new mail, even if the person has it or has deleted it.

    :param away_from: delete this person's copy. :raises Permanent: there is no such mail or person, both persons are
        the same, or the mail is not delivered yet.
    """
    person = await load_person(connection, address)
    other = await load_person(connection, away_from) if away_from else None
    if other is not None and other.id == person.id:
        raise Permanent(f"{address}: is to have it, so it is not taken from there")
    mail = await inbound_admin.load_detail(connection, mail_id)
    if mail is None:
        raise Permanent(f"{mail_id}: no mail that arrived has this id")
    if mail.state != "delivered":
        raise Permanent(f"{mail_id}: is {mail_status(mail.state)}, not delivered; see 'held list' and 'parked list'")
    await folder_admin.deliver_as_new(connection, person.id, mail_id, mail.blob_id, mail.octets)
    await inbound_admin.add_holder(connection, mail_id, person.id, GIVEN)
    events = [MailEvent("delivered", inbound_id=mail_id, who=person.address, reply=GIVEN)]
    if other is not None and await folder_admin.delete_everywhere(connection, other.id, [mail_id]):
        events.append(MailEvent("deleted", inbound_id=mail_id, who=other.address, reply=TAKEN))
    await maillog.record_events(connection, events)


async def resend(connection: Connection, ids: Collection[int]) -> OperationResult:
    """Send submissions again to the external recipients that did not get them."""
    again = await submissions_admin.resend_submissions(connection, ids)
    await maillog.record_events(connection, [MailEvent("requeued", submission_id=id_) for id_ in again])
    return OperationResult.of(again, ids)


async def copy_mailbox_to(connection: Connection, leaver: str, colleague: str) -> int:
    """Copy the mails of one person into another person's mailbox, as new mail (``folder_admin.copy_all``).

    :return: the number of mails.

    :raises Permanent: there is no such person.
    """
    one, other = await load_person(connection, leaver), await load_person(connection, colleague)
    if one.id == other.id:
        raise Permanent(f"{leaver}: is the same account")
    given = await folder_admin.copy_all(connection, one.id, other.id)
    await inbound_admin.add_holders(connection, given, other.id, f"handed over from {one.user_name}")
    return len(given)
