"""Names steps of the services, kills a service at a step, and records which steps are reached.

The services contain no test code. A process that is started with the folder ``inject`` on its PYTHONPATH wraps the
functions named here. It writes an empty file when it reaches a step for the first time. Each time it reaches a step it
checks for an order, a file with the name of the service that holds the name of the step; it deletes that file and kills
itself with SIGKILL.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ORDERS = "FAULTS_ORDERS"
"""Environment variable: the folder of the orders."""

REACHED = "FAULTS_REACHED"
"""Environment variable: the folder of the reached steps."""


@dataclass(frozen=True, slots=True)
class Step:
    """A moment of a service: before or after the call of a function."""

    service: str
    name: str
    target: str
    """The function, as module:name or module:Class.name."""
    when: Literal["before", "after"]

    def __str__(self) -> str:
        return f"{self.service}: {self.name}"


def _steps(service: str, **steps: str) -> tuple[Step, ...]:
    return tuple(
        Step(service, name.replace("_", " "), target[1:], "before" if target[0] == "<" else "after")
        for name, target in steps.items()
    )


STEPS = (
    *_steps(
        "fetcher",
        account_claimed=">shared.store.polls:claim_due",
        bytes_stored_not_in_the_ledger=">shared.store.blobs:store_blobs",
        ledger_written_not_committed=">shared.store.uidl_ledger:record_fetched",
        committed_not_published="<shared.amqp.broker:Broker.publish_behind",
        committed_not_deleted="<shared.provider.pop3_client:Pop3Client.delete",
        deleted_no_quit=">shared.provider.pop3_client:Pop3Client.delete",
        before_quit="<shared.provider.pop3_client:Pop3Client.quit",
        quit_not_recorded="<shared.store.polls:record_outcome",
        mail_has_arrived="<shared.store.polls:hurry",
        listed_by_imap=">shared.provider.imap_client:ImapClient.fetch_list_reply",
        committed_not_deleted_by_imap="<shared.provider.imap_client:ImapClient.delete",
        marked_not_expunged_by_imap=">shared.provider.imap_deletion:mark_deleted",
        deleted_by_imap_no_logout=">shared.provider.imap_client:ImapClient.delete",
    ),
    *_steps(
        "router",
        batch_taken="<services.router.worker:RouterWorker.handle",
        decided_not_committed=">shared.store.inbound:write_decisions",
        committed_not_published="<shared.amqp.broker:Broker.publish_behind",
        published_not_acknowledged="<shared.amqp.broker:Consumer.ack",
        acknowledged=">shared.amqp.broker:Consumer.ack",
    ),
    *_steps(
        "mailbox",
        batch_taken="<services.mailbox.worker:MailboxWorker.handle",
        copies_written_not_committed=">shared.store.folder_mails:deliver_copies",
        finished_not_committed=">shared.store.inbound:record_delivered",
        committed_not_acknowledged="<shared.amqp.broker:Consumer.ack",
    ),
    *_steps(
        "smtp_in",
        mail_received_not_written="<shared.store.submissions:record_submissions",
        written_not_known=">shared.store.submissions:record_submissions",
        committed_not_answered="<services.smtp_in.commit_queue:CommitQueue._committed",
        answered_not_published="<services.smtp_in.commit_queue:CommitQueue._announce",
    ),
    *_steps(
        "sender",
        inside_written_not_committed=">shared.store.inbound:add_inbound",
        handed_over_not_committed=">shared.store.submissions:enqueue_for_relay",
        handed_over_not_acknowledged="<shared.amqp.broker:Consumer.ack",
        claimed_not_committed=">shared.store.relay_queue:claim",
        announced_no_content=">services.sender.transmission:Transmission.announce",
        content_sent_not_marked=">services.sender.transmission:Transmission.send_content",
        marked_no_final_dot=">services.sender.claims:Claims.mark_sending",
        final_dot_no_answer=">services.sender.transmission:Transmission.send_final_dot",
        answered_not_written=">services.sender.transmission:Transmission.read_answer",
        settled=">services.sender.claims:Claims.record_result",
        copy_searched_not_filed=">shared.provider.imap_client:ImapClient.has_mail",
        copy_filed_not_recorded=">shared.provider.imap_client:ImapClient.append_sent",
        answered_marked_not_recorded=">shared.provider.imap_client:ImapClient.mark_answered",
    ),
    *_steps(
        "pop3_out",
        tombstones_not_committed=">shared.store.folder_mails:tombstone_mails",
        mailbox_read=">shared.store.folder_mails:load_contents",
    ),
    *_steps(
        "imap_out",
        folder_read=">shared.store.folder_views:load_view",
        flags_committed_not_announced=">shared.store.folder_batches:store_at_once",
        mails_appended_not_announced=">shared.store.folder_batches:append_at_once",
        copied_not_committed=">shared.store.folder_edits:copy_mails",
        moved_not_committed=">shared.store.folder_edits:move_mails",
        expunged_not_committed=">shared.store.folder_edits:expunge_mails",
        committed_not_answered="<services.imap_out.context:ImapContext.announce",
    ),
)


def not_reached(folder: Path) -> list[str]:
    """Return the steps that no process has reached, in the order of ``STEPS``."""
    reached = {file.name for file in folder.iterdir()}
    return [str(step) for step in STEPS if str(step) not in reached]


def order(folder: Path, step: Step) -> Path:
    """Order a service to kill itself at a step. :return: the file of the order, which the service deletes then."""
    part, file = folder / f"{step.service}.part", folder / step.service
    part.write_text(step.name, encoding="ascii")
    part.rename(file)
    return file


def arm(service: str) -> None:
    """Wrap the steps of this service, in this process."""
    for step in STEPS:
        if step.service == service:
            owner, name = locate(step)
            file, folder = Path(os.environ[ORDERS]) / service, Path(os.environ[REACHED])
            setattr(owner, name, _wrapped(getattr(owner, name), step, file, folder))


def locate(step: Step) -> tuple[Any, str]:
    """Return the module or class that has the function of a step, and the function's name."""
    module, _, path = step.target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name


def _wrapped(function: Callable[..., Any], step: Step, file: Path, folder: Path) -> Callable[..., Any]:
    recorded = False

    def reached() -> None:
        nonlocal recorded
        if not recorded:
            (folder / str(step)).touch()
            recorded = True
        if file.exists() and file.read_text(encoding="ascii") == step.name:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def waits(*arguments: Any, **named: Any) -> Any:
            if step.when == "before":
                reached()
            result = await function(*arguments, **named)
            if step.when == "after":
                reached()
            return result

        return waits

    @functools.wraps(function)
    def calls(*arguments: Any, **named: Any) -> Any:
        if step.when == "before":
            reached()
        result = function(*arguments, **named)
        if step.when == "after":
            reached()
        return result

    return calls
