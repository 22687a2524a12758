"""What became of one mail, in sentences: who got it and why, and what happened when."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from services.admin.formatting import mail_status
from services.admin.mail import header_summary
from services.admin.mail.header_summary import HeaderSummary
from shared.db.database import Connection
from shared.store import inbound_admin, maillog, submissions_admin
from shared.store.inbound_admin import Copyholder, InboundDetail
from shared.store.maillog import MailEvent
from shared.store.submissions_admin import ListedSubmission


@dataclass(frozen=True, slots=True)
class MailHistory:
    """A mail that arrived, or a submission; the other one is None. sentences: why who got it."""

    id: int
    at: datetime.datetime
    summary: HeaderSummary
    blob_id: int
    octets: int
    arrived: InboundDetail | None
    sent: ListedSubmission | None
    holders: list[Copyholder]
    sentences: list[str]
    events: list[tuple[str, str, str]]
    """Time (ISO 8601, UTC), the sentence, and how it is to be marked: done, waits or failed."""

    @property
    def state(self) -> str:
        """State of the mail or the submission, as in the database."""
        return self.arrived.state if self.arrived else self.sent.state if self.sent else ""

    @property
    def status(self) -> str:
        """The same for people."""
        return mail_status(self.state, [r.state for r in self.sent.recipients] if self.sent else ())


async def load_mail_history(connection: Connection, id_: int) -> MailHistory | None:
    """The story of the mail with this id, if there is one."""
    arrived = await inbound_admin.load_detail(connection, id_)
    sent = (
        next(iter(await submissions_admin.list_submissions(connection, ids=[id_])), None) if arrived is None else None
    )
    if arrived is not None:
        blob_id, octets, at = arrived.blob_id, arrived.octets, arrived.created_at
    else:
        content = await submissions_admin.content_of_submission(connection, id_) if sent is not None else None
        if content is None:
            return None
        blob_id, octets, at = content
    found = await header_summary.load_summaries(connection, [blob_id])
    holders = await inbound_admin.list_holders(connection, id_) if arrived is not None else []
    history = await maillog.load_history(connection, *(([id_], []) if arrived is not None else ([], [id_])))
    return MailHistory(
        id_,
        at,
        found.get(blob_id, HeaderSummary(None, (), "")),
        blob_id,
        octets,
        arrived,
        sent,
        holders,
        _why(arrived, holders) if arrived is not None else [],
        [(when, _sentence(event), _mark(event)) for when, event in history],
    )


def _why(mail: InboundDetail, holders: list[Copyholder]) -> list[str]:
    """Pure."""
    if not holders:
        reason = (mail.reason or "").removeprefix("held: ")
        return [f"Nobody has it: {reason}."] if mail.state == "held" else []
    return [f"{h.user_name} {'got' if h.done_at else 'is to get'} this because {_because(h)}." for h in holders]


def _because(holder: Copyholder) -> str:
    rule = f" (rule {holder.rule})" if holder.rule else ""
    return (
        f"{holder.reason[:1].lower()}{holder.reason[1:]}{rule}"
        if holder.reason[:2] not in ("To", "Cc")
        else (f"{holder.reason}{rule}")
    )


_SENTENCES = {
    "fetched": "Fetched from {external}",
    "renumbered": "The provider gave it another number; it is the same mail",
    "skipped": "Could not be fetched from {external}: {reply}",
    "routed": "Routed: {reply}",
    "held": "Held: {reply}",
    "delivered": "Put into the mailbox of {who}: {reply}",
    "own_copy": "Of us and came back, so {who} has it as deleted mail: {reply}",
    "returned": "Not put into the mailbox of {who}: {reply}",
    "submitted": "Handed in by {who}",
    "relayed": "Sent to {who}: {reply}",
    "delayed": "Not sent to {who} yet: {reply}",
    "failed": "Not sent to {who}: {reply}",
    "cancelled": "Ended undelivered for {who}: {reply}",
    "uncertain": "Perhaps sent twice: {reply}",
    "noticed": "{who} was told: {reply}",
    "parked": "Parked until somebody decides: {reply}",
    "requeued": "Tried again by the operator",
    "deleted": "Deleted from the mailbox of {who}",
    "undeleted": "Brought back into the mailbox of {who}",
}


def _sentence(event: MailEvent) -> str:
    """Pure. What is not known is left out."""
    form = _SENTENCES.get(event.event, event.event + " {who} {reply}")
    words = form.format(
        external=event.external or "the provider", who=event.who or "everyone", reply=(event.reply or "").strip()
    )
    return words.strip().removesuffix(":").strip()


def _mark(event: MailEvent) -> str:
    if event.event in ("failed", "parked", "skipped", "cancelled"):
        return "failed"
    return "waits" if event.event in ("held", "delayed", "uncertain") else "done"
