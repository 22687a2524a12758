"""The operator's hands: what may be done to mails that wait, failed, are held or were deleted, and to what is sealed.

Functions for the command line and the console alike: each works in the caller's transaction and returns what it did,
in the form that JSON shows. Who calls them prints.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.admin.access import audit
from services.admin.accounts import apply
from services.admin.formatting import mail_status
from services.admin.monitoring.status import find_account_problem, iso
from shared.db.database import Connection
from shared.errors import Permanent
from shared.model import External, Local
from shared.provider.vault import Vault
from shared.store import (
    account_changes,
    accounts,
    inbound,
    inbound_admin,
    maildrops,
    maillog,
    relay_status,
    submissions_admin,
    uidl_ledger,
)
from shared.store.maillog import MailEvent

WAITING = ("submitted", "queued", "claimed", "sent_unanswered")
GIVEN = "given by the operator"
TAKEN = "taken by the operator"
CANCELLED = "the delivery was cancelled by the operator"


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What became of the mails that were asked for, by id. left: in no state that allows it, or not there at all."""

    done: list[int]
    left: list[int]

    @classmethod
    def of(cls, done: Collection[int], requested: Collection[int] | None) -> OperationResult:
        """:param asked: None: all that there were."""
        return cls(sorted(done), sorted(set(requested or ()) - set(done)))


# ---------------------------------------------------------------------------------------------- the queue


async def list_queue(connection: Connection) -> list[dict[str, Any]]:
    """What waits to be relayed, the oldest first; ``why``: what its account or the provider says."""
    found = await submissions_admin.list_submissions(connection, WAITING)
    addresses = {external.id: external.address for external in await accounts.load_externals(connection)}
    troubles = {
        addresses.get(id_): find_account_problem(relay)
        for id_, relay in (await relay_status.load_status(connection)).items()
    }
    return [
        {
            "id": s.id,
            "message_id": s.message_id,
            "author": s.author,
            "external": s.external,
            "state": s.state,
            "status": mail_status(s.state),
            "tries": s.tries,
            "uncertain": s.uncertain,
            "age_seconds": round(s.age),
            "next_try_at": iso(s.next_try_at),
            "why": troubles.get(s.external) or next((r.reply for r in s.recipients if r.reply), None),
            "recipients": [
                {"address": r.address, "state": r.state, "status": mail_status(r.state), "reply": r.reply}
                for r in s.recipients
            ],
        }
        for s in found
    ]


async def retry(connection: Connection, ids: Collection[int] | None = None) -> OperationResult:
    """Try queued submissions (these, or all) now, and their accounts too."""
    return OperationResult.of(await submissions_admin.retry(connection, ids), ids)


async def cancel(connection: Connection, ids: Collection[int], reason: str = CANCELLED) -> OperationResult:
    """End queued or parked submissions without a further try; the sender tells their authors who will not get them.

    One that is being sent right now is left.
    """
    cancelled = await submissions_admin.cancel(connection, ids, reason)
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
    """The mails of an account that could not be fetched and stay at the provider, the oldest first."""
    return [
        {
            "id": mail.id,
            "uidl": mail.uidl,
            "octets": mail.octets,
            "reason": mail.reason,
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
    """It is known that these mails (or all) stay at the provider: no problem any more, unless for a new reason."""
    return OperationResult.of(await uidl_ledger.acknowledge_skipped(connection, external.id, ids), ids)


async def fetch_again(
    connection: Connection, external: External, ids: Collection[int] | None = None
) -> OperationResult:
    """Try to fetch these mails (or all) at once, however often that failed."""
    return OperationResult.of(await uidl_ledger.retry_skipped(connection, external.id, ids), ids)


async def record_skipped(
    connection: Connection, who: str, external: External, retries: bool, done: OperationResult
) -> str:
    """Write down who did either. :return: in a word."""
    did = "tries again" if retries else "acknowledged"
    await audit.record_mails(connection, who, f"{did} mails not fetched", done.done, external.address)
    return did


# ---------------------------------------------------------------------------------------------- parked and held


async def list_parked(connection: Connection, ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Mails and submissions that are set apart (these, or all); ``error``: the last traceback, or why else."""
    return [
        {
            "id": m.id,
            "kind": "inbound",
            "state": m.state,
            "status": mail_status(m.state),
            "message_id": m.message_id,
            "external": m.external,
            "origin": m.origin,
            "since": iso(m.state_at),
            "error": m.error,
        }
        for m in await inbound_admin.list_inbound(connection, "parked", ids)
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
            "error": s.error,
        }
        for s in await submissions_admin.list_submissions(connection, ["parked"], ids)
    ]


async def requeue(connection: Connection, ids: Collection[int]) -> OperationResult:
    """Give parked mails another five tries."""
    arrived = await inbound_admin.requeue(connection, list(ids))
    sent = await submissions_admin.requeue(connection, ids)
    events = [MailEvent("requeued", inbound_id=id_) for id_ in arrived]
    await maillog.record_events(connection, events + [MailEvent("requeued", submission_id=id_) for id_ in sent])
    return OperationResult.of([*arrived, *sent], ids)


async def discard(connection: Connection, ids: Collection[int], reason: str) -> OperationResult:
    """End parked or held mails undelivered. The trace keeps who they were for and why; authors of parked submissions
    are told."""
    arrived = await inbound_admin.discard(connection, list(ids), reason)
    stuck = [s.id for s in await submissions_admin.list_submissions(connection, ["parked"], ids)]
    sent = await submissions_admin.cancel(connection, stuck, reason)
    await maillog.record_events(connection, [MailEvent("cancelled", inbound_id=id_, reply=reason) for id_ in arrived])
    await _record_cancelled(connection, sent, reason)
    return OperationResult.of([*arrived, *sent], ids)


async def list_held(connection: Connection) -> list[dict[str, Any]]:
    """Mails that nobody enabled is there to get, the oldest first."""
    return [
        {
            "id": m.id,
            "state": m.state,
            "status": mail_status(m.state),
            "message_id": m.message_id,
            "external": m.external,
            "reason": m.reason,
            "since": iso(m.state_at),
        }
        for m in await inbound_admin.list_inbound(connection, "held")
    ]


# ---------------------------------------------------------------------------------------------- what was deleted


async def list_deleted(connection: Connection, address: str) -> list[dict[str, Any]]:
    """The deleted mails of a person that are still kept. :raises Permanent: there is no such local account."""
    person = await _person(connection, address)
    return [
        {"id": entry.inbound_id, "octets": entry.octets, "deleted_at": iso(entry.deleted_at)}
        for entry in await maildrops.list_mails(connection, person.id, deleted=True)
        if entry.deleted_at is not None
    ]


async def undelete(connection: Connection, address: str, ids: Collection[int]) -> OperationResult:
    """Bring deleted mails of a person back, under new UIDLs. :raises Permanent: there is no such local account."""
    person = await _person(connection, address)
    entries = await maildrops.list_mails(connection, person.id, deleted=True)
    wanted = [entry.id for entry in entries if entry.deleted_at is not None and entry.inbound_id in ids]
    back = await maildrops.undelete(connection, person.id, wanted)
    await maillog.record_events(
        connection, [MailEvent("undeleted", inbound_id=id_, who=person.address) for id_ in back]
    )
    return OperationResult.of(back, ids)


async def _person(connection: Connection, address: str) -> Local:
    person = await accounts.local_by_login(connection, address)
    if person is None:
        raise Permanent(f"{address}: there is no such local account")
    return person


async def restore_account(connection: Connection, address: str) -> Local:
    """Bring back a removed local account with its mail.

    :raises Permanent: it is not removed, there is none, or its mail is purged already.
    :raises AccountsError: another account has its address or name meanwhile, or what it shared is gone.
    """
    await account_changes.lock_for_change(connection)
    if any(person.address.casefold() == address.casefold() for person in await accounts.load_locals(connection)):
        raise Permanent(f"{address}: is there already, not removed")
    person = await account_changes.restore_local(connection, address)
    if person is None:
        raise Permanent(f"{address}: no removed local account has this address")
    if not await maildrops.load_versions(connection, [person.id]):
        raise Permanent(f"{address}: was removed longer ago than mail is kept, which is purged; add the account anew")
    sharers = await accounts.load_sharers(connection, [person.external_id])
    if person.delegate_id not in {sharer.id for sharer in sharers[person.external_id]}:
        person = replace(person, delegate_id=None)  # who shares another account by now
        await account_changes.save_local(connection, person)
    await apply.transfer_former_names(connection)
    await apply.check_conflicts(connection)
    await inbound.release_held(connection, [person.external_id])
    return person


# ---------------------------------------------------------------------------------------------- the key


async def rotate_key(connection: Connection, vault: Vault) -> tuple[int, list[str]]:
    """Seal what the external accounts log in with under the first key.

    :return: how many; and the addresses of those whose secret none of the keys opens, which stay as they are.
    """
    await account_changes.lock_for_change(connection)
    lost = []
    everyone = await accounts.load_externals(connection)
    for external in everyone:
        try:
            await account_changes.save_password(connection, external.id, vault.rotate(external.password))
        except Permanent:
            lost.append(external.address)
    return len(everyone) - len(lost), lost


# ---------------------------------------------------------------------------------------------- a mail's copies


async def give_copy(connection: Connection, id_: int, address: str, away_from: str | None = None) -> None:
    """Put a mail that arrived into a person's mailbox, as new mail, also if they have it or have deleted it.

    :param away_from: delete this person's copy, as their mail client could. :raises Permanent: there is no such mail or
        person, both are the same one, or it is not delivered yet.
    """
    person = await _person(connection, address)
    other = await _person(connection, away_from) if away_from else None
    if other is not None and other.id == person.id:
        raise Permanent(f"{address}: is to have it, so it is not taken from there")
    mail = await inbound_admin.load_detail(connection, id_)
    if mail is None:
        raise Permanent(f"{id_}: no mail that arrived has this id")
    if mail.state != "delivered":
        raise Permanent(f"{id_}: is {mail_status(mail.state)}, not delivered; see 'held list' and 'parked list'")
    copy = maildrops.Copy([person.id], id_, mail.blob_id, mail.octets)
    await maildrops.deliver(connection, [copy])
    if any(holder.local_id == person.id for holder in await inbound_admin.list_holders(connection, id_)):
        await maildrops.mark_as_new(connection, person.id, id_)
    await inbound_admin.add_holder(connection, id_, person.id, GIVEN)
    events = [MailEvent("delivered", inbound_id=id_, who=person.address, reply=GIVEN)]
    if other is not None:
        rows = await maildrops.row_ids(connection, other.id, [id_])
        if await maildrops.tombstone(connection, other.id, rows):
            events.append(MailEvent("deleted", inbound_id=id_, who=other.address, reply=TAKEN))
    await maillog.record_events(connection, events)


async def resend(connection: Connection, ids: Collection[int]) -> OperationResult:
    """Send mails again to those outside who did not get them."""
    again = await submissions_admin.resend(connection, ids)
    await maillog.record_events(connection, [MailEvent("requeued", submission_id=id_) for id_ in again])
    return OperationResult.of(again, ids)


async def copy_mailbox_to(connection: Connection, leaver: str, colleague: str) -> int:
    """Put every mail of one person into another one's mailbox too, as new mail. :return: how many.

    :raises Permanent: there is no such person.
    """
    one, other = await _person(connection, leaver), await _person(connection, colleague)
    if one.id == other.id:
        raise Permanent(f"{leaver}: is the same account")
    given = await maildrops.copy_all(connection, one.id, other.id)
    await inbound_admin.add_holders(connection, given, other.id, f"handed over from {one.user_name}")
    return len(given)
