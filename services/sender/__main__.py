"""Queue ``sender`` -> SubmissionWorker -> ``routed``, ``fetched``; due mails -> OutboundDelivery -> the provider."""

import asyncio

from services.sender.background import run_background
from services.sender.delivery import OutboundDelivery
from services.sender.submission_worker import SubmissionWorker
from shared.languages.translation import in_language
from shared.provider.credentials import Credentials
from shared.provider.vault import Vault
from shared.runtime.memory import tune_garbage_collector
from shared.runtime.process import Service, run
from shared.runtime.queue_worker import run_worker

STOP_SECONDS = 40.0
"""Limits how long the service may take to stop: seconds; more than the wait for the provider's last reply
(delivery.REPLY_SECONDS) and the commit after it."""


async def serve(service: Service) -> None:
    """Deliver and relay until the service stops."""
    tune_garbage_collector()
    settings = service.settings
    relaying = OutboundDelivery(
        service.database,
        Credentials(service.database, Vault.from_settings(settings), settings.allow_private_upstream),
        service.owner,
        settings.allow_private_upstream,
        service.broker.publish_behind,
        settings.ehlo_name,
    )
    sender = SubmissionWorker(service.database, settings.sweep_grace_seconds, relaying.schedule)
    with in_language(settings.language):  # of notices to authors who have chosen none
        await asyncio.gather(run_worker(service, sender), run_background(service, relaying))


if __name__ == "__main__":
    run("sender", serve, stop_seconds=STOP_SECONDS)
