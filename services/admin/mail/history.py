"""The history of one mail in sentences: its recipients with the reason, and its events."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from services.admin.formatting import mail_status
from services.admin.mail import header_summary, trace
from services.admin.mail.header_summary import HeaderSummary
from shared.db.database import Connection
from shared.languages.stored_texts import shown
from shared.languages.translation import gettext, marked
from shared.store import inbound_admin, maillog, submissions_admin
from shared.store.inbound_admin import Copyholder, InboundDetail
from shared.store.maillog import MailEvent
from shared.store.submissions_admin import ListedSubmission

MAX_EVENTS = 300
"""Events of a mail that its page shows, at most: the first ones; ``trace`` has all."""


@dataclass(frozen=True, slots=True)
class MailHistory:
    """A mail that arrived, or a submission; the other one is None."""

    id: int
    at: datetime.datetime  # when it arrived or was submitted
    summary: HeaderSummary
    blob_id: int
    octets: int
    arrived: InboundDetail | None
    sent: ListedSubmission | None
    holders: list[Copyholder]
    sentences: list[str]  # a recipient and the reason each; or why a submission waits
    events: list[tuple[str, str, str]]  # time (ISO 8601, UTC), sentence, mark: done, waits or failed
    more_events: bool  # there are more than these

    @property
    def state(self) -> str:
        """State of the mail or the submission, as in the database."""
        return self.arrived.state if self.arrived else self.sent.state if self.sent else ""

    @property
    def status(self) -> str:
        """The same for people."""
        return mail_status(self.state, [r.state for r in self.sent.recipients] if self.sent else ())


async def load_mail_history(connection: Connection, mail_id: int) -> MailHistory | None:
    """Load the history of the mail or submission with this id; None if there is none."""
    arrived = await inbound_admin.load_detail(connection, mail_id)
    sent = (
        next(iter(await submissions_admin.list_submissions(connection, ids=[mail_id])), None)
        if arrived is None
        else None
    )
    if arrived is not None:
        blob_id, octets, at = arrived.blob_id, arrived.octets, arrived.created_at
    else:
        content = await submissions_admin.content_of_submission(connection, mail_id) if sent is not None else None
        if content is None:
            return None
        blob_id, octets, at = content
    summary = await header_summary.load_summary(connection, blob_id)
    holders = await inbound_admin.list_holders(connection, mail_id) if arrived is not None else []
    submission = [] if arrived is not None else [mail_id]
    mail = [mail_id] if arrived is not None else list(await inbound_admin.list_inside(connection, submission))
    history = await maillog.load_history(connection, mail, submission, MAX_EVENTS + 1)
    return MailHistory(
        mail_id,
        at,
        summary,
        blob_id,
        octets,
        arrived,
        sent,
        holders,
        _why(arrived, holders) if arrived is not None else await _why_waiting(connection, mail_id),
        [(when, _sentence(event), _mark(event)) for when, event in history[:MAX_EVENTS]],
        len(history) > MAX_EVENTS,
    )


async def _why_waiting(connection: Connection, submission_id: int) -> list[str]:
    found = (await trace.why_waiting(connection, [submission_id])).values()
    return [gettext("Waits: %(why)s.", why=shown(why)) for why in found]


def _why(mail: InboundDetail, holders: list[Copyholder]) -> list[str]:
    """Return a sentence for each recipient. Pure."""
    if not holders:
        reason = (mail.reason or "").removeprefix("held: ")
        return [gettext("On hold: %(why)s.", why=shown(reason))] if mail.state == "held" else []
    return [gettext(_GOT if h.done_at else _GETS, user=h.user_name, why=describe_reason(h)) for h in holders]


_GOT = marked("%(user)s got this because %(why)s.")
_GETS = marked("%(user)s is to get this because %(why)s.")


def describe_reason(holder: Copyholder) -> str:
    """Return why a recipient gets a mail, as it stands behind "because". Pure."""
    reason = holder.reason
    if reason[:2] not in ("To", "Cc"):
        reason = f"{reason[:1].lower()}{reason[1:]}"
    reason = shown(reason)
    return gettext("%(why)s (rule %(number)s)", why=reason, number=holder.rule) if holder.rule else reason


_SENTENCES = {
    "fetched": marked("Fetched from %(external)s"),
    "renumbered": marked("The provider gave it another number; it is the same mail"),
    "skipped": marked("Could not be fetched from %(external)s: %(reply)s"),
    "routed": marked("Routed: %(reply)s"),
    "held": marked("On hold: %(reply)s"),
    "delivered": marked("Put into the mailbox of %(who)s: %(reply)s"),
    "own_copy": marked("A copy of our own mail came back, stored as deleted mail of %(who)s: %(reply)s"),
    "returned": marked("Not put into the mailbox of %(who)s: %(reply)s"),
    "submitted": marked("Submitted by %(who)s"),
    "relayed": marked("Sent to %(who)s: %(reply)s"),
    "delayed": marked("Not sent to %(who)s yet: %(reply)s"),
    "failed": marked("Not sent to %(who)s: %(reply)s"),
    "cancelled": marked("Cancelled for %(who)s: %(reply)s"),
    "uncertain": marked("Perhaps sent twice: %(reply)s"),
    "noticed": marked("%(who)s was notified: %(reply)s"),
    "parked": marked("Needs attention: %(reply)s"),
    "requeued": marked("Retried by the operator"),
    "discarded": marked("Put into nobody’s mailbox: %(reply)s"),
    "deleted": marked("Deleted from the mailbox of %(who)s"),
    "local_organizer": marked("The invitation names %(reply)s as its organizer, which customers cannot answer"),
    "not_junk": marked("Moved from Junk to INBOX in the mailbox of %(who)s, as the provider has moved it"),
    "undeleted": marked("Brought back into the mailbox of %(who)s"),
}


def _sentence(event: MailEvent) -> str:
    """Return the event as a sentence; unknown parts are left out. Pure."""
    form = _SENTENCES.get(event.event, event.event + " %(who)s %(reply)s")
    words = gettext(
        form,
        external=event.external or gettext("the provider"),
        who=event.who or gettext("everyone"),
        reply=shown((event.reply or "").strip()),
    )
    return words.strip().removesuffix(":").strip()


def _mark(event: MailEvent) -> str:
    if event.event in ("failed", "parked", "skipped", "cancelled"):
        return "failed"
    return "waits" if event.event in ("held", "delayed", "uncertain") else "done"
