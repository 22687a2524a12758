"""Queue ``sender`` -> Sender -> ``routed.<local>``, ``fetched.<external>``; what is due -> Relaying -> the provider."""

import asyncio

from services.sender.relaying import Relaying
from services.sender.upkeep import keep_up
from services.sender.worker import Sender
from shared.service import Service, run
from shared.stage import run_stage


async def serve(service: Service) -> None:
    """Send until the service is to stop."""
    relaying = Relaying(
        service.database,
        service.credentials,
        service.owner,
        service.settings.allow_private_upstream,
        service.broker.publish_behind,
    )
    sender = Sender(service.database, service.settings.sweep_grace_seconds, relaying.wake)
    await asyncio.gather(run_stage(service, sender), keep_up(service, relaying))


if __name__ == "__main__":
    run("sender", serve)
